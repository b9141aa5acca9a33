package e2e_test

import (
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/cell"
)

// The nodes hear the control plane late, and somebody calls on each of them all the time: what a node has acknowledged as taken
// away, it does not allow again.
func TestNothingIsAllowedOnceANodeHasAcknowledgedItsRevocation(t *testing.T) {
	t.Parallel()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	const delay, revocations = 40 * time.Millisecond, 8
	b, err := cell.Start(t.Context(), bin, "--link-delay", delay.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.Stop(); err != nil {
			t.Error(err)
		}
	}()
	r, err := b.Revocation(t.Context(), revocations, delay)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", *r)
	if r.LateAllows != 0 {
		t.Errorf("%d of %d calls were allowed by a node that had acknowledged the revocation", r.LateAllows, r.Calls)
	}
	if r.Calls < revocations*r.Nodes || r.P50 < r.DelayMS {
		t.Errorf("%d calls, half of the revocations within %.1f ms: the link delays nothing, or nobody called", r.Calls, r.P50)
	}
	if r.Deltas < revocations {
		t.Errorf("%d of %d generations were deltas", r.Deltas, 2*revocations)
	}
}
