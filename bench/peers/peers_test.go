package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	cedar "github.com/cedar-policy/cedar-go"
	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/bench/authz"
)

// hostile are arguments that are absent, of another type, or more than anybody asked for.
func hostile() *rapid.Generator[[]byte] {
	values := map[string][]string{
		"amount":  {"0", "24", "25", "475", "-1", "9223372036854775807", `"25"`, "true", "[]", "{}", `{"amount":1}`},
		"region":  {`"eu"`, `"us"`, `"ap"`, `"EU"`, `""`, "1", "false", `["eu"]`},
		"dry_run": {"true", "false", `"true"`, "0", "{}"},
		"note":    {`"x"`, "1", `"\u00e9\ud83d\ude00"`},
	}
	return rapid.Custom(func(t *rapid.T) []byte {
		if rapid.IntRange(0, 9).Draw(t, "none") == 0 {
			return nil
		}
		var members []string
		for _, name := range []string{"amount", "region", "dry_run", "note"} {
			if rapid.IntRange(0, 4).Draw(t, "there") > 0 {
				members = append(members, fmt.Sprintf("%q:%s", name, rapid.SampledFrom(values[name]).Draw(t, name)))
			}
		}
		return []byte("{" + strings.Join(members, ",") + "}")
	})
}

func TestEveryEngineGivesTheSameAnswerOnRandomWorlds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := authz.Size{
			Users: rapid.IntRange(1, 40).Draw(t, "users"), Units: rapid.IntRange(1, 40).Draw(t, "units"),
			Teams: rapid.IntRange(1, 10).Draw(t, "teams"), Groups: rapid.IntRange(1, 5).Draw(t, "groups"),
			Roles: rapid.IntRange(1, 12).Draw(t, "roles"), Grants: rapid.IntRange(0, 400).Draw(t, "grants"),
		}
		w, err := newWorld(rapid.IntRange(0, 1<<30).Draw(t, "tenant"), size)
		if err != nil {
			t.Fatal(err)
		}
		qs := authz.Questions(w.ours.indexes, 200, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "questions"), 1)))
		for i := range qs {
			if i%2 == 0 {
				r := *qs[i].Request
				r.Args = hostile().Draw(t, "args")
				qs[i].Request = &r
			}
		}
		engines, calls, err := w.engines(t.Context(), qs)
		if err != nil {
			t.Fatal(err)
		}
		all := []contender{{"mcpvault", 1, w.ours}}
		for name, e := range engines {
			all = append(all, contender{name, 1, e})
		}
		if _, err := alike(all, calls); err != nil {
			t.Fatal(err)
		}
	})
}

// An engine that skips what it cannot evaluate is the reason for the rule.
func TestADenyInErrorDeniesInEveryEngine(t *testing.T) {
	w, err := newWorld(7, authz.Full())
	if err != nil {
		t.Fatal(err)
	}
	qs := authz.Questions(w.ours.indexes, 3000, rand.New(rand.NewPCG(1, 1)))
	for i := range qs {
		r := *qs[i].Request
		r.Args = nil
		qs[i].Request = &r
	}
	engines, calls, err := w.engines(t.Context(), qs)
	if err != nil {
		t.Fatal(err)
	}
	delete(engines, "cedar_whole") // half a minute
	all := []contender{{"mcpvault", 1, w.ours}}
	for name, e := range engines {
		all = append(all, contender{name, 1, e})
	}
	if err := agree(all, calls); err != nil {
		t.Fatal(err)
	}
	skipped := 0
	sliced := engines["cedar_sliced"].(slicedCedar)
	for _, c := range calls {
		ours, _ := w.ours.allows(c)
		plain, _ := cedar.Authorize(sliced.slices[[2]string{c.principal, c.server}], sliced.entities, sliced.request(c))
		if bool(plain) && !ours {
			skipped++
		}
	}
	if skipped == 0 {
		t.Fatal("plain Cedar lets nothing through here: the test shows nothing")
	}
	t.Logf("plain Cedar lets %d of %d calls through whose arguments were left away", skipped, len(calls))
}
