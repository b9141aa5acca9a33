package pdp

import (
	"fmt"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// limitsOf is the plan of a tenant's settings, nil when they limit nothing. A limit that is not understood is an error: a
// node that left it out would be open without a word.
func limitsOf(s *snapshotv1.Settings) (*limit.Plan, error) {
	if len(s.GetRateLimits()) == 0 && s.GetMaxCalls() == 0 {
		return nil, nil
	}
	p := &limit.Plan{MaxCalls: int(s.GetMaxCalls())}
	for _, r := range s.GetRateLimits() {
		scope, ok := limit.ParseScope(r.GetScope())
		if !ok {
			return nil, fmt.Errorf("nothing is known of a limit for %q: this node is too old for it", r.GetScope())
		}
		if r.GetPerMs() > limit.MaxPer.Milliseconds() {
			return nil, fmt.Errorf("the limit for %s is over %d ms: at most %s", r.GetScope(), r.GetPerMs(), limit.MaxPer)
		}
		rate := limit.Rate{Requests: r.GetRequests(), Per: time.Duration(r.GetPerMs()) * time.Millisecond, Burst: r.GetBurst()}
		if err := p.Set(scope, r.GetName(), r.GetItem(), rate); err != nil {
			return nil, err
		}
	}
	return p, nil
}
