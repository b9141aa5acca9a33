package authz_test

import (
	"math/rand/v2"
	"testing"

	"github.com/mcpvault/mcpvault/bench/authz"
	decision "github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

func TestTheBenchmarkDecidesBothWays(t *testing.T) {
	t.Parallel()
	f, err := authz.Run(authz.Config{
		Users: authz.TenantUsers, Rounds: 1, Calls: 2000, Shards: 1, Million: 3, Note: t.Logf,
		Size: authz.Size{Users: 1000, Units: 40, Teams: 40, Groups: 10, Roles: 20, Grants: 600},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", *f)
	switch {
	case f.ViewMean <= 0 || f.ColdMean <= 0 || f.List50 <= 0 || f.Compile10k <= 0 || f.Open1M <= 0:
		t.Error("a figure is missing")
	case f.AllowedShare < 0.3 || f.AllowedShare > 0.9:
		t.Errorf("%.0f %% of the calls are allowed: the world is not what it should be", 100*f.AllowedShare)
	case f.ConditionalShare < 0.05:
		t.Errorf("conditions settle only %.0f %% of the calls", 100*f.ConditionalShare)
	case f.Listed < 50:
		t.Errorf("the list shows %.1f items", f.Listed)
	case f.DeltaBytes < 65 || f.DeltaBytes > 200 || f.DeltaApply <= 0:
		t.Errorf("a role change is %d bytes, applied in %v us", f.DeltaBytes, f.DeltaApply)
	case f.ViewAllocs > 0.01 || f.ColdAllocs > 0.01 || f.ListAllocs > 0.01:
		t.Errorf("a decision allocates: %v live, %v cold, %v in a list", f.ViewAllocs, f.ColdAllocs, f.ListAllocs)
	}
}

func TestNoDecisionAndNoListOfTheWorldAllocates(t *testing.T) {
	raw := output(t).Index
	if bytes := len(raw) / authz.TenantUsers; bytes > 200 {
		t.Errorf("%d bytes a user", bytes)
	}
	x, err := index.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	xs := []*index.Index{x}
	questions := authz.Questions(xs, 2000, rand.New(rand.NewPCG(5, 5)))
	if n := testing.AllocsPerRun(3, func() {
		for i := range questions {
			q := &questions[i]
			q.Decide(xs)
			v := x.View(q.Principal, q.Server)
			for item := range decision.VisibleItems(&v, q.Request) {
				decision.Visible(&v, item, q.Request)
			}
		}
	}); n != 0 {
		t.Fatalf("%v allocations in %d calls and lists", n, len(questions))
	}
}
