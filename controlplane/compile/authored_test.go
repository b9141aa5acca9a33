package compile

import (
	"testing"

	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// TestWrittenPoliciesAreDecided builds an index of written policies: native programs, Cedar that is kept, and what is gone.
func TestWrittenPoliciesAreDecided(t *testing.T) {
	t.Parallel()
	_, in := load(t, "testdata/policies.txtar")
	in.Users = append(in.Users, User{Name: "tmp-7", Kind: in.Users[0].Kind, Roles: []string{"analyst"}, Teams: []string{"ops"}})
	in.Policies = []Policy{{Name: "refunds", Text: `
		permit (principal in Role::"analyst", action == Action::"call", resource == Tool::"payments/refund") when { context.args.amount * 2 < 100 };
		forbid (principal, action == Action::"call", resource in Server::"payments") when { principal.name like "tmp-*" };
		forbid (principal in Team::"gone", action, resource);`}}
	in.Grants = nil
	out, err := Compile(in)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(out.Index)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		who, args string
		want      bool
	}{
		{"alice", `{"amount":49}`, true},
		{"alice", `{"amount":50}`, false},
		{"alice", `{"amount":"49"}`, false},
		{"alice", `{}`, false},
		{"tmp-7", `{"amount":49}`, false},
	} {
		p, _ := x.Principal(tc.who)
		s, _ := x.Server("payments")
		item, ok := x.Item(s, "refund")
		if !ok {
			t.Fatal("no refund")
		}
		v := x.View(p, s)
		if d := authz.Decide(&v, item, &authz.Request{Args: []byte(tc.args)}); d.Allow != tc.want {
			t.Errorf("%s with %s: %+v", tc.who, tc.args, d)
		}
	}
	in.Policies[0].Text = "permit (principal"
	if out, err = Compile(in); err != nil || len(out.Report.Notes) == 0 || !out.Policy.Grants[0].Deny {
		t.Errorf("a text that nobody can read must deny: %+v %v", out.Policy.Grants, err)
	}
}
