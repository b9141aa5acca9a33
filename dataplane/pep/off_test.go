package pep

import (
	"net/http"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// TestWhatIsOffAllocatesNothing holds the steps of tracing and of limits to that, on the way of a call with neither.
func TestWhatIsOffAllocatesNothing(t *testing.T) {
	x := &exchange{p: &PEP{}, rec: &auditv1.Record{}, tenant: &pdp.Tenant{}, server: &pdp.Server{}}
	body := []byte(`{"jsonrpc":"2.0","id":1,"error":{"code":-32602}}`)
	allocs := testing.AllocsPerRun(100, func() {
		if x.trace() != nil || x.ration() != nil || x.allot() != nil {
			t.Fatal("something was refused")
		}
		x.traceDecision(x.began)
		x.traceAnswer(body)
		x.traceOutcome("", "ok", http.StatusOK)
		x.leave()
		x.endSpan()
	})
	if allocs != 0 || x.traced != nil || x.rations != nil {
		t.Errorf("%v allocations", allocs)
	}
}

// BenchmarkOff is what these steps cost a call then.
func BenchmarkOff(b *testing.B) {
	x := &exchange{p: &PEP{}, rec: &auditv1.Record{}, tenant: &pdp.Tenant{}, server: &pdp.Server{}}
	b.ReportAllocs()
	for b.Loop() {
		x.trace()
		x.ration()
		x.allot()
		x.traceDecision(x.began)
		x.traceAnswer(nil)
		x.traceOutcome("", "ok", http.StatusOK)
		x.leave()
		x.endSpan()
	}
}
