package pdp

import (
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

func TestALimitThatIsNotUnderstoodIsRefusedAndNotLeftOut(t *testing.T) {
	t.Parallel()
	if p, err := limitsOf(&snapshotv1.Settings{MaxStalenessReadMs: 1}); p != nil || err != nil {
		t.Fatalf("no limits: %v, %v", p, err)
	}
	p, err := limitsOf(&snapshotv1.Settings{MaxCalls: 7, RateLimits: []*snapshotv1.RateLimit{
		{Scope: "tool", Name: "pay", Item: "refund", Requests: 1, PerMs: 1000, Burst: 2},
	}})
	if err != nil || p.MaxCalls != 7 || p.Rate(limit.Tool, "pay", "refund").Burst != 2 || p.Rate(limit.Tool, "pay", "x") != nil {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, bad := range []*snapshotv1.RateLimit{
		{Scope: "galaxy", Requests: 1, PerMs: 1000, Burst: 1},
		{Scope: "tenant", Requests: 0, PerMs: 1000, Burst: 1},
		{Scope: "tenant", Requests: 1, PerMs: 1, Burst: 1},
		{Scope: "tenant", Requests: 1, PerMs: 1 << 62, Burst: 1},
		{Scope: "tenant", Requests: 1, PerMs: 1000, Burst: -1},
	} {
		if p, err := limitsOf(&snapshotv1.Settings{RateLimits: []*snapshotv1.RateLimit{bad}}); err == nil {
			t.Errorf("%v became %+v", bad, p)
		}
	}
}
