package pep_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// A call that outlasts the grace of a stopping node gets an answer that says so, streamed or not, and its outcome is on record.
func TestACallThatTheStopCutsOffIsToldSo(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string]string{"plain": "", "streamed": ": hello\n\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, up := payments(t)
			ctx, cut := context.WithCancelCause(t.Context())
			up.script(func(w http.ResponseWriter, r *http.Request, _ string) {
				if begin != "" {
					w.Header().Set("Content-Type", "text/event-stream")
					_, _ = io.WriteString(w, begin)
					_ = http.NewResponseController(w).Flush()
				}
				cut(pep.ErrStopping)
				<-r.Context().Done()
			})
			body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"refund","arguments":{"amount":5},"_meta":{%s}}}`,
				`"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"}`)
			req := g.request(ctx, http.MethodPost, "/mcp/pay", "alice", body, "Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "refund")
			w := httptest.NewRecorder()
			g.pep.ServeHTTP(w, req)
			answer := w.Body.String()
			if !strings.Contains(answer, `"reason":"node_stopping"`) || !strings.Contains(answer, `"retryable":false`) {
				t.Errorf("%d %q", w.Code, answer)
			}
			var rec []*auditv1.Record
			for name, id := range w.Header() {
				if strings.EqualFold(name, "MCPVault-Decision-Id") {
					rec = g.book.of(id[0])
				}
			}
			if len(rec) != 2 || rec[1].GetKind() != auditv1.RecordKind_RECORD_KIND_OUTCOME || rec[1].GetOutcome() != "unknown" || rec[1].GetDetail() != "node_stopping" {
				t.Errorf("records %v", rec)
			}
		})
	}
}
