package contexts_test

import (
	"encoding/base64"
	"testing"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
)

func token(claims string) string {
	return "x." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".y"
}

func TestATokenLeadsToItsOwnTenant(t *testing.T) {
	t.Parallel()
	c := &contexts.Context{Tenant: "acme", Hosts: map[string]string{"acme": "acme.localhost", "globex": "globex.localhost"}}
	for said, want := range map[string]string{
		token(`{"sub":"mallory","tenant":"globex"}`): "globex.localhost",
		token(`{"sub":"alice","tenant":"acme"}`):     "acme.localhost",
		token(`{"tenant":"initech"}`):                "",
		token(`{}`):                                  "acme.localhost",
		"opaque":                                     "acme.localhost",
		"a.!.c":                                      "acme.localhost",
	} {
		if got := c.HostFor(said); got != want {
			t.Errorf("%s: %q, want %q", said, got, want)
		}
	}
}

func TestATokenSaysWhenItEnds(t *testing.T) {
	t.Parallel()
	if end, ok := contexts.ReadToken(token(`{"exp":1700000000}`)).End(); !ok || end.Unix() != 1_700_000_000 {
		t.Fatal(end, ok)
	}
	for _, raw := range []string{"", "a.b", token(`{"exp":"soon"}`), token(`[]`)} {
		if _, ok := contexts.ReadToken(raw).End(); ok {
			t.Errorf("%q has an end", raw)
		}
	}
}

func FuzzReadToken(f *testing.F) {
	f.Add("x.eyJzdWIiOiJhIn0.y")
	f.Fuzz(func(t *testing.T, raw string) {
		if end, ok := contexts.ReadToken(raw).End(); ok && end.Unix() <= 0 {
			t.Fatal(end)
		}
	})
}
