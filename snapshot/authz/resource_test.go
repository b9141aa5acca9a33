package authz_test

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func TestResourceIsDecidedOverAllPatternsThatMatch(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		x := openOrFatal(t, p)
		twin := snapshottest.Twin{Policy: p}
		for range 10 {
			c := snapshottest.Calls(p, true).Draw(t, "call")
			v, _ := resolve(t, x, c)
			items := []string{snapshot.ItemOther}
			for _, s := range p.Servers {
				for _, it := range s.Items {
					if s.Name == c.Server && match(it, c.URI) {
						items = append(items, it)
					}
				}
			}
			if !authz.Canonical(c.URI) {
				continue
			}
			got := authz.DecideResource(&v, c.URI, &c.Request)
			got.Program = 0
			if want := twin.DecideAny(c.Principal, c.Server, items, &c.Request); got != want {
				t.Fatalf("%s: %+v, twin %+v", c.URI, got, want)
			}
			if got.Allow && !authz.VisibleResource(&v, c.URI, &c.Request) {
				t.Fatalf("%s is allowed and hidden", c.URI)
			}
		}
	})
}

// match knows the patterns of random policies by heart.
func match(item, uri string) bool {
	switch item {
	case snapshot.ResourceItem("*"):
		return true
	case snapshot.ResourceItem("file:///docs/*"):
		return uri == "file:///docs/a.md" || uri == "file:///docs/b.txt"
	case snapshot.ResourceItem("file:///docs/*.md"):
		return uri == "file:///docs/a.md"
	}
	return false
}

// docs is a server whose documents alice may read, but for the secret ones; bob has the whole server.
func docs(t testing.TB) *snapshot.Policy {
	t.Helper()
	all, secret := snapshot.ResourceItem("file:///docs/*"), snapshot.ResourceItem("file:///docs/secret/*")
	return &snapshot.Policy{
		Tenant: "t", Principals: []snapshot.Principal{{Name: "alice"}, {Name: "bob"}, {Name: "carol"}},
		Servers: []snapshot.Server{{Name: "files", Items: []string{"list", all, secret}}},
		Grants: []snapshot.Grant{
			{ID: "a", Subject: "user:alice", Server: "files", Tool: all},
			{ID: "b", Subject: "user:bob", Server: "files"},
			{ID: "d", Deny: true, Subject: snapshot.Everyone, Server: "files", Tool: secret},
		},
	}
}

func TestOddWritingOfAResourceHelpsNobody(t *testing.T) {
	t.Parallel()
	x := build(t, docs(t))
	alice, bob := x.View(0, 0), x.View(1, 0)
	r := &authz.Request{}
	for uri, want := range map[string][2]bool{
		"file:///docs/a":                 {true, true},
		"file:///docs/a%20b":             {true, true},
		"file:///etc/passwd":             {false, true},
		"file:///docs/secret/a":          {false, false},
		"file:///docs/../etc/passwd":     {false, false},
		"file:///docs/x/../secret/a":     {false, false},
		"file:///docs//secret/a":         {false, false},
		"file:///docs/./secret/a":        {false, false},
		"file:///docs/%73ecret/a":        {false, false},
		"file:///docs/x/..%2fsecret/a":   {false, false},
		"file:///docs/x/%2e%2e/secret/a": {false, false},
		"file:///docs/x/%252e%252e/a":    {false, false},
		"FILE:///docs/secret/a":          {false, false},
		"file://LOCALHOST/docs/secret/a": {false, false},
		"file:///docs/secret\\a":         {false, false},
		"file:///docs/sécret/a":          {false, false},
		"file:///docs/a b":               {false, false},
		"file:///docs/\x00":              {false, false},
		"/docs/a":                        {false, false},
		"":                               {false, false},
	} {
		for i, v := range []*struct{ d authz.Decision }{{authz.DecideResource(&alice, uri, r)}, {authz.DecideResource(&bob, uri, r)}} {
			if v.d.Allow != want[i] {
				t.Errorf("%q for %s: %+v", uri, []string{"alice", "bob"}[i], v.d)
			}
		}
	}
	carol := x.View(2, 0)
	if d := authz.DecideResource(&carol, "file:///docs/a", r); d.Allow || d.Visible {
		t.Errorf("carol: %+v", d)
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"file:///a/b", "mem:x/../y", "http://h/%41", "file:///docs/%2e%2e/x", "test://static-text"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		if !authz.Canonical(uri) {
			return
		}
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatalf("%q is canonical and does not parse", uri)
		}
		if p := u.Path; strings.Contains(p, "\\") || p != "" && p[0] == '/' && path.Clean(p) != strings.TrimSuffix(p, "/") && p != "/" {
			t.Fatalf("%q is canonical and decodes to %q", uri, p)
		}
	})
}

// Ten thousand decisions are recorded and made again, with the arguments and without: nothing may differ.
func TestRecordedDecisionsReplayBitByBit(t *testing.T) {
	t.Parallel()
	replayed := 0
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		x := openOrFatal(t, p)
		for range 100 {
			c := snapshottest.Calls(p, true).Draw(t, "call")
			v, item := resolve(t, x, c)
			want := authz.Decide(&v, item, &c.Request)
			steps := authz.Trace(&v, item, &c.Request)
			again := c.Request
			for _, args := range [][]byte{c.Request.Args, nil} {
				again.Args = args
				got, err := authz.Replay(&v, item, &again, steps)
				if err != nil || got != want {
					t.Fatalf("%+v: decided %+v, replayed %+v, %v", c, want, got, err)
				}
			}
			res := authz.DecideResource(&v, c.URI, &c.Request)
			again.Args = nil
			if got, err := authz.ReplayResource(&v, c.URI, &again, authz.TraceResource(&v, c.URI, &c.Request)); err != nil || got != res {
				t.Fatalf("%s: decided %+v, replayed %+v, %v", c.URI, res, got, err)
			}
			replayed++
		}
	})
	if replayed < 10_000 {
		t.Errorf("only %d decisions", replayed)
	}
}

func TestReplayFindsWhatWasTamperedWith(t *testing.T) {
	t.Parallel()
	x, v, item := shop(t, false, number("amount", snapshot.OpLt, 100))
	r := &authz.Request{Args: []byte(`{"amount":5}`)}
	steps := authz.Trace(&v, item, r)
	if len(steps) != 1 {
		t.Fatalf("%+v", steps)
	}
	for name, bad := range map[string][]authz.Step{
		"an outcome that the arguments do not give": {{Program: steps[0].Program, Outcome: authz.OutcomeFalse}},
		"no outcome":                    nil,
		"an outcome that there is not":  {{Program: steps[0].Program, Outcome: 9}},
		"a condition that there is not": {{Program: uint32(x.Programs())}},
	} {
		if _, err := authz.Replay(&v, item, r, bad); !errors.Is(err, authz.ErrReplay) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
