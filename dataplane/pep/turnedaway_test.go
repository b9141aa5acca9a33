package pep_test

import (
	"net"
	"testing"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

func TestOfThoseWhoAreTurnedAwayOneASecondIsRecordedAndTheRestIsCounted(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	here := &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3), Port: 5}
	const each = 500
	for range each {
		g.pep.TurnedAway(here, "too_many_connections") // A34
		g.pep.TurnedAway(here, "rapid_reset")          // A19
		g.pep.TurnedAway(nil, "quic_retry")            // A23: whatever address the packets claim
	}
	counted := func() map[string]uint64 {
		n := map[string]uint64{}
		for _, r := range g.book.all() {
			if r.GetDecision() != auditv1.Decision_DECISION_DENY || r.GetOutcome() != "refused" || r.GetMethod() != "connection" {
				t.Fatalf("recorded as %v", r)
			}
			n[r.GetClient().GetAddress()+" "+r.GetReason()] += 1 + r.GetRepeated()
		}
		return n
	}
	if n := len(g.book.all()); n > 6 { // a second may end meanwhile
		t.Errorf("%d records", n)
	}
	until(t, "the rest to be counted", func() bool {
		n := counted()
		return n["10.1.2.3 too_many_connections"] == each && n["10.1.2.3 rapid_reset"] == each && n["unknown quic_retry"] == each
	})
}
