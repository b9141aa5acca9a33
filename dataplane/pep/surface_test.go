package pep_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// entry is a catalogue entry that says its name under key.
func entry(key, name string) *snapshotv1.CatalogueEntry {
	return &snapshotv1.CatalogueEntry{Name: name, Raw: fmt.Appendf(nil, `{"x-odd":1.50, "%s":"%s","name":"%s"}`, key, name, name)}
}

// library is a gateway to a server with two tools, three prompts, three resources and two templates. The policy speaks of
// the prompts by name and of resources by the patterns.
func library(t *testing.T, cfg pep.Config, grants []snapshot.Grant, patterns ...string) (*gateway, *scripted) {
	t.Helper()
	up := newScripted(t)
	s := catalogueServer("lib", up.url, allEras(), plainTool("borrow", destructive), plainTool("find", read))
	for _, name := range []string{"brief", "plan", "review"} {
		s.Prompts = append(s.Prompts, entry("title", name))
	}
	for _, uri := range []string{"file:///docs/a.md", "file:///docs/secret/key.md", "https://wiki.example/home"} {
		s.Resources = append(s.Resources, entry("uri", uri))
	}
	for _, uri := range []string{"file:///docs/{name}", "https://wiki.example/{page}"} {
		s.ResourceTemplates = append(s.ResourceTemplates, entry("uriTemplate", uri))
	}
	g := newGateway(t, cfg, grants, s)
	items := &g.policy.Servers[0].Items
	for _, p := range s.GetPrompts() {
		*items = append(*items, snapshot.PromptItem(p.GetName()))
	}
	for _, p := range patterns {
		*items = append(*items, snapshot.ResourceItem(p))
	}
	g.publish()
	return g, up
}

// listed are the names, or addresses, in a list of a user.
func (g *gateway) listed(t *testing.T, user, method, key string) []string {
	t.Helper()
	a := g.modern("/mcp/lib", user, method, "", "")
	if a.code() == -32601 || a.status == http.StatusNotFound {
		return nil
	}
	var r map[string]json.RawMessage
	if err := json.Unmarshal(a.Result, &r); err != nil {
		t.Fatalf("%s: %s", method, a.body)
	}
	member := map[string]string{
		"tools/list": "tools", "prompts/list": "prompts", "resources/list": "resources", "resources/templates/list": "resourceTemplates",
	}[method]
	var list []map[string]any
	if err := json.Unmarshal(r[member], &list); err != nil {
		return nil // forwarded: the scripted upstream's answer is no list
	}
	names := []string{}
	for _, e := range list {
		names = append(names, e[key].(string))
	}
	return names
}

func (g *gateway) prompt(user, name string) *answer {
	return g.modern("/mcp/lib", user, "prompts/get", name, `"name":"`+name+`"`)
}

func (g *gateway) resource(user, uri string) *answer {
	return g.modern("/mcp/lib", user, "resources/read", uri, `"uri":"`+uri+`"`)
}

func TestPromptsAndResourcesAreGrantedOneByOne(t *testing.T) {
	t.Parallel()
	g, up := library(t, pep.Config{}, []snapshot.Grant{
		{ID: "g1", Subject: "user:alice", Server: "lib", Tool: snapshot.PromptItem("plan")},
		{ID: "g2", Subject: "user:alice", Server: "lib", Tool: snapshot.ResourceItem("file:///docs/*")},
		{ID: "g3", Subject: "user:alice", Server: "lib", Tool: snapshot.ResourceItem("file:///docs/secret/*"), Deny: true},
		{ID: "g4", Subject: "user:bob", Server: "lib", Tool: "find"},
	}, "file:///docs/*", "file:///docs/secret/*")
	for _, tc := range []struct {
		user, method, key string
		want              []string
	}{
		{"alice", "prompts/list", "name", []string{"plan"}},
		{"alice", "resources/list", "uri", []string{"file:///docs/a.md"}},
		{"alice", "resources/templates/list", "uriTemplate", []string{"file:///docs/{name}"}},
		{"bob", "prompts/list", "name", nil},
		{"bob", "resources/list", "uri", nil},
	} {
		if got := g.listed(t, tc.user, tc.method, tc.key); !slices.Equal(got, tc.want) {
			t.Errorf("%s %s: %q, want %q", tc.user, tc.method, got, tc.want)
		}
	}
	if a := g.prompt("alice", "plan"); string(a.Result) != oddResult {
		t.Errorf("plan: %s", a.body)
	}
	if a := g.resource("alice", "file:///docs/a.md"); string(a.Result) != oddResult {
		t.Errorf("a.md: %s", a.body)
	}
	forwarded := len(up.seen)
	hidden, unknown := g.prompt("alice", "brief"), g.prompt("alice", "nosuch")
	if hidden.code() != -32602 || unlike(hidden, unknown, "brief", "nosuch") {
		t.Errorf("%s\n%s", hidden.body, unknown.body)
	}
	for _, uri := range []string{"file:///docs/secret/key.md", "https://wiki.example/home", "file:///docs/../etc/passwd", "file:///docs/x/../secret/key.md"} {
		if a := g.resource("alice", uri); a.code() != -32602 || g.book.of(a.decision())[0].GetItem() != snapshot.ResourceItem(uri) {
			t.Errorf("%s: %s", uri, a.body)
		}
	}
	if a := g.prompt("bob", "plan"); a.code() != -32601 {
		t.Errorf("bob: %s", a.body)
	}
	if len(up.seen) != forwarded {
		t.Error("something that is not granted was sent upstream")
	}
}

// unlike reports whether two answers differ in more than the name that was asked for and the decision's id.
func unlike(a, b *answer, nameA, nameB string) bool {
	plain := func(x *answer, name string) string {
		return strings.ReplaceAll(strings.ReplaceAll(x.body, x.decision(), "ID"), name, "NAME")
	}
	return a.status != b.status || plain(a, nameA) != plain(b, nameB)
}

func TestTheWholeServersOwnerIsForwardedAndOneDenialIsNot(t *testing.T) {
	t.Parallel()
	g, _ := library(t, pep.Config{}, []snapshot.Grant{
		{ID: "g1", Subject: "user:alice", Server: "lib"},
		{ID: "g2", Subject: "user:alice", Server: "lib", Tool: snapshot.PromptItem("brief"), Deny: true},
	}, "file:///docs/*")
	if a := g.modern("/mcp/lib", "root", "prompts/list", "", ""); string(a.Result) != oddResult {
		t.Errorf("root: %s", a.body)
	}
	if got := g.listed(t, "alice", "prompts/list", "name"); !slices.Equal(got, []string{"plan", "review"}) {
		t.Errorf("alice: %q", got)
	}
	if a := g.modern("/mcp/lib", "alice", "resources/list", "", ""); string(a.Result) != oddResult {
		t.Errorf("alice: %s", a.body)
	}
	complete := func(prompt string) *answer {
		return g.modern("/mcp/lib", "alice", "completion/complete", "", `"ref":{"type":"ref/prompt","name":"`+prompt+`"},"argument":{"name":"a","value":""}`)
	}
	if a := complete("plan"); string(a.Result) != oddResult {
		t.Errorf("plan: %s", a.body)
	}
	if a := complete("brief"); a.code() != -32602 {
		t.Errorf("brief: %s", a.body)
	}
}

func TestCapabilitiesAreThoseOfWhatIsVisible(t *testing.T) {
	t.Parallel()
	g, _ := library(t, pep.Config{}, []snapshot.Grant{
		{ID: "g1", Subject: "user:alice", Server: "lib", Tool: snapshot.PromptItem("plan")},
		{ID: "g2", Subject: "user:bob", Server: "lib", Tool: snapshot.ResourceItem("file:///docs/*")},
	}, "file:///docs/*")
	for user, want := range map[string]string{
		"alice": `{"tools":{"listChanged":true},"prompts":{"listChanged":true}}`, "bob": `{"tools":{"listChanged":true},"resources":{"listChanged":true}}`,
	} {
		var r struct{ Capabilities json.RawMessage }
		a := g.modern("/mcp/lib", user, "server/discover", "", "")
		if err := json.Unmarshal(a.Result, &r); err != nil || string(r.Capabilities) != want {
			t.Errorf("%s: %s", user, a.body)
		}
	}
	// The upstream of a legacy session offers tools and prompts.
	a := g.post("/mcp/lib", "alice", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`)
	if !strings.Contains(a.body, `"capabilities":{"tools":{"listChanged":true},"prompts":{"listChanged":true}}`) {
		t.Errorf("alice: %s", a.body)
	}
	h := []string{"Mcp-Session-Id", a.header.Get("Mcp-Session-Id")}
	a = g.post("/mcp/lib", "alice", `{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:///docs/a.md"}}`, h...)
	if a.code() != -32601 {
		t.Errorf("alice has no resources: %s", a.body)
	}
	h[1] = g.legacy("/mcp/lib", "bob")
	for uri, code := range map[string]int{"file:///docs/a.md": 0, "file:///etc/passwd": -32002} {
		for _, method := range []string{"resources/read", "resources/subscribe", "resources/unsubscribe"} {
			a = g.post("/mcp/lib", "bob", `{"jsonrpc":"2.0","id":1,"method":"`+method+`","params":{"uri":"`+uri+`"}}`, h...)
			if a.code() != code {
				t.Errorf("%s %s: %s", method, uri, a.body)
			}
		}
	}
	if a = g.post("/mcp/lib", "bob", `{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":7}}`, h...); a.code() == 0 {
		t.Errorf("an address that is none: %s", a.body)
	}
}

func TestListsOfASurfaceComeInPages(t *testing.T) {
	t.Parallel()
	g, _ := library(t, pep.Config{PageSize: 2}, []snapshot.Grant{
		{ID: "g1", Subject: "user:alice", Server: "lib", Tool: snapshot.PromptItem("brief")},
		{ID: "g2", Subject: "user:alice", Server: "lib", Tool: snapshot.PromptItem("plan")},
		{ID: "g3", Subject: "user:alice", Server: "lib", Tool: snapshot.PromptItem("review")},
	})
	var r struct {
		Prompts    []json.RawMessage
		NextCursor string
		CacheScope string
	}
	a := g.modern("/mcp/lib", "alice", "prompts/list", "", "")
	if err := json.Unmarshal(a.Result, &r); err != nil || len(r.Prompts) != 2 || r.NextCursor == "" || r.CacheScope != "private" {
		t.Fatalf("%s", a.body)
	}
	if string(r.Prompts[0]) != string(entry("title", "brief").GetRaw()) {
		t.Errorf("%s", r.Prompts[0])
	}
	cursor := `"cursor":"` + r.NextCursor + `"`
	a = g.modern("/mcp/lib", "alice", "prompts/list", "", cursor)
	r.NextCursor = ""
	if err := json.Unmarshal(a.Result, &r); err != nil || len(r.Prompts) != 1 || r.NextCursor != "" {
		t.Errorf("%s", a.body)
	}
	if a = g.modern("/mcp/lib", "alice", "tools/list", "", cursor); a.code() != -32602 {
		t.Errorf("a cursor of another list: %s", a.body)
	}
}

// TestListAndCallAgree: what a list leaves out cannot be used, and what it shows is refused for a condition only.
func TestListAndCallAgree(t *testing.T) {
	t.Parallel()
	patterns := []string{"file:///docs/*", "file:///docs/secret/*", "https://*", "*"}
	g, _ := library(t, pep.Config{}, nil, patterns...)
	items := append(slices.Clone(g.policy.Servers[0].Items), "")
	r := rand.New(rand.NewPCG(1, 2)) // the same policies every time
	for round := range 60 {
		g.policy.Grants = randomGrants(r, items)
		g.publish()
		for _, user := range []string{"alice", "bob"} {
			checkAgreement(t, g, round, user)
		}
	}
}

func randomGrants(r *rand.Rand, items []string) []snapshot.Grant {
	var grants []snapshot.Grant
	for i := range r.IntN(10) {
		grant := snapshot.Grant{
			ID: fmt.Sprintf("g%d", i), Deny: r.IntN(3) == 0, Server: []string{"lib", "lib", "*"}[r.IntN(3)], Tool: items[r.IntN(len(items))],
			Subject: []snapshot.Ref{"user:alice", "user:bob", snapshot.Everyone}[r.IntN(3)],
		}
		if grant.Server == "*" || grant.Tool == snapshot.ItemOther {
			grant.Tool = ""
		}
		switch r.IntN(4) {
		case 0:
			grant.When = &snapshot.Cond{Op: snapshot.OpLt, Arg: "amount", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: 100}}
		case 1:
			grant.When = &snapshot.Cond{Op: snapshot.OpBefore, Value: snapshot.Value{Type: snapshot.TypeNumber, Int: []int64{1, 1 << 60}[r.IntN(2)]}}
		}
		grants = append(grants, grant)
	}
	return grants
}

func checkAgreement(t *testing.T, g *gateway, round int, user string) {
	t.Helper()
	judge := func(what string, shown bool, answers ...*answer) {
		for _, a := range answers {
			rec := g.book.of(a.decision())[0]
			if rec.GetItem() != "" {
				checkReplay(t, g, rec)
			}
			allowed, conditional := rec.GetReason() == "allowed", rec.GetReason() == "condition" || rec.GetReason() == "argument_type"
			if allowed && !shown || shown && !allowed && !conditional {
				t.Errorf("round %d: %s: %s is listed: %v, and used: %s\n%+v", round, user, what, shown, rec.GetReason(), g.policy.Grants)
			}
		}
	}
	tools := g.listed(t, user, "tools/list", "name")
	for _, name := range []string{"borrow", "find"} {
		judge(name, slices.Contains(tools, name), g.call("/mcp/lib", user, name, `{"amount":5}`), g.call("/mcp/lib", user, name, `{"amount":500}`),
			g.call("/mcp/lib", user, name, `{}`))
	}
	for _, s := range []struct {
		list, key string
		use       func(user, name string) *answer
		names     []string
	}{
		{"prompts/list", "name", g.prompt, []string{"brief", "plan", "review"}},
		{"resources/list", "uri", g.resource, []string{"file:///docs/a.md", "file:///docs/secret/key.md", "https://wiki.example/home"}},
	} {
		a := g.modern("/mcp/lib", user, s.list, "", "")
		forwarded := string(a.Result) == oddResult
		shown := g.listed(t, user, s.list, s.key)
		for _, name := range s.names {
			judge(name, forwarded || slices.Contains(shown, name), s.use(user, name))
		}
	}
}
