package pep_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// framingRow is one hostile request as bytes, and everything that its answer promises.
type framingRow struct {
	row, request string
	want         []int // the statuses that are right; 0 is a close without an answer
	closed       bool  // the connection has to end
	allow        string
	recorded     bool // exactly one record of a refusal
}

// framingRows are the rows of part A of the list of hostile inputs that are about framing.
func framingRows() []framingRow {
	fields := "Host: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nAuthorization: Bearer {token}\r\n" +
		"MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: balance\r\n"
	head := "POST /mcp/pay HTTP/1.1\r\n" + fields
	body := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"balance",` + meta + `}}`
	length := fmt.Sprintf("Content-Length: %d\r\n", len(body))
	chunked := "Transfer-Encoding: chunked\r\n\r\n"
	hexLen := fmt.Sprintf("%x\r\n", len(body))
	bad := func(row, request string, want ...int) framingRow {
		return framingRow{row: row, request: request, want: want, closed: true, recorded: true}
	}
	rows := []framingRow{
		bad("A01", head+"Content-Length: 4194305\r\n\r\n", 413),
		bad("A02", head+chunked+strings.Repeat("10000\r\n"+strings.Repeat(" ", 0x10000)+"\r\n", 65), 413),
		bad("A03", head+length+chunked+"0\r\n\r\n", 400),
		bad("A03 other order", head+"Transfer-Encoding: chunked\r\n"+length+"\r\n"+body, 400),
		bad("A04", head+length+"Content-Length: 1\r\n\r\n"+body, 400),
		bad("A04 same twice", head+length+length+"\r\n"+body, 400),
		bad("A04 list", head+strings.Replace(length, "\r\n", ", 1\r\n\r\n", 1)+body, 400),
		bad("A04 plus", head+"Content-Length: +1\r\n\r\n"+body, 400),
		bad("A05 xchunked", head+"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400, 501),
		bad("A05 list", head+"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400, 501),
		bad("A05 twice", head+"Transfer-Encoding: chunked\r\n"+chunked+"0\r\n\r\n", 400, 501),
		bad("A05 space", head+"Transfer-Encoding:  chunked\r\n\r\n0\r\n\r\n", 400, 501),
		bad("A05 tab", head+"Transfer-Encoding: \tchunked\r\n\r\n0\r\n\r\n", 400, 501),
		bad("A05 fold", head+"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400, 501),
		bad("A05 old", strings.Replace(head, "HTTP/1.1", "HTTP/1.0", 1)+chunked+"0\r\n\r\n", 400, 501),
		bad("A06 0x", head+chunked+"0x10\r\n"+body, 400),
		bad("A06 plus", head+chunked+"+5\r\n"+body, 400),
		bad("A06 underscore", head+chunked+"1_0\r\n"+body, 400),
		bad("A06 17 digits", head+chunked+"00000000000000001\r\n"+body, 400),
		bad("A06 bare LF", head+chunked+strings.ReplaceAll(hexLen, "\r\n", "\n")+body+"\r\n0\r\n\r\n", 400),
		bad("A06 bare LF after data", head+chunked+hexLen+body+"\n0\r\n\r\n", 400),
		bad("A06 trailer", head+chunked+hexLen+body+"\r\n0\r\nbad trailer\r\n\r\n", 400),
		bad("A07 bare LF", strings.Replace(head, "\r\n", "\n", 1)+length+"\r\n"+body, 400),
		bad("A07 NUL", strings.Replace(head, "/mcp/pay", "/mcp/pay\x00", 1)+length+"\r\n"+body, 400),
		bad("A07 other host", strings.Replace(head, "/mcp/pay", "http://evil.example/mcp/pay", 1)+length+"\r\n"+body, 400),
		bad("A07 no version", strings.Replace(head, " HTTP/1.1", "", 1)+length+"\r\n"+body, 400),
		bad("A08 space", head+"X-A : b\r\n"+length+"\r\n"+body, 400),
		bad("A08 NUL", head+"X-\x00A: b\r\n"+length+"\r\n"+body, 400),
		bad("A08 no token", head+"X(A): b\r\n"+length+"\r\n"+body, 400),
		bad("A08 empty", head+": b\r\n"+length+"\r\n"+body, 400),
		bad("A09 CR", head+"X: a\rb\r\n"+length+"\r\n"+body, 400),
		bad("A09 LF", head+"X: a\nb: c\r\n"+length+"\r\n"+body, 400),
		bad("A09 NUL", head+"X: a\x00b\r\n"+length+"\r\n"+body, 400),
		bad("A10", head+"X: "+strings.Repeat("a", 33<<10)+"\r\n"+length+"\r\n"+body, 431),
		bad("A11", head+strings.Repeat("X: y\r\n", 101)+length+"\r\n"+body, 431),
		bad("A12 missing", strings.Replace(head, "Host: localhost\r\n", "", 1)+length+"\r\n"+body, 400),
		bad("A12 twice", head+"Host: localhost\r\n"+length+"\r\n"+body, 400),
		bad("A12 empty", strings.Replace(head, "localhost", "", 1)+length+"\r\n"+body, 400),
		{"A12 rebinding", strings.Replace(head, "localhost", "attacker.example", 1) + length + "\r\n" + body, []int{421}, false, "", true},
		bad("A16", head+"X-Slow: ", 408, 0),
		bad("A17", head+length+"\r\n"+body[:5], 408),
		{"A26", head + "Content-Encoding: gzip\r\n" + length + "\r\n" + body, []int{415}, false, "", true},
		bad("A27", head+"Expect: 100-continue\r\nContent-Length: 4194305\r\n\r\n", 413),
		bad("A27 other", head+"Expect: 200-ok\r\n"+length+"\r\n"+body, 417),
		bad("A29 NUL", strings.Replace(head, "/mcp/pay", "/mcp/\x00", 1)+length+"\r\n"+body, 404, 400),
		{"A31", head + "Connection: Authorization, Mcp-Method\r\n" + length + "\r\n" + body, []int{400}, false, "", true},
		{"A32 websocket", head + "Connection: Upgrade\r\nUpgrade: websocket\r\n" + length + "\r\n" + body, []int{200}, false, "", false},
		{"A32 h2c", head + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + length + "\r\n" + body, []int{200}, false, "", false},
		bad("A32 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, 505),
		bad("A33", head+fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)+1)+body+head+length+"\r\n"+body, 400, 408),
		{"served", head + length + "\r\n" + body, []int{200}, false, "", false},
		{"served in chunks", head + chunked + hexLen + body + "\r\n0\r\n\r\n", []int{200}, false, "", false},
		{"served absolute", strings.Replace(head, "/mcp/pay", "http://localhost/mcp/pay", 1) + length + "\r\n" + body, []int{200}, false, "", false},
	}
	for _, method := range []string{"PUT", "PATCH", "TRACE", "CONNECT"} {
		rows = append(rows, framingRow{"A28 " + method, strings.Replace(head, "POST", method, 1) + "\r\n", []int{405}, false, "POST, GET, DELETE", true})
	}
	for _, path := range []string{"/mcp/../admin", "/mcp%2f..%2fadmin", "//mcp", "/mcp;x", "/%6dcp", "/mcp/pay%00"} {
		rows = append(rows, framingRow{"A29 " + path, strings.Replace(head, "/mcp/pay", path, 1) + length + "\r\n" + body, []int{404, 400}, false, "", true})
	}
	return rows
}

func TestBothFrontsGiveEachFramingRowItsAnswer(t *testing.T) {
	t.Parallel()
	for _, front := range []edge.Front{edge.FrontFast, edge.FrontNetHTTP} {
		t.Run(string(front), func(t *testing.T) {
			t.Parallel()
			for _, row := range framingRows() {
				t.Run(row.row, func(t *testing.T) {
					t.Parallel()
					answerTo(t, front, row)
				})
			}
		})
	}
}

// answerTo sends a row's bytes on a connection of their own and checks everything that the answer promises.
func answerTo(t *testing.T, front edge.Front, row framingRow) {
	t.Helper()
	g, up := paymentsWith(t, pep.Config{BodyTimeout: 2 * time.Second})
	url := g.listen(edge.Config{Front: front, HeaderTimeout: 300 * time.Millisecond})
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	go func() { _, _ = io.WriteString(c, strings.Replace(row.request, "{token}", g.token("alice"), 1)) }()
	r := bufio.NewReader(c)
	status, header := 0, http.Header{}
	resp, err := http.ReadResponse(r, nil)
	if err == nil {
		status, header = resp.StatusCode, resp.Header
		_, _ = io.Copy(io.Discard, resp.Body)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || !slices.Contains(row.want, status) || header.Get("Allow") != row.allow {
		t.Errorf("%d %v %v, not %v", status, header, err, row.want)
	}
	if row.closed {
		// What else comes on the connection is a refusal too: nothing behind the first request is run.
		if resp, err := http.ReadResponse(r, nil); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			if resp.StatusCode < 400 {
				t.Error("a second request was run")
			}
		}
		if _, err := r.ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the connection lives on: %v", err)
		}
	}
	want := 0
	if slices.Contains(row.want, http.StatusOK) {
		want = 1
	}
	if got := up.calls(); got != want {
		t.Errorf("%d calls went upstream", got)
	}
	if refused := g.book.refusals(); row.recorded && len(refused) == 0 {
		t.Error("there is no record of the refusal")
	}
	if a := g.call("/mcp/pay", "alice", "balance", "{}"); string(a.Result) != oddResult {
		t.Errorf("the next caller was not served: %s", a.body)
	}
}

// refusals are the records of requests that were not let through.
func (b *book) refusals() []*auditv1.Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*auditv1.Record
	for _, r := range b.records {
		if r.GetDecision() == auditv1.Decision_DECISION_DENY {
			out = append(out, r)
		}
	}
	return out
}
