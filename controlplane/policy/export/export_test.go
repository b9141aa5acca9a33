package export_test

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	cedar "github.com/cedar-policy/cedar-go"
	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/controlplane/policy/export"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// engine is a plain Cedar engine that knows nothing but what was exported.
type engine struct {
	policies *cedar.PolicySet
	entities cedar.EntityMap
	forbids  map[cedar.PolicyID]bool
}

func newEngine(text string, entities []byte) (*engine, error) {
	list, err := cedar.NewPolicyListFromBytes("export", []byte(text))
	if err != nil {
		return nil, err
	}
	e := &engine{policies: cedar.NewPolicySet(), forbids: map[cedar.PolicyID]bool{}}
	for _, p := range list {
		id := cedar.PolicyID(p.Annotations()["id"])
		e.policies.Add(id, p)
		e.forbids[id] = p.Effect() == cedar.Forbid
	}
	return e, json.Unmarshal(entities, &e.entities)
}

// decide is what plain Cedar says, and what is right: a forbid in error denies.
func (e *engine) decide(req cedar.Request) (plain, right bool) {
	d, diag := cedar.Authorize(e.policies, e.entities, req)
	plain, right = d == cedar.Allow, d == cedar.Allow
	for _, err := range diag.Errors {
		if e.forbids[err.PolicyID] {
			right = false
		}
	}
	return plain, right
}

func request(p *snapshot.Policy, principal, server, item string, r *authz.Request) cedar.Request {
	kind := cedar.EntityType("User")
	for _, u := range p.Principals {
		if u.Name == principal && u.Kind != snapshot.KindPerson {
			kind = map[snapshot.PrincipalKind]cedar.EntityType{snapshot.KindServiceAccount: "ServiceAccount", snapshot.KindWorkload: "Workload"}[u.Kind]
		}
	}
	clocks := cedar.RecordMap{}
	for _, z := range []string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia"} {
		loc, err := time.LoadLocation(z)
		if err != nil {
			panic(err)
		}
		t := time.UnixMilli(r.NowMS).In(loc)
		clocks[cedar.String(z)] = cedar.NewRecord(cedar.RecordMap{
			"minute": cedar.Long(t.Hour()*60 + t.Minute()), "hour": cedar.Long(t.Hour()), "weekday": cedar.Long((t.Weekday()+6)%7 + 1),
			"day": cedar.Long(t.Day()), "month": cedar.Long(t.Month()), "year": cedar.Long(t.Year()),
		})
	}
	ctx := cedar.RecordMap{"args": arguments(r.Args), "time": cedar.NewDatetimeFromMillis(r.NowMS), "clock": cedar.NewRecord(clocks)}
	if r.Region != "" {
		ctx["region"] = cedar.String(r.Region)
	}
	if r.Actor != "" {
		ctx["actor"] = cedar.String(r.Actor)
	}
	if ip := r.IP.Unmap(); ip.IsValid() {
		ctx["ip"] = cedar.IPAddr(netip.PrefixFrom(ip, ip.BitLen()))
	}
	return cedar.Request{
		Principal: cedar.NewEntityUID(kind, cedar.String(principal)), Action: cedar.NewEntityUID("Action", "call"),
		Resource: export.ItemUID(server, item), Context: cedar.NewRecord(ctx),
	}
}

func arguments(raw []byte) cedar.Value {
	if raw == nil {
		return cedar.NewRecord(nil)
	}
	var v cedar.Record
	if err := json.Unmarshal(raw, &v); err != nil {
		panic(err)
	}
	return v
}

// TestTheExportDecidesAsWeDo: a Cedar engine on the export, the index, and the export read back and compiled again all come
// to the same decisions.
func TestTheExportDecidesAsWeDo(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		known(p)
		text, entities, err := export.Cedar(p)
		if err != nil {
			t.Fatal(err)
		}
		e, err := newEngine(text, entities)
		if err != nil {
			t.Fatalf("the export does not parse: %v\n%s", err, text)
		}
		back := snapshottest.Twin{Policy: readBack(t, p, text)}
		x := open(t, p)
		for range 15 {
			c := snapshottest.Calls(p, false).Draw(t, "call")
			who, _ := x.Principal(c.Principal)
			server, _ := x.Server(c.Server)
			item, _ := x.Item(server, c.Item)
			v := x.View(who, server)
			want := authz.Decide(&v, item, &c.Request)
			if _, got := e.decide(request(p, c.Principal, c.Server, c.Item, &c.Request)); got != want.Allow {
				t.Fatalf("%+v args %s: Cedar allows %v, we decide %+v\n%s", c, c.Request.Args, got, want, text)
			}
			if got := back.Decide(c.Principal, c.Server, c.Item, &c.Request); got.Allow != want.Allow {
				t.Fatalf("%+v args %s: read back %+v, before %+v\n%s", c, c.Request.Args, got, want, text)
			}
		}
	})
}

// known makes an attribute that no resource has in the schema one that it could have.
func known(p *snapshot.Policy) {
	var walk func(*snapshot.Cond)
	walk = func(c *snapshot.Cond) {
		if c == nil {
			return
		}
		if c.From == snapshot.FromResource && c.Arg == "missing" {
			c.Arg = "labels.missing"
		}
		for _, k := range c.Kids {
			walk(k)
		}
	}
	for _, g := range p.Grants {
		walk(g.When)
	}
}

func readBack(t *rapid.T, p *snapshot.Policy, text string) *snapshot.Policy {
	out := *p
	out.Grants = nil
	out.Principals = slices.Clone(p.Principals)
	for i := range out.Principals {
		out.Principals[i].Disabled = false
	}
	if strings.TrimSpace(text) == "" {
		return &out
	}
	doc, err := policy.Parse("export", text)
	if err != nil {
		t.Fatalf("the export does not read back: %v\n%s", err, text)
	}
	grants, refusals := doc.Lower(&policy.World{Lenient: true})
	if len(refusals) > 0 {
		t.Fatalf("the export is refused: %v\n%s", refusals[0], text)
	}
	out.Grants = grants
	return &out
}

func open(t *rapid.T, p *snapshot.Policy) *index.Index {
	b, err := builder.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestPlainCedarFailsOpenAndWeDoNot: the caller chooses the arguments, and leaves one away.
func TestPlainCedarFailsOpenAndWeDoNot(t *testing.T) {
	t.Parallel()
	text := `permit (principal, action == Action::"call", resource == Tool::"payments/refund");
forbid (principal, action == Action::"call", resource == Tool::"payments/refund") when { context.args.amount >= 100 };`
	doc, err := policy.Parse("x", text)
	if err != nil {
		t.Fatal(err)
	}
	schema := policy.ParseSchema("payments/refund", []byte(`{"inputSchema":{"required":["amount"],"properties":{"amount":{"type":"integer"}}}}`))
	grants, refusals := doc.Lower(&policy.World{Servers: map[string]policy.Surface{"payments": {Tools: map[string]policy.Schema{"refund": schema}}}})
	if len(refusals) > 0 {
		t.Fatal(refusals)
	}
	p := &snapshot.Policy{
		Tenant: "0198c0de-0000-7000-8000-000000000001", Principals: []snapshot.Principal{{Name: "alice"}},
		Servers: []snapshot.Server{{Name: "payments", Items: []string{"refund"}}}, Grants: grants,
	}
	out, entities, err := export.Cedar(p)
	if err != nil {
		t.Fatal(err)
	}
	e, err := newEngine(out, entities)
	if err != nil {
		t.Fatal(err)
	}
	b, err := builder.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	v := x.View(0, 0)
	item, _ := x.Item(0, "refund")
	for _, tc := range []struct {
		args        string
		plain, ours bool
	}{
		{`{"amount":99}`, true, true},
		{`{"amount":100}`, false, false},
		{`{}`, true, false},
		{`{"amount":"500"}`, true, false},
	} {
		r := &authz.Request{NowMS: snapshottest.Now, Args: []byte(tc.args)}
		plain, right := e.decide(request(p, "alice", "payments", "refund", r))
		if ours := authz.Decide(&v, item, r).Allow; plain != tc.plain || ours != tc.ours || right != tc.ours {
			t.Errorf("%s: plain Cedar allows %v, Cedar with our rule %v, we %v", tc.args, plain, right, ours)
		}
	}
}

func TestTheExportIsTheSameWhateverTheOrder(t *testing.T) {
	t.Parallel()
	p := &snapshot.Policy{
		Tenant:     "0198c0de-0000-7000-8000-000000000001",
		Principals: []snapshot.Principal{{Name: "b", Nodes: []snapshot.Ref{"team:x", "role:y"}}, {Name: "a", Disabled: true, Kind: snapshot.KindWorkload}},
		Nodes:      []snapshot.Node{{Ref: "team:x", Parents: []snapshot.Ref{"role:y"}}, {Ref: "role:y"}},
		Servers: []snapshot.Server{{Name: "s", Items: []string{"t", snapshot.PromptItem("p")}, Facts: map[string]snapshot.Facts{
			"t": {"endpoints": {Value: snapshot.Value{Type: snapshot.TypeSet}, Set: []string{"crm"}}, "labels.env": {Value: snapshot.Value{Type: snapshot.TypeString, Str: "prod"}}},
		}}},
		Grants: []snapshot.Grant{
			{ID: "2", Subject: "team:x", Server: "s", Tool: snapshot.PromptItem("p")},
			{ID: "1", Deny: true, Subject: "user:b", Server: "*", When: &snapshot.Cond{Op: snapshot.OpForeign, Value: snapshot.Value{
				Type: snapshot.TypeString,
				Str:  `{"like":{"left":{".":{"left":{"Var":"principal"},"attr":"name"}},"pattern":["Wildcard"]}}`,
			}}},
		},
	}
	text, entities, err := export.Cedar(p)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(p.Grants)
	slices.Reverse(p.Principals)
	slices.Reverse(p.Nodes)
	again, entitiesAgain, err := export.Cedar(p)
	if err != nil || text != again || !bytes.Equal(entities, entitiesAgain) {
		t.Fatalf("%v\n%s\n%s", err, text, again)
	}
	for _, want := range []string{`principal.name like "*"`, `principal == Workload::"a"`, `resource == Prompt::"s/p"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}
