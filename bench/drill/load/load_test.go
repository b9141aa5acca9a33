package load_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/judge"
	"github.com/mcpvault/mcpvault/bench/drill/load"
)

// node is a gateway's node in a few lines: ann may read and write.
type node struct {
	*httptest.Server
	// seen counts requests.
	seen atomic.Int64
	// answer replaces the answer to a tool; nil for the right ones.
	answer func(w http.ResponseWriter, tool string) bool
}

func serve(t *testing.T, answer func(w http.ResponseWriter, tool string) bool) *node {
	t.Helper()
	n := &node{answer: answer}
	n.Server = httptest.NewServer(n)
	t.Cleanup(n.Close)
	return n
}

func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := n.seen.Add(1)
	var m struct {
		Method string
		Params struct{ Name string }
	}
	body, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(body, &m)
	h := w.Header()
	h.Set("MCPVault-Cell", "local/n1")
	h.Set("MCPVault-Snapshot", "1.7")
	h.Set("MCPVault-Decision-Id", fmt.Sprint("d", id))
	if n.answer != nil && n.answer(w, m.Params.Name) {
		return
	}
	switch {
	case m.Method == "tools/list":
		fmt.Fprint(w, `{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"read"},{"name":"write"}]}}`)
	case m.Params.Name == "read":
		h.Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\"}\n\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"content\":[]}}\n\n")
	case m.Params.Name == "write":
		fmt.Fprint(w, `{"jsonrpc":"2.0","id":1,"result":{"content":[]}}`)
	default:
		fmt.Fprint(w, `{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"unknown tool"}}`)
	}
}

// refusing is an address that nobody listens on.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return "http://" + l.Addr().String()
}

// policy makes no change that matters.
type policy struct {
	mu   sync.Mutex
	made int
}

func (p *policy) Change(_ context.Context, _ judge.Right, _ bool, c *judge.Change) error {
	c.Void()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.made++
	return nil
}

var tools = load.Tools{Read: "read", Write: "write", Never: "never", Flips: []string{"flip"}}

// run loads nodes for a moment.
func run(t *testing.T, cfg load.Config) (*load.Load, *judge.Judge) {
	t.Helper()
	j := judge.New(tools.All(), judge.Right{Person: "ann", Tool: "read"}, judge.Right{Person: "ann", Tool: "write"})
	cfg.People, cfg.Tools, cfg.Judge, cfg.Policy = []load.Person{{Name: "ann", Token: "t"}}, tools, j, &policy{}
	if cfg.Rates == (load.Rates{}) {
		cfg.Rates = load.Rates{Decisions: 200, Calls: 80, Changes: 20}
	}
	l := load.New(cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	l.Run(ctx)
	return l, j
}

func TestRightAnswersAreCountedAndJudgedRight(t *testing.T) {
	t.Parallel()
	n := serve(t, nil)
	l, j := run(t, load.Config{Nodes: []string{n.URL}})
	c := l.Counts()
	if wrong, all := j.Wrong(); wrong > 0 || c.Requests == 0 || c.OK != c.Requests || c.Changes == 0 || len(l.Samples()) != c.Requests {
		t.Errorf("%+v, wrong %v, errors %v", c, all, l.Errors())
	}
	if got := j.Audit(nil); got.Answers != c.Requests {
		t.Errorf("%d answers are to be on record, of %d", got.Answers, c.Requests)
	}
}

func TestWrongAnswersReachTheJudge(t *testing.T) {
	t.Parallel()
	n := serve(t, func(w http.ResponseWriter, tool string) bool {
		if tool != "never" {
			return false
		}
		fmt.Fprint(w, `{"jsonrpc":"2.0","id":1,"result":{"content":[]}}`)
		return true
	})
	_, j := run(t, load.Config{Nodes: []string{n.URL}})
	_, wrong := j.Wrong()
	if len(wrong) == 0 || slices.ContainsFunc(wrong, func(w judge.Wrong) bool { return w.Kind != judge.WrongAllow }) {
		t.Errorf("found %v", wrong)
	}
}

func TestTheNextNodeIsAskedWhenNobodyListens(t *testing.T) {
	t.Parallel()
	n := serve(t, nil)
	l, j := run(t, load.Config{Nodes: []string{refusing(t), n.URL}})
	c := l.Counts()
	if wrong, all := j.Wrong(); wrong > 0 || c.OK != c.Requests || c.Next == 0 || c.Next == c.Requests {
		t.Errorf("%+v, wrong %v, errors %v", c, all, l.Errors())
	}
}

func TestTheNextCellIsAskedOnlyWhenNoNodeOfTheFirstListens(t *testing.T) {
	t.Parallel()
	here, there := serve(t, nil), serve(t, nil)
	l, _ := run(t, load.Config{Nodes: []string{here.URL}, Elsewhere: []string{there.URL}})
	if c := l.Counts(); c.OK != c.Requests || there.seen.Load() > 0 {
		t.Errorf("%+v; %d requests went elsewhere", c, there.seen.Load())
	}
	l, _ = run(t, load.Config{Nodes: []string{refusing(t), refusing(t)}, Elsewhere: []string{there.URL}})
	if c := l.Counts(); c.OK != c.Requests || there.seen.Load() == 0 {
		t.Errorf("%+v, errors %v", c, l.Errors())
	}
}

func TestNobodyListeningIsAFailure(t *testing.T) {
	t.Parallel()
	l, j := run(t, load.Config{Nodes: []string{refusing(t)}})
	if c := l.Counts(); c.Requests == 0 || c.Failed != c.Requests || c.Unknown > 0 {
		t.Errorf("%+v, errors %v", c, l.Errors())
	}
	if n, wrong := j.Wrong(); n > 0 {
		t.Errorf("found %v", wrong)
	}
}

func TestWhatWasSentAndNotAnsweredIsUnknownAndNeverSentAgain(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(net.Conn){
		"closed": func(c net.Conn) { _ = c.Close() },
		"reset": func(c net.Conn) {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		},
		"in the middle of the answer": func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
			_ = c.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			breaks := serve(t, func(w http.ResponseWriter, tool string) bool {
				if tool != "write" {
					return false
				}
				c, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return true
				}
				end(c)
				return true
			})
			other := serve(t, nil)
			l, j := run(t, load.Config{Nodes: []string{breaks.URL}, Elsewhere: []string{other.URL}, Rates: load.Rates{Calls: 100}})
			c := l.Counts()
			if c.Unknown == 0 || c.OK+c.Unknown != c.Requests || int(breaks.seen.Load()) != c.Requests || other.seen.Load() > 0 {
				t.Errorf("%+v; %d requests were sent, %d elsewhere; %v", c, breaks.seen.Load(), other.seen.Load(), l.Errors())
			}
			// Half of those that broke may have been executed, nobody knows: that is not wrong. One that was executed twice is.
			j.Executions(map[string]int{})
			if _, wrong := j.Wrong(); slices.ContainsFunc(wrong, func(w judge.Wrong) bool { return w.Kind != judge.Invented }) {
				t.Errorf("found %v", wrong)
			}
		})
	}
}

func TestANodeThatHangsIsUnknown(t *testing.T) {
	t.Parallel()
	n := serve(t, func(http.ResponseWriter, string) bool {
		time.Sleep(200 * time.Millisecond)
		return false
	})
	l, _ := run(t, load.Config{Nodes: []string{n.URL}, Rates: load.Rates{Calls: 20}, Patience: 50 * time.Millisecond})
	if c := l.Counts(); c.Requests == 0 || c.Unknown != c.Requests {
		t.Errorf("%+v, errors %v", c, l.Errors())
	}
}

func TestARefusalIsFailedUnlessItIsByDesign(t *testing.T) {
	t.Parallel()
	unaudited := func(w http.ResponseWriter, tool string) bool {
		if tool != "write" {
			return false
		}
		fmt.Fprint(w, `{"jsonrpc":"2.0","id":1,"result":{"isError":true,"content":[],"structuredContent":{"reason":"audit_unavailable"}}}`)
		return true
	}
	l, _ := run(t, load.Config{Nodes: []string{serve(t, unaudited).URL}})
	if c := l.Counts(); c.Failed == 0 || c.Closed > 0 || l.Errors()["200 audit_unavailable"] != c.Failed {
		t.Errorf("%+v, errors %v", c, l.Errors())
	}
	l, j := run(t, load.Config{Nodes: []string{serve(t, unaudited).URL}, Tolerated: []string{"audit_unavailable"}})
	if c := l.Counts(); c.Failed > 0 || c.Closed == 0 {
		t.Errorf("%+v, errors %v", c, l.Errors())
	}
	if n, wrong := j.Wrong(); n > 0 {
		t.Errorf("found %v", wrong)
	}
	// It must be on record all the same, and must not have been executed.
	if got := j.Audit(nil); got.Lost != l.Counts().Requests {
		t.Errorf("%d answers are to be on record, of %d", got.Lost, l.Counts().Requests)
	}
}

func TestAnOutcomeThatIsWithheldIsUnknownToTheJudge(t *testing.T) {
	t.Parallel()
	for _, withheld := range []bool{true, false} {
		n := serve(t, func(w http.ResponseWriter, tool string) bool {
			if tool != "write" {
				return false
			}
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"m","data":{"reason":"audit_unavailable","retryable":%t}}}`, !withheld)
			return true
		})
		_, j := run(t, load.Config{Nodes: []string{n.URL}, Rates: load.Rates{Calls: 20}})
		// The first call is of the tool with effects.
		j.Executions(map[string]int{"c1": 1})
		_, wrong := j.Wrong()
		if found := slices.ContainsFunc(wrong, func(w judge.Wrong) bool { return w.Kind == judge.Stray }); found == withheld {
			t.Errorf("withheld %t: found %v", withheld, wrong)
		}
	}
}

func TestTheRateIsKept(t *testing.T) {
	t.Parallel()
	n := serve(t, nil)
	begin := time.Now()
	l, _ := run(t, load.Config{Nodes: []string{n.URL}, Rates: load.Rates{Decisions: 400}})
	// 300 ms of 400 a second; what a busy machine makes late is caught up with.
	if c, most := l.Counts(), int(400*time.Since(begin).Seconds())+1; c.Requests < 100 || c.Requests > most {
		t.Errorf("%d requests, want 120 and no more than %d", c.Requests, most)
	}
}
