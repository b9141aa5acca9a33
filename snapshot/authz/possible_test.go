package authz_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// TestWhatAConditionComesToWasAProspect: a report made before a call names every outcome that the call can meet.
func TestWhatAConditionComesToWasAProspect(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		x := openOrFatal(t, p)
		for range 30 {
			c := snapshottest.Calls(p, true).Draw(t, "call")
			v, item := resolve(t, x, c)
			earlier := c.Request.NowMS - rapid.SampledFrom([]int64{0, 0, 1, 3, 1 << 40}).Draw(t, "earlier")
			for _, s := range authz.Trace(&v, item, &c.Request) {
				got := authz.Prospects(&v, s.Program, earlier)
				if s.Outcome == authz.OutcomeTrue && !got.True || s.Outcome == authz.OutcomeFalse && !got.False || s.Outcome == authz.OutcomeError && !got.Open {
					t.Fatalf("%+v: condition %d came to %d, and its prospects were %+v", c, s.Program, s.Outcome, got)
				}
			}
		}
	})
}
