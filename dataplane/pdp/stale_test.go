package pdp_test

import (
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

const (
	read        = snapshotv1.Effect_EFFECT_READ
	write       = snapshotv1.Effect_EFFECT_WRITE
	destructive = snapshotv1.Effect_EFFECT_DESTRUCTIVE
)

// labelled has a server with three tools: reads are served for 10,000 ms and writes for 1,000, region=eu for 5,000,
// class=payment for 300.
func labelled(t *testing.T) *pdp.Tenant {
	t.Helper()
	return labelledWith(t, snapshotv1.AfterStaleness_AFTER_STALENESS_UNSPECIFIED)
}

func labelledWith(t *testing.T, after snapshotv1.AfterStaleness) *pdp.Tenant {
	t.Helper()
	raw, err := builder.Build(&snapshot.Policy{
		Tenant: "id-acme", Principals: []snapshot.Principal{{Name: "alice"}},
		Servers: []snapshot.Server{{Name: "bank", Items: []string{"balance", "pay", "close", snapshot.ItemOther}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	d := snapshot.DigestOf([]byte("bank"))
	tool := func(name string, effect snapshotv1.Effect, labels ...string) *snapshotv1.CatalogueTool {
		return &snapshotv1.CatalogueTool{Name: name, Raw: []byte("{}"), Effect: effect, Labels: labels}
	}
	got, err := pdp.NewTenant(&snapshotv1.Head{TenantId: "id-acme", Tenant: "acme", Epoch: 1, Generation: 1}, d, x, &snapshotv1.Catalogue{
		Settings: &snapshotv1.Settings{
			MaxStalenessReadMs: 10_000, MaxStalenessWriteMs: 1000, AfterStaleness: after,
			LabelStaleness: []*snapshotv1.LabelStaleness{
				{Label: "class=payment", MaxMs: 300}, {Label: "class=slow", MaxMs: 99_000}, {Label: "region=eu", MaxMs: 5000},
			},
		},
		Servers: []*snapshotv1.CatalogueServer{{
			Name: "bank", VersionDigest: d[:], Labels: []string{"region=eu"},
			Tools: []*snapshotv1.CatalogueTool{
				tool("balance", read, "region=eu"), tool("close", destructive, "class=slow", "region=eu"), tool("pay", write, "class=payment", "region=eu"),
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestTheNarrowestBoundOfClassAndLabelsCounts(t *testing.T) {
	t.Parallel()
	p := pdp.New("acme")
	p.Activate([]*pdp.Tenant{labelled(t)}, nil)
	const confirmed = 1_000_000
	p.RenewLease("id-acme", confirmed)
	s := p.Current()
	tenant := s.Tenant("id-acme")
	bank, _ := tenant.Server("bank")
	tool := func(name string) *pdp.Tool { got, _ := bank.Tool(name); return got }
	for name, c := range map[string]struct {
		bound pdp.Bound
		ms    int64
	}{
		"a read, by the server's label":              {tool("balance").Called, 5000},
		"a write, by its own":                        {tool("pay").Called, 300},
		"a wider label does not widen":               {tool("close").Called, 1000},
		"listing the tool of a narrow label":         {tool("pay").Listed, 300},
		"listing a destructive tool is a read of it": {tool("close").Listed, 5000},
		"reads of the server's other surfaces":       {bank.Bound(read), 5000},
		"and writes":                                 {bank.Bound(destructive), 1000},
		"a class without an effect is destructive":   {bank.Bound(snapshotv1.Effect_EFFECT_UNSPECIFIED), 1000},
		"the tenant's lists":                         {tenant.Bound(read), 10_000},
	} {
		if !s.Fresh(tenant, c.bound, confirmed+c.ms) || s.Fresh(tenant, c.bound, confirmed+c.ms+1) {
			t.Errorf("%s: not served for exactly %d ms: %+v", name, c.ms, c.bound)
		}
	}
	p.HoldWrites("id-acme", snapshot.Version{Epoch: 1, Generation: 2})
	s = p.Current()
	if s.Fresh(tenant, tool("pay").Called, confirmed) || !s.Fresh(tenant, tool("pay").Listed, confirmed) {
		t.Error("a held write is called, or not listed")
	}
	p.SuspectClock(true)
	if s.Fresh(tenant, tool("balance").Called, confirmed) {
		t.Error("a bound is measured by a clock that is not believed")
	}
}

func TestWhereReadsGoOnAfterTheirBoundNothingElseDoes(t *testing.T) {
	t.Parallel()
	p := pdp.New("acme")
	p.Activate([]*pdp.Tenant{labelledWith(t, snapshotv1.AfterStaleness_AFTER_STALENESS_READ_ONLY)}, nil)
	p.RenewLease("id-acme", 1)
	s := p.Current()
	tenant := s.Tenant("id-acme")
	const years = 10 * 365 * 24 * 3600e3
	if !s.Fresh(tenant, tenant.Bound(read), years) || s.Fresh(tenant, tenant.Bound(write), years) || s.Fresh(tenant, tenant.Bound(destructive), years) {
		t.Error("reads are to go on, and only reads")
	}
	bank, _ := tenant.Server("bank")
	if balance, _ := bank.Tool("balance"); s.Fresh(tenant, balance.Called, years) {
		t.Error("a label's own bound is over")
	}
	p.SuspectClock(true)
	if s.Fresh(tenant, tenant.Bound(read), years) {
		t.Error("a clock that is not believed closes reads too")
	}
}

func TestAskingForFreshnessAllocatesNothing(t *testing.T) {
	p := pdp.New("acme")
	p.Activate([]*pdp.Tenant{labelled(t)}, nil)
	s := p.Current()
	tenant := s.Tenant("id-acme")
	bank, _ := tenant.Server("bank")
	pay, _ := bank.Tool("pay")
	if n := testing.AllocsPerRun(100, func() { s.Fresh(tenant, pay.Called, 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
