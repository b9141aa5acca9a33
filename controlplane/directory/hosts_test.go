package directory

import (
	"slices"
	"testing"
)

// What is accepted is in its one form already, so that two spellings cannot lead to two tenants.
func FuzzHostNames(f *testing.F) {
	for _, seed := range []string{"mcp.example.com", "MCP.Example.com.", "acme.localhost", "10.0.0.1", "a..b", "x:80", "xn--bcher-kva.example", "", ".", "-a", "İ.example"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		first, err := hostNames([]string{host})
		if err != nil {
			return
		}
		again, err := hostNames(first)
		if err != nil || !slices.Equal(first, again) || len(first) != 1 || len(first[0]) > 253 {
			t.Errorf("%q became %q, then %q (%v)", host, first, again, err)
		}
	})
}
