package pdp_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// tenant builds a tenant with one server `demo` that offers echo.
func tenant(t *testing.T, name string, generation uint64, hosts ...string) *pdp.Tenant {
	t.Helper()
	raw, err := builder.Build(&snapshot.Policy{
		Tenant:     snapshot.TenantID("id-" + name),
		Principals: []snapshot.Principal{{Name: "alice"}},
		Servers:    []snapshot.Server{{Name: "demo", Items: []string{"echo"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	got, err := pdp.NewTenant(&snapshotv1.Head{TenantId: "id-" + name, Tenant: name, Epoch: 1, Generation: generation},
		snapshot.DigestOf(fmt.Append(nil, name, generation)), x, catalogue(hosts...))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func catalogue(hosts ...string) *snapshotv1.Catalogue {
	digest := snapshot.DigestOf([]byte("surface"))
	return &snapshotv1.Catalogue{
		Hosts: hosts, Settings: &snapshotv1.Settings{MaxStalenessReadMs: 1000, MaxStalenessWriteMs: 10},
		Servers: []*snapshotv1.CatalogueServer{{
			Name: "demo", VersionDigest: digest[:], ProtocolVersions: []string{"2026-07-28"},
			Tools: []*snapshotv1.CatalogueTool{{Name: "echo", Raw: []byte(`{"name":"echo"}`)}},
		}},
	}
}

func TestAHostLeadsToItsTenantAndEveryOtherToTheDefault(t *testing.T) {
	t.Parallel()
	p := pdp.New("acme")
	if p.Current().TenantByHost("127.0.0.1:80") != nil {
		t.Fatal("there is no tenant before there is a policy")
	}
	p.Activate([]*pdp.Tenant{tenant(t, "acme", 1, "acme.localhost"), tenant(t, "globex", 1, "Globex.Example")}, nil)
	for host, want := range map[string]string{
		"127.0.0.1:18410": "acme", "acme.localhost": "acme", "globex.example": "globex", "GLOBEX.example:443": "globex",
		"globex.example.": "globex", "globex.example.evil.test": "acme", "": "acme", "[::1]:80": "acme",
	} {
		if got := p.Current().TenantByHost(host); got == nil || got.Name != want {
			t.Errorf("%q leads to %v, want %s", host, got, want)
		}
	}
	if pdp.New("").Current().TenantByHost("x") != nil {
		t.Error("without a default tenant an unknown host leads nowhere")
	}
}

func TestWhatIsHeldNeverChanges(t *testing.T) {
	t.Parallel()
	p := pdp.New("acme")
	p.Activate([]*pdp.Tenant{tenant(t, "acme", 1), tenant(t, "globex", 1)}, nil)
	held := p.Current()
	p.Activate([]*pdp.Tenant{tenant(t, "acme", 2)}, func(id snapshot.TenantID) bool { return id != "id-globex" })
	select {
	case <-held.Replaced():
	default:
		t.Fatal("a stream that holds the old state must hear that it was replaced")
	}
	if held.Tenant("id-acme").Version.Generation != 1 || held.Tenant("id-globex") == nil {
		t.Fatal("a request's state changed under it")
	}
	now := p.Current()
	if now.Tenant("id-acme").Version.Generation != 2 || now.Tenant("id-globex") != nil {
		t.Fatal("the new state must have the new generation and not the tenant that left")
	}
	select {
	case <-now.Replaced():
		t.Fatal("the current state is not replaced")
	default:
	}
}

func TestAKillHitsItsTenantOnlyUnlessItNamesNone(t *testing.T) {
	t.Parallel()
	p := pdp.New("acme")
	p.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: "a", Subject: "alice"},
		&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_NODE, Subject: "n1"})
	p.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_TOOL, TenantId: "a", Subject: "demo/echo"})
	s := p.Current()
	for _, c := range []struct {
		kind            snapshotv1.KillKind
		tenant, subject string
		want            bool
	}{
		{snapshotv1.KillKind_KILL_KIND_USER, "a", "alice", true},
		{snapshotv1.KillKind_KILL_KIND_USER, "b", "alice", false},
		{snapshotv1.KillKind_KILL_KIND_TOKEN, "a", "alice", false},
		{snapshotv1.KillKind_KILL_KIND_NODE, "b", "n1", true},
		{snapshotv1.KillKind_KILL_KIND_TOOL, "a", "demo/echo", true},
	} {
		if got := s.Killed(c.kind, snapshot.TenantID(c.tenant), c.subject); got != c.want {
			t.Errorf("%v: %v", c, got)
		}
	}
	if s.Kills() != 3 {
		t.Errorf("%d kills, the set only grows", s.Kills())
	}
}

func TestALeaseOutlivesAGenerationAndNotASuspectClock(t *testing.T) {
	t.Parallel()
	p := pdp.New("acme")
	p.Activate([]*pdp.Tenant{tenant(t, "acme", 1)}, nil)
	p.RenewLease("id-acme", 5000)
	p.RenewLease("id-acme", 4000)
	p.Activate([]*pdp.Tenant{tenant(t, "acme", 2)}, nil)
	s := p.Current()
	if !s.Fresh(s.Tenant("id-acme"), s.Tenant("id-acme").Bound(snapshotv1.Effect_EFFECT_READ), 6000) || s.Fresh(s.Tenant("id-acme"), s.Tenant("id-acme").Bound(snapshotv1.Effect_EFFECT_READ), 6001) {
		t.Fatal("the newest confirmation counts, for exactly the bound")
	}
	p.SuspectClock(true)
	if s.Fresh(s.Tenant("id-acme"), s.Tenant("id-acme").Bound(snapshotv1.Effect_EFFECT_READ), 5000) {
		t.Fatal("nothing is fresh by a clock that is not believed")
	}
}

func TestWritesWaitForTheGenerationThatTheCellIsAt(t *testing.T) {
	t.Parallel()
	p := pdp.New("acme")
	p.Activate([]*pdp.Tenant{tenant(t, "acme", 1)}, nil)
	p.RenewLease("id-acme", 1000)
	fresh := func(effect snapshotv1.Effect) bool {
		s := p.Current()
		return s.Fresh(s.Tenant("id-acme"), s.Tenant("id-acme").Bound(effect), 1001)
	}
	p.HoldWrites("id-acme", snapshot.Version{Epoch: 1, Generation: 3})
	if !fresh(snapshotv1.Effect_EFFECT_READ) || fresh(snapshotv1.Effect_EFFECT_WRITE) || fresh(snapshotv1.Effect_EFFECT_UNSPECIFIED) {
		t.Fatal("reads go on, everything else waits")
	}
	p.Activate([]*pdp.Tenant{tenant(t, "acme", 2)}, nil)
	if fresh(snapshotv1.Effect_EFFECT_WRITE) {
		t.Fatal("generation 2 is not 3")
	}
	p.Activate([]*pdp.Tenant{tenant(t, "acme", 3)}, nil)
	if !fresh(snapshotv1.Effect_EFFECT_WRITE) {
		t.Fatal("the node has caught up")
	}
}

func TestAnIndexAndACatalogueThatDoNotFitAreRefused(t *testing.T) {
	t.Parallel()
	raw, err := builder.Build(&snapshot.Policy{Tenant: "x", Servers: []snapshot.Server{{Name: "demo"}}})
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pdp.NewTenant(&snapshotv1.Head{TenantId: "x"}, snapshot.Digest{}, x, catalogue()); err == nil {
		t.Fatal("the catalogue lists a tool that the index cannot decide")
	}
}

func TestReadersNeverWaitForWriters(t *testing.T) {
	t.Parallel()
	p := pdp.New("acme")
	first := tenant(t, "acme", 1)
	p.Activate([]*pdp.Tenant{first}, nil)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			last := snapshot.Generation(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if v := p.Current().Tenant("id-acme").Version.Generation; v < last {
					t.Errorf("generation went from %d to %d", last, v)
					return
				} else {
					last = v
				}
			}
		})
	}
	for g := range uint64(50) {
		p.Activate([]*pdp.Tenant{tenant(t, "acme", g+1)}, nil)
		p.RenewLease("id-acme", int64(g))
	}
	close(stop)
	wg.Wait()
}

func TestAKillThatIsKnownReplacesNothing(t *testing.T) {
	t.Parallel()
	p := pdp.New("")
	kill := &snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: "t", Subject: "alice"}
	p.Kill(kill)
	before := p.Current()
	p.Kill(kill)
	if p.Current() != before {
		t.Error("every stream is judged again for a kill that was in force already")
	}
}
