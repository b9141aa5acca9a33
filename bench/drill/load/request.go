package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/judge"
)

// request is one message of the stateless revision.
type request struct {
	person       Person
	method, tool string
	// id is what executions are counted by, of a call.
	id string
	// call says that it is among those that are to reach the server.
	call, effects bool
}

// maxAnswer bounds an answer.
const maxAnswer = 1 << 20

const meta = `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"drill","version":"1"}}`

func (r request) body() string {
	if r.method == "tools/list" {
		return `{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{` + meta + `}}`
	}
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":{"call":%q},%s}}`, r.tool, r.id, meta)
}

// List asks one node for a person's list, apart from the load, and has the answer judged. It reports whether one came.
func (l *Load) List(node string, p Person) bool {
	r, begin := request{person: p, method: "tools/list"}, time.Now()
	got, err := l.send(r, node)
	if err != nil || got.msg.Result == nil {
		return false
	}
	got.from, got.until = begin, time.Now()
	l.cfg.Judge.Listed(r.answer(got), got.shown())
	return true
}

// answer is what the judge is told of a reply.
func (r request) answer(got reply) judge.Answer {
	return judge.Answer{
		Person: r.person.Name, Node: got.header.Get("MCPVault-Cell"), From: got.from, Until: got.until,
		Version: version(got.header.Get("MCPVault-Snapshot")), Decision: got.header.Get("MCPVault-Decision-Id"), Effects: r.effects,
	}
}

// shown are the tools of a list.
func (g *reply) shown() (names []string) {
	for _, t := range g.msg.Result.Tools {
		names = append(names, t.Name)
	}
	return names
}

// ask sends one request, to the next node while nobody accepts the connection, and judges the answer.
func (l *Load) ask(r request) {
	begin := time.Now()
	for i, node := range l.order() {
		if i == 1 {
			l.mu.Lock()
			l.counts.Next++
			l.mu.Unlock()
		}
		got, err := l.send(r, node)
		if errors.Is(err, syscall.ECONNREFUSED) && !got.sent {
			continue
		}
		got.from, got.until = begin, time.Now()
		l.settle(r, got, err)
		return
	}
	if r.id != "" {
		l.cfg.Judge.Closed(judge.Answer{}, r.id)
	}
	l.note(Sample{At: begin, Took: time.Since(begin), Class: Failed, Call: r.call}, "no node accepts connections")
}

// order is the order in which nodes are tried for one request: each in turn is the first.
func (l *Load) order() (nodes []string) {
	turn := l.turn.Add(1)
	for _, cell := range [][]string{l.cfg.Nodes, l.cfg.Elsewhere} {
		if len(cell) > 0 {
			first := turn % uint64(len(cell))
			nodes = append(append(nodes, cell[first:]...), cell[:first]...)
		}
	}
	return nodes
}

// reply is what came back.
type reply struct {
	from, until time.Time
	// sent says that a connection was had, and something may have been written to it.
	sent   bool
	status int
	header http.Header
	msg    message
}

type message struct {
	Result *struct {
		IsError bool `json:"isError"`
		Tools   []struct {
			Name string `json:"name"`
		} `json:"tools"`
		Structured struct {
			Reason string `json:"reason"`
		} `json:"structuredContent"`
	} `json:"result"`
	Error *struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Data    struct {
			Reason    string `json:"reason"`
			Retryable bool   `json:"retryable"`
		} `json:"data"`
	} `json:"error"`
}

func (l *Load) send(r request, node string) (got reply, err error) {
	return l.sendBody(context.Background(), r, node, r.body()) // The client has a time limit.
}

func (l *Load) sendBody(ctx context.Context, r request, node, body string) (got reply, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, node, strings.NewReader(body))
	if err != nil {
		return got, err
	}
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { got.sent = true }}
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), trace))
	req.Host = r.person.Host
	h := req.Header
	h.Set("Content-Type", "application/json")
	h.Set("Accept", "application/json, text/event-stream")
	h.Set("MCP-Protocol-Version", "2026-07-28")
	h.Set("Mcp-Method", r.method)
	if r.tool != "" {
		h.Set("Mcp-Name", r.tool)
	}
	h.Set("Authorization", "Bearer "+r.person.Token)
	resp, err := l.client.Do(req)
	if err != nil {
		return got, err
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return got, err
	}
	got.status, got.header = resp.StatusCode, resp.Header
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		raw = lastEvent(raw)
	}
	if err := json.Unmarshal(raw, &got.msg); err != nil && resp.StatusCode == http.StatusOK {
		return got, fmt.Errorf("an answer that is no JSON: %w", err)
	}
	return got, nil
}

// lastEvent is the data of the last event of a stream: the answer follows what is told on the way.
func lastEvent(raw []byte) []byte {
	var last []byte
	for line := range bytes.Lines(raw) {
		if data, ok := bytes.CutPrefix(line, []byte("data:")); ok && len(bytes.TrimSpace(data)) > 0 {
			last = data
		}
	}
	return last
}

// settle judges an answer, or the lack of one, and counts it.
func (l *Load) settle(r request, got reply, err error) { l.note(l.verdict(r, got, err)) }

// verdict judges an answer, or the lack of one, and says why it was not right.
func (l *Load) verdict(r request, got reply, err error) (s Sample, why string) {
	s = Sample{At: got.from, Took: got.until.Sub(got.from), Call: r.call}
	if err != nil {
		s.Class = Unknown
		if r.id != "" {
			l.cfg.Judge.Called(judge.Answer{}, r.id, r.tool, judge.Unknown)
		}
		return s, "no answer: " + inWords(err)
	}
	a := r.answer(got)
	switch reason := got.reason(); {
	case got.msg.Result != nil && !got.msg.Result.IsError && r.method == "tools/list":
		l.cfg.Judge.Listed(a, got.shown())
	case got.msg.Result != nil && !got.msg.Result.IsError:
		l.cfg.Judge.Called(a, r.id, r.tool, judge.Allowed)
	case got.msg.Error != nil && got.msg.Error.Code == -32602 && r.id != "":
		l.cfg.Judge.Called(a, r.id, r.tool, judge.Refused)
	case slices.Contains(l.cfg.Tolerated, reason):
		l.closed(r, a, got, reason)
		s.Class = Closed
	default:
		l.closed(r, a, got, reason)
		s.Class = Failed
		return s, fmt.Sprintf("%d %s", got.status, reason)
	}
	return s, ""
}

// mayHaveRun are the reasons of answers to calls that may have reached the server.
var mayHaveRun = []string{"upstream_timeout", "timeout", "upstream_broken", "outcome_unknown", "node_stopping", "upstream_unavailable", "canceled"}

// closed notes an answer that is a refusal for another reason than policy.
func (l *Load) closed(r request, a judge.Answer, got reply, reason string) {
	// Where the outcome cannot be recorded the answer is withheld, and the caller told not to try again.
	withheld := reason == "audit_unavailable" && got.msg.Error != nil && !got.msg.Error.Data.Retryable
	if r.id != "" && (withheld || slices.Contains(mayHaveRun, reason)) {
		l.cfg.Judge.Called(a, r.id, r.tool, judge.Unknown)
		l.cfg.Judge.Closed(a, "")
		return
	}
	l.cfg.Judge.Closed(a, r.id)
}

// reason is the stable word of a refusal, or what there is instead.
func (g *reply) reason() string {
	switch {
	case g.msg.Result != nil && g.msg.Result.Structured.Reason != "":
		return g.msg.Result.Structured.Reason
	case g.msg.Error != nil && g.msg.Error.Data.Reason != "":
		return g.msg.Error.Data.Reason
	case g.msg.Error != nil:
		return fmt.Sprintf("%d %s", g.msg.Error.Code, g.msg.Error.Message)
	}
	return "without a reason"
}

// version reads EPOCH.GENERATION; the zero value for anything else.
func version(s string) judge.Version {
	e, g, _ := strings.Cut(s, ".")
	epoch, err1 := strconv.ParseUint(e, 10, 64)
	generation, err2 := strconv.ParseUint(g, 10, 64)
	if err1 != nil || err2 != nil {
		return judge.Version{}
	}
	return judge.Version{Epoch: epoch, Generation: generation}
}

// inWords is an error without addresses, so that the same thing counts as the same.
func inWords(err error) string {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the connection broke"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused after a connection was had"
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "out of time"
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		err = e
	}
	return err.Error()
}
