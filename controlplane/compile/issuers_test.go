package compile_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

func TestIssuersCompileToTheSameBytesInWhateverOrder(t *testing.T) {
	t.Parallel()
	build := func(turn bool) []byte {
		list := []*snapshotv1.Issuer{
			{
				Issuer: "https://a.example", External: true, JwksUrl: "https://a.example/keys", Audiences: []string{"x", "y"},
				Keys:      []*snapshotv1.IssuerKey{{Kid: "k", Alg: "PS256", PublicKey: []byte{1}}, {Kid: "k", Alg: "RS256", PublicKey: []byte{1}}},
				Withdrawn: [][]byte{{1}, {2}},
				Scopes:    []*snapshotv1.ScopeRule{{Scope: "a", Wider: []string{"b", "c"}}, {Scope: "d", Server: "s"}},
			},
			{Issuer: "https://b.example"},
		}
		if turn {
			slices.Reverse(list)
			i := list[1]
			slices.Reverse(i.Audiences)
			slices.Reverse(i.Keys)
			slices.Reverse(i.Withdrawn)
			slices.Reverse(i.Scopes)
			slices.Reverse(i.Scopes[1].Wider)
		}
		out, err := compile.Compile(compile.Input{Tenant: controlplane.Tenant{ID: "0192-acme", Name: "acme"}, Issuers: list})
		if err != nil {
			t.Fatal(err)
		}
		return out.Catalogue
	}
	if !bytes.Equal(build(false), build(true)) {
		t.Error("the order of the rows is in the catalogue")
	}
}
