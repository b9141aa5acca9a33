package pep_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pep"
)

func TestASourceOfUpdatesThatIsAwayIsAskedAgain(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"2025-11-25", "2026-07-28"} {
		for _, client := range []string{"legacy", "modern"} {
			t.Run(client+" client, "+version+" server", func(t *testing.T) {
				t.Parallel()
				up := newScripted(t)
				var away atomic.Bool
				away.Store(true)
				tell := make(chan struct{})
				up.script(func(w http.ResponseWriter, r *http.Request, body string) {
					first := ""
					switch {
					case away.Load():
						w.WriteHeader(http.StatusServiceUnavailable)
						return
					case r.Method == http.MethodGet:
					case strings.Contains(body, "subscriptions/listen"):
						id := body[strings.Index(body, `"id":`)+5:]
						id = id[:strings.IndexByte(id, ',')]
						first = `data: {"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":` + id + `},"notifications":{"resourceSubscriptions":["file:///a.md"]}}}` + "\n\n"
					default:
						up.answer(w, body)
						return
					}
					w.Header().Set("Content-Type", "text/event-stream")
					_, _ = fmt.Fprint(w, first)
					_ = http.NewResponseController(w).Flush()
					for {
						select {
						case <-tell:
							_, _ = fmt.Fprint(w, `data: {"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"file:///a.md","n":1}}`+"\n\n")
							_ = http.NewResponseController(w).Flush()
						case <-r.Context().Done():
							return
						}
					}
				})
				s := curiousEntry("lib", up.url, []string{version})
				g := newGateway(t, pep.Config{}, nil, s)
				var e *events
				if client == "legacy" {
					h := []string{"Mcp-Session-Id", g.legacy("/mcp", "root"), "MCP-Protocol-Version", "2025-11-25"}
					if a := g.post("/mcp", "root", `{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"file:///a.md"}}`, h...); string(a.Result) != "{}" {
						t.Fatal(a.body)
					}
					e = g.open(t, http.MethodGet, "root", "", append(h, "Accept", "text/event-stream")...)
					e.primed()
				} else {
					e = g.open(t, http.MethodPost, "root", `{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"resourceSubscriptions":["file:///a.md"]},`+meta+`}}`,
						"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "subscriptions/listen")
					if m := e.next(); !strings.Contains(m, `"resourceSubscriptions":["file:///a.md"]`) {
						t.Fatalf("it was not promised: %s", m)
					}
				}
				away.Store(false)
				// Nobody heard what happened meanwhile, so it is told as changed; from then on what the server says.
				if m := e.next(); !strings.Contains(m, `"method":"notifications/resources/updated"`) || !strings.Contains(m, `"uri":"file:///a.md"`) || strings.Contains(m, `"n":1`) {
					t.Fatal(m)
				}
				tell <- struct{}{}
				if m := e.next(); !strings.Contains(m, `"n":1`) {
					t.Fatal(m)
				}
			})
		}
	}
}
