package compile

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// bigTenant is 10,000 users in a tree of units, teams, groups and roles, 40 servers of 50 tools, and 2,900 grants of which
// a third are conditional.
func bigTenant(tb testing.TB) Input {
	tb.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	in := Input{Tenant: controlplane.Tenant{ID: "0199aaaa-0000-7000-8000-000000000001", Name: "big"}}
	name := func(kind string, n int) string { return fmt.Sprintf("%s-%04d", kind, rng.IntN(n)) }
	for i := range 150 {
		n := Node{Name: fmt.Sprintf("unit-%04d", i)}
		if i > 0 {
			n.Unit = fmt.Sprintf("unit-%04d", (i-1)/3)
		}
		in.Units = append(in.Units, n)
	}
	for i := range 40 {
		r := Node{Name: fmt.Sprintf("role-%04d", i)}
		if i > 4 {
			r.Roles = []string{name("role", 5)}
		}
		in.Roles = append(in.Roles, r)
	}
	for i := range 400 {
		in.Teams = append(in.Teams, Node{Name: fmt.Sprintf("team-%04d", i), Unit: name("unit", 150), Roles: []string{name("role", 40)}})
	}
	for i := range 100 {
		in.Groups = append(in.Groups, Node{Name: fmt.Sprintf("group-%04d", i), Roles: []string{name("role", 40)}})
	}
	for i := range 10_000 {
		in.Users = append(in.Users, User{
			Name: fmt.Sprintf("user-%05d", i), Kind: controlplane.Person, Clearance: uint8(rng.IntN(4)), Region: "eu", Unit: name("unit", 150),
			Teams: []string{name("team", 400), name("team", 400)}, Groups: []string{name("group", 100)}, Roles: []string{name("role", 40)},
		})
	}
	for s := range 40 {
		in.Servers = append(in.Servers, bigServer(tb, s))
	}
	for i := range 2_900 {
		in.Grants = append(in.Grants, bigGrant(rng, i, name))
	}
	in.Endpoints = []controlplane.Endpoint{{Name: "crm", Class: 2, Owner: "sales", Regions: []string{"eu"}, Access: []string{"read", "write"}}}
	return in
}

func bigServer(tb testing.TB, n int) Server {
	tb.Helper()
	srv := Server{ID: fmt.Sprintf("s%d", n), Name: fmt.Sprintf("server-%04d", n), Version: 1, Digest: make([]byte, 32), Effects: map[string]string{}}
	srv.Labels = []controlplane.Label{{Key: "env", Value: "prod"}}
	surface := &snapshotv1.CatalogueServer{Url: "http://x.example/mcp"}
	for i := range 50 {
		tool := fmt.Sprintf("tool-%04d", i)
		srv.Effects[tool] = [...]string{"read", "write", "destructive"}[i%3]
		surface.Tools = append(surface.Tools, &snapshotv1.CatalogueTool{Name: tool, Raw: fmt.Appendf(nil, `{"name":%q,"description":"Does one thing and does it well, with a few words about how and when to use it.",`+
			`"inputSchema":{"type":"object","properties":{"amount":{"type":"number","minimum":0},"note":{"type":"string"},"kind":{"type":"string","enum":["a","b"]}},`+
			`"required":["amount","kind"]},"annotations":{"readOnlyHint":%t,"destructiveHint":%t}}`, tool, i%3 == 0, i%3 == 2)})
		if i%5 == 0 {
			srv.Links = append(srv.Links, controlplane.Link{Endpoint: "crm", Item: tool, Access: []string{"read"}})
		}
	}
	var err error
	if srv.Surface, err = proto.Marshal(surface); err != nil {
		tb.Fatal(err)
	}
	return srv
}

func bigGrant(rng *rand.Rand, i int, name func(string, int) string) Grant {
	g := Grant{ID: fmt.Sprintf("0199aaaa-0000-7000-8000-%012d", i), Deny: rng.IntN(10) == 0, Target: controlplane.Target{Server: name("server", 40)}}
	switch rng.IntN(5) {
	case 0:
		g.Subject = "user:" + fmt.Sprintf("user-%05d", rng.IntN(10_000))
	case 1:
		g.Subject = "role:" + name("role", 40)
	case 2:
		g.Subject = "group:" + name("group", 100)
	case 3:
		g.Subject = "unit:" + name("unit", 150)
	default:
		g.Subject = "team:" + name("team", 400)
	}
	if rng.IntN(5) < 3 {
		g.Item = name("tool", 50)
	}
	switch rng.IntN(12) {
	case 0:
		g.Condition = fmt.Sprintf("context.args.amount < %d", 25*(1+rng.IntN(40)))
	case 1:
		g.Limits = controlplane.Limits{Networks: "10.0.0.0/8,192.168.0.0/16"}
	case 2:
		g.Limits = controlplane.Limits{From: 540, To: 1020, Weekdays: 31, Zone: "Europe/Berlin"}
	case 3:
		g.ExpiresAt = time.Date(2026, 12, 1+rng.IntN(20), 0, 0, 0, 0, time.UTC)
	}
	return g
}

func BenchmarkCompile10k(b *testing.B) {
	in := bigTenant(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(in); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLower10k is Compile without the shards.
func BenchmarkLower10k(b *testing.B) {
	in := bigTenant(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := lower(in); err != nil {
			b.Fatal(err)
		}
	}
}

func TestABigTenantCompilesWithoutANote(t *testing.T) {
	t.Parallel()
	out, err := Compile(bigTenant(t))
	if err != nil || len(out.Report.Notes) != 0 {
		t.Fatalf("%v, %v", out.Report.Notes, err)
	}
	x, err := index.Open(out.Index)
	if err != nil || x.Principals() != 10_000 {
		t.Fatalf("%d principals, %v", x.Principals(), err)
	}
}
