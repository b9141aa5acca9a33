package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// replayed is what a replay says.
type replayed struct {
	Same        bool     `json:"same"`
	Effect      string   `json:"effect"`
	Reason      string   `json:"reason"`
	Overruled   string   `json:"overruled"`
	Grants      []string `json:"grants"`
	Snapshot    string   `json:"snapshot"`
	Differences []struct{ Field, Recorded, Replayed string }
}

// TestDecisionsOfARunningCellAreMadeAgain takes decisions of all kinds from the nodes of a cell, goes on with the policy, and
// makes each of them again under the generation that it was made under.
func TestDecisionsOfARunningCellAreMadeAgain(t *testing.T) {
	t.Parallel()
	d := start(t)
	must(t, d, 0, "grant", "alice", "payments/refund", "--when", "context.args.amount < 100")
	alice, bob := d.Tokens["alice"], d.Tokens["bob"]
	type made struct{ id, args, effect, reason string }
	var all []made
	for node := range 3 {
		for _, c := range []struct{ token, server, tool, args, word, effect, reason string }{
			{alice, "demo", "echo", `{"message":"hi"}`, "ok", "allow", "allowed"},
			{alice, "payments", "refund", `{"amount":5}`, "ok", "allow", "allowed"},
			{alice, "payments", "refund", `{"amount":500}`, "denied", "deny", "condition"},
			{alice, "payments", "refund", `{"amount":"5"}`, "denied", "deny", "argument_type"},
			{bob, "payments", "refund", `{"amount":5}`, "hidden", "deny", "no_grant"},
		} {
			word, id := outcome(d, node, c.token, c.server, c.tool, c.args)
			if word != c.word || id == "" {
				t.Fatalf("%s%s: %s", c.tool, c.args, word)
			}
			all = append(all, made{id, c.args, c.effect, c.reason})
		}
	}
	// From here on the same calls would be decided otherwise.
	must(t, d, 0, "grant", "everyone", "server:payments", "--deny")
	must(t, d, 0, "revoke", "alice", "payments/refund")
	again := func(status int, args ...string) (r replayed) {
		out, _ := must(t, d, status, append([]string{"access", "replay", "-o", "json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return r
	}
	for _, m := range all {
		eventually(t, "the record of "+m.id+" is in the control plane", func() bool {
			_, _, status := cli(t, d, "audit", "get", m.id)
			return status == 0
		})
		if r := again(0, m.id); !r.Same || r.Effect != m.effect || r.Reason != m.reason || len(r.Differences) > 0 {
			t.Errorf("%s %s: %+v", m.id, m.args, r)
		}
		if r := again(0, m.id, "--args", m.args); !r.Same {
			t.Errorf("%s %s: %+v", m.id, m.args, r)
		}
	}
	refund := all[1]
	if r := again(1, refund.id, "--args", `{"amount":500}`); r.Same || r.Effect != "deny" {
		t.Errorf("with other arguments: %+v", r)
	}
	if out, _ := must(t, d, 1, "access", "replay", refund.id, "--args", `{"amount":500}`); !strings.HasPrefix(out, "differs: deny") {
		t.Error(out)
	}
	must(t, d, 3, "access", "replay", "01K8Z3V9QJ7W2M5T4R6Y8X0ABC")
	word, killed := "", ""
	must(t, d, 0, "kill", "tool", "demo/echo")
	eventually(t, "the kill is enforced", func() bool {
		word, killed = outcome(d, 0, alice, "demo", "echo", `{"message":"hi"}`)
		return word == "denied"
	})
	eventually(t, "its record is there", func() bool {
		_, _, status := cli(t, d, "audit", "get", killed)
		return status == 0
	})
	if r := again(0, killed); !r.Same || r.Effect != "allow" || r.Overruled != "killed" {
		t.Errorf("a killed tool: %+v", r)
	}
}
