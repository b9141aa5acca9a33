package pep_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// libraries are two servers of different eras with the same prompt, and with a resource and a template in common.
func libraries(t *testing.T, cfg pep.Config, grants []snapshot.Grant) (g *gateway, old, young *scripted) {
	t.Helper()
	old, young = newScripted(t), newScripted(t)
	server := func(name, url, era string, uris ...string) *snapshotv1.CatalogueServer {
		s := catalogueServer(name, url, []string{era}, plainTool("borrow", destructive), plainTool("find", read))
		s.Prompts = append(s.Prompts, entry("title", "brief"), entry("title", "plan"))
		for _, uri := range uris {
			s.Resources = append(s.Resources, entry("uri", uri))
		}
		s.ResourceTemplates = append(s.ResourceTemplates, entry("uriTemplate", "file:///docs/{name}"))
		return s
	}
	g = newGateway(t, cfg, grants, server("lib", old.url, "2025-11-25", "file:///docs/a.md", "file:///lib.md"),
		server("lob", young.url, "2026-07-28", "file:///docs/a.md", "file:///docs/b.md"))
	for i := range g.policy.Servers {
		g.policy.Servers[i].Items = append(g.policy.Servers[i].Items, snapshot.PromptItem("brief"), snapshot.PromptItem("plan"),
			snapshot.ResourceItem("file:///docs/*"))
	}
	g.publish()
	return g, old, young
}

// shows are the names under key in a list at path.
func (g *gateway) shows(path, user, method, key string) []string {
	g.t.Helper()
	a := g.modern(path, user, method, "", "")
	member := map[string]string{
		"tools/list": "tools", "prompts/list": "prompts", "resources/list": "resources", "resources/templates/list": "resourceTemplates",
	}[method]
	var r map[string]json.RawMessage
	var list []map[string]any
	if a.code() == -32601 || a.status == 404 {
		return nil
	}
	if err := json.Unmarshal(a.Result, &r); err != nil {
		g.t.Fatalf("%s: %s", method, a.body)
	}
	if err := json.Unmarshal(r[member], &list); err != nil || string(r["cacheScope"]) != `"private"` {
		g.t.Fatalf("%s: %s", method, a.body)
	}
	names := []string{}
	for _, e := range list {
		names = append(names, e[key].(string))
	}
	return names
}

func TestTheAggregateHasThePromptsAndResourcesOfAllServers(t *testing.T) {
	t.Parallel()
	g, old, young := libraries(t, pep.Config{}, []snapshot.Grant{
		{ID: "g1", Subject: "user:alice", Server: "lob"},
		{ID: "g2", Subject: "user:bob", Server: "lib", Tool: snapshot.ResourceItem("file:///docs/*")},
		{ID: "g3", Subject: "user:bob", Server: "lob", Tool: snapshot.PromptItem("plan")},
	})
	for _, tc := range []struct{ user, method, key, want string }{
		{"root", "prompts/list", "name", "[lib__brief lib__plan lob__brief lob__plan]"},
		{"root", "resources/list", "uri", "[file:///docs/a.md file:///lib.md file:///docs/b.md]"},
		{"root", "resources/templates/list", "uriTemplate", "[file:///docs/{name}]"},
		{"alice", "prompts/list", "name", "[lob__brief lob__plan]"},
		{"alice", "resources/list", "uri", "[file:///docs/a.md file:///docs/b.md]"},
		{"bob", "prompts/list", "name", "[lob__plan]"},
		{"bob", "resources/list", "uri", "[file:///docs/a.md]"},
	} {
		if got := fmt.Sprint(g.shows("/mcp", tc.user, tc.method, tc.key)); got != tc.want {
			t.Errorf("%s %s: %s, want %s", tc.user, tc.method, got, tc.want)
		}
	}
	get := func(user, name string) *answer {
		return g.modern("/mcp", user, "prompts/get", name, `"name":"`+name+`"`)
	}
	resource := func(user, uri string) *answer {
		return g.modern("/mcp", user, "resources/read", uri, `"uri":"`+uri+`"`)
	}
	if a := get("root", "lob__plan"); string(a.Result) != oddResult {
		t.Errorf("%s", a.body)
	}
	if sent, h := young.last(); !strings.Contains(sent, `"params":{"name":"plan",`) || h.Get("Mcp-Name") != "plan" {
		t.Errorf("%s %v", sent, h)
	}
	// A resource is the first server's that has it and that the caller may know of.
	for user, s := range map[string]*scripted{"root": old, "bob": old, "alice": young} {
		before := len(s.seen)
		if a := resource(user, "file:///docs/a.md"); a.Result == nil || len(s.seen) == before {
			t.Errorf("%s: %s", user, a.body)
		}
	}
	// One that is approved by itself goes before one that a template has.
	if _ = resource("root", "file:///docs/b.md"); !strings.Contains(fmt.Sprint(young.last()), "file:///docs/b.md") {
		t.Error("b.md was not read from the server that lists it")
	}
	if _ = resource("root", "file:///docs/new.md"); !strings.Contains(fmt.Sprint(old.last()), "file:///docs/new.md") {
		t.Error("new.md was not read from the first server with such a template")
	}
	sent := len(old.seen) + len(young.seen)
	hidden, unknown := get("bob", "lob__brief"), get("bob", "lob__nosuch")
	if hidden.code() != -32602 || unlike(hidden, unknown, "lob__brief", "lob__nosuch") {
		t.Errorf("%s\n%s", hidden.body, unknown.body)
	}
	hidden, unknown = resource("bob", "file:///lib.md"), resource("bob", "file:///nil.md")
	if hidden.code() != -32602 || unlike(hidden, unknown, "file:///lib.md", "file:///nil.md") {
		t.Errorf("%s\n%s", hidden.body, unknown.body)
	}
	for _, a := range []*answer{hidden, unknown} {
		if g.book.of(a.decision())[0].GetDecision().String() != "DECISION_DENY" {
			t.Error("a refusal was not recorded as one")
		}
	}
	complete := func(user, ref string) *answer {
		return g.modern("/mcp", user, "completion/complete", "", `"ref":{`+ref+`},"argument":{"name":"a","value":""}`)
	}
	if a := complete("bob", `"type":"ref/prompt","name":"lob__plan"`); a.code() == 0 {
		t.Errorf("a completion without the whole server: %s", a.body)
	}
	if len(old.seen)+len(young.seen) != sent {
		t.Error("something that is not granted was sent upstream")
	}
	a := complete("alice", `"type":"ref/prompt","name":"lob__plan"`)
	if body, _ := young.last(); string(a.Result) != oddResult || !strings.Contains(body, `"ref":{"type":"ref/prompt","name":"plan"}`) {
		t.Errorf("%s; %s", a.body, body)
	}
	if a := complete("root", `"type":"ref/resource","uri":"file:///docs/{name}"`); a.Result == nil {
		t.Errorf("%s", a.body)
	}
	if a := complete("root", `"type":"ref/resource"`); a.code() != -32602 {
		t.Errorf("%s", a.body)
	}
}

// TestWhatIsShownAcrossErasMayBeUsed holds lists against uses, on the aggregate and where the eras differ: nothing that is
// listed is denied by role, nothing that may be used is hidden.
func TestWhatIsShownAcrossErasMayBeUsed(t *testing.T) {
	t.Parallel()
	g, _, _ := libraries(t, pep.Config{}, nil)
	items := []string{
		"", "", "borrow", "find", snapshot.PromptItem("brief"), snapshot.PromptItem("plan"), snapshot.ResourceItem("file:///docs/*"), snapshot.ItemOther,
	}
	r := rand.New(rand.NewPCG(4, 2))
	for round := range 60 {
		g.policy.Grants = nil
		for i := range r.IntN(8) {
			grant := snapshot.Grant{
				ID: fmt.Sprintf("g%d", i), Deny: r.IntN(3) == 0, Server: []string{"lib", "lob", "*"}[r.IntN(3)], Tool: items[r.IntN(len(items))],
				Subject: "user:alice",
			}
			if grant.Server == "*" || grant.Tool == snapshot.ItemOther {
				grant.Tool = ""
			}
			if r.IntN(4) == 0 {
				grant.When = &snapshot.Cond{Op: snapshot.OpLt, Arg: "amount", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: 100}}
			}
			g.policy.Grants = append(g.policy.Grants, grant)
		}
		g.publish()
		for _, at := range []struct{ path, prefix string }{{"/mcp/lib", ""}, {"/mcp", "lib__"}, {"/mcp", "lob__"}} {
			checkShown(t, g, round, at.path, at.prefix)
		}
	}
}

func checkShown(t *testing.T, g *gateway, round int, path, prefix string) {
	t.Helper()
	judge := func(what string, shown bool, answers ...*answer) {
		for _, a := range answers {
			rec := g.book.of(a.decision())[0]
			allowed, conditional := rec.GetReason() == "allowed", rec.GetReason() == "condition" || rec.GetReason() == "argument_type"
			if allowed && !shown || shown && !allowed && !conditional {
				t.Errorf("round %d: %s %s%s is listed: %v, and used: %s\n%+v", round, path, prefix, what, shown, rec.GetReason(), g.policy.Grants)
			}
		}
	}
	tools := g.shows(path, "alice", "tools/list", "name")
	prompts := g.shows(path, "alice", "prompts/list", "name")
	resources := g.shows(path, "alice", "resources/list", "uri")
	for _, name := range []string{"borrow", "find"} {
		judge(name, slices.Contains(tools, prefix+name), g.call(path, "alice", prefix+name, `{"amount":5}`), g.call(path, "alice", prefix+name, `{}`))
	}
	for _, name := range []string{"brief", "plan"} {
		judge(name, slices.Contains(prompts, prefix+name), g.modern(path, "alice", "prompts/get", prefix+name, `"name":"`+prefix+name+`"`))
	}
	for _, uri := range []string{"file:///docs/a.md", "file:///lib.md"} {
		judge(uri, slices.Contains(resources, uri), g.modern(path, "alice", "resources/read", uri, `"uri":"`+uri+`"`))
	}
}
