package nearest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mcpvault/mcpvault/kit/nearest"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// world is a network of nodes without a network: who is far answers late, who is gone does not answer.
type world struct {
	mu    sync.Mutex
	nodes map[string]*node // by host
	dir   *cellv1.CellDirectory
}

type node struct {
	cell, name string
	far        time.Duration
	// refused: nothing listens. hole: connections are taken and nothing is answered. deaf: not even that.
	refused, hole, deaf, away bool
	calls                     []string
	hosts                     []string
}

func newWorld(nodes map[string]*node) *world {
	w := &world{nodes: nodes, dir: &cellv1.CellDirectory{AsOfMs: 1}}
	for _, cell := range []string{"eu", "us"} {
		e := &cellv1.CellEntry{Name: cell, Region: cell}
		for _, host := range []string{cell + "1.test", cell + "2.test"} {
			if nodes[host] != nil {
				e.Nodes = append(e.Nodes, &cellv1.NodeEntry{Name: nodes[host].name, Urls: []string{"https://mcp.test/mcp", "https://" + host + "/mcp"}, Healthy: true})
			}
		}
		w.dir.Cells = append(w.dir.Cells, e)
	}
	return w
}

func twoCells() *world {
	return newWorld(map[string]*node{
		"eu1.test": {cell: "eu", name: "n1", far: 10 * time.Millisecond},
		"eu2.test": {cell: "eu", name: "n2", far: 11 * time.Millisecond},
		"us1.test": {cell: "us", name: "n1", far: 90 * time.Millisecond},
	})
}

func (w *world) set(host string, f func(*node)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.nodes[host])
}

func (w *world) calls(host string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.nodes[host].calls)
}

// RoundTrip is a connection, a request and an answer.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, trace := r.Context(), httptrace.ContextClientTrace(r.Context())
	if trace == nil {
		trace = &httptrace.ClientTrace{}
	}
	w.mu.Lock()
	var n node
	if p := w.nodes[r.URL.Host]; p != nil {
		n = *p
	} else {
		n.refused = true
	}
	w.mu.Unlock()
	if n.refused {
		return nil, errors.New("connection refused")
	}
	if n.deaf {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if trace.GotConn != nil {
		trace.GotConn(httptrace.GotConnInfo{})
	}
	body := []byte{}
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	if trace.WroteHeaders != nil {
		trace.WroteHeaders()
	}
	if r.Method == http.MethodPost {
		w.set(r.URL.Host, func(p *node) { p.calls = append(p.calls, string(body)); p.hosts = append(p.hosts, r.Host) })
	}
	w.mu.Lock()
	n = *w.nodes[r.URL.Host]
	w.mu.Unlock()
	wait := n.far
	if n.hole {
		wait = time.Hour
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(wait):
	}
	if trace.GotFirstResponseByte != nil {
		trace.GotFirstResponseByte()
	}
	h := http.Header{}
	answer := n.cell + "/" + n.name
	if r.URL.Path == nearest.Path {
		raw, err := json.Marshal(nearest.Of(w.dir, nearest.FromNode, &nearest.Here{Cell: n.cell, Node: n.name, Serving: !n.away}))
		if err != nil {
			return nil, err
		}
		answer = string(raw)
	}
	if strings.Contains(string(body), `"initialize"`) {
		h.Set("Mcp-Session-Id", "s-"+n.cell)
	}
	return &http.Response{StatusCode: http.StatusOK, Header: h, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
}

func open(t *testing.T, w *world, change ...func(*nearest.Config)) *nearest.Transport {
	t.Helper()
	cfg := nearest.Config{Seeds: []string{"https://us1.test/mcp"}, Base: w}
	for _, c := range change {
		c(&cfg)
	}
	tr, err := nearest.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Close() })
	return tr
}

func send(ctx context.Context, rt http.RoundTripper, method string, header ...string) (string, http.Header, error) {
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":%q,"params":{}}`, method)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://mcp.test/mcp/pay", strings.NewReader(body))
	if err != nil {
		return "", nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return string(raw), resp.Header, err
}

func want(t *testing.T, rt http.RoundTripper, method, node string, header ...string) http.Header {
	t.Helper()
	got, h, err := send(t.Context(), rt, method, header...)
	if err != nil || got != node {
		t.Fatalf("%s was answered by %q (%v), want %s", method, got, err, node)
	}
	return h
}

func TestTheNearestCellThatASeedNamesIsUsedUnderTheNameOfTheRequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := twoCells()
		tr := open(t, w)
		want(t, tr, "tools/call", "eu/n1")
		if got := w.nodes["eu1.test"].hosts[0]; got != "mcp.test" {
			t.Errorf("the cell was asked as %q", got)
		}
		if tr.Current() != "https://eu1.test" {
			t.Error(tr.Current())
		}
		_ = tr.Close()
	})
}

func TestAClientStaysWhereItIsWhenAnotherIsHardlyNearer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := twoCells()
		tr := open(t, w)
		want(t, tr, "tools/list", "eu/n1")
		w.set("eu2.test", func(n *node) { n.far = 9 * time.Millisecond })
		time.Sleep(time.Minute)
		want(t, tr, "tools/list", "eu/n1")
		time.Sleep(time.Second)
		want(t, tr, "tools/list", "eu/n1")
		_ = tr.Close()
	})
}

func TestAClientGoesWhereItHasBecomeNearer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := twoCells()
		tr := open(t, w)
		want(t, tr, "tools/list", "eu/n1")
		for _, host := range []string{"eu1.test", "eu2.test"} {
			w.set(host, func(n *node) { n.far = 300 * time.Millisecond })
		}
		time.Sleep(time.Minute)
		want(t, tr, "tools/list", "eu/n1") // beside it the ways are measured
		time.Sleep(2 * time.Second)
		want(t, tr, "tools/list", "us/n1")
		_ = tr.Close()
	})
}

// gone are the ways in which a whole cell can be away.
var gone = map[string]func(*node){
	"refuses":           func(n *node) { n.refused = true },
	"does not connect":  func(n *node) { n.deaf = true },
	"answers no more":   func(n *node) { n.hole = true },
	"does not serve":    func(n *node) { n.away = true; n.refused = true },
	"is a second later": func(n *node) { n.far = 5 * time.Second },
}

func TestTheFirstAnswerOfTheNextCellComesWithinThreeSeconds(t *testing.T) {
	t.Parallel()
	for name, fail := range gone {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := twoCells()
				tr := open(t, w)
				want(t, tr, "tools/list", "eu/n1")
				w.set("eu1.test", fail)
				w.set("eu2.test", fail)
				begin := time.Now()
				want(t, tr, "tools/list", "us/n1")
				if took := time.Since(begin); took > 3*time.Second {
					t.Errorf("after %s", took)
				}
				// Afterwards nobody waits for the cell that is gone.
				begin = time.Now()
				want(t, tr, "tools/call", "us/n1")
				if took := time.Since(begin); took > 200*time.Millisecond {
					t.Errorf("the next one after %s", took)
				}
				_ = tr.Close()
			})
		})
	}
}

func TestACallThatWasSentIsNeverSentAgainAndSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := twoCells()
		tr := open(t, w)
		want(t, tr, "tools/list", "eu/n1")
		w.set("eu1.test", func(n *node) { n.hole = true })
		begin := time.Now()
		_, _, err := send(t.Context(), tr, "tools/call")
		var unknown *nearest.UnknownOutcomeError
		if !errors.As(err, &unknown) || !errors.Is(err, nearest.ErrUnknownOutcome) || unknown.Method != "tools/call" || unknown.Cell != "eu" {
			t.Fatalf("%v", err)
		}
		if took := time.Since(begin); took < 5*time.Second || took > 10*time.Second {
			t.Errorf("it was given up after %s", took)
		}
		if w.calls("eu1.test")+w.calls("eu2.test")+w.calls("us1.test") != 2 {
			t.Errorf("it was sent more than once: %d %d %d", w.calls("eu1.test"), w.calls("eu2.test"), w.calls("us1.test"))
		}
		want(t, tr, "tools/call", "eu/n2")
		_ = tr.Close()
	})
}

func TestASlowCallOfANodeThatIsThereIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := twoCells()
		slow := &slowCalls{w, time.Minute}
		tr := open(t, w, func(c *nearest.Config) { c.Base = slow })
		begin := time.Now()
		want(t, tr, "tools/call", "eu/n1")
		if time.Since(begin) < time.Minute || w.calls("eu1.test") != 1 {
			t.Errorf("%s, %d calls", time.Since(begin), w.calls("eu1.test"))
		}
		_ = tr.Close()
	})
}

// slowCalls are answered late, while the node goes on answering others.
type slowCalls struct {
	*world
	late time.Duration
}

func (s *slowCalls) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := s.world.RoundTrip(r)
	if r.Method == http.MethodPost {
		time.Sleep(s.late)
	}
	return resp, err
}

func TestACallThatWasNotSentGoesToAnotherNode(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(*node){"refuses": gone["refuses"], "does not connect": gone["does not connect"]} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := twoCells()
				tr := open(t, w)
				want(t, tr, "tools/list", "eu/n1")
				w.set("eu1.test", fail)
				want(t, tr, "tools/call", "eu/n2")
				_ = tr.Close()
			})
		})
	}
}

func TestACallWithAKeyOfItsOwnIsRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := twoCells()
		tr := open(t, w)
		want(t, tr, "tools/list", "eu/n1")
		w.set("eu1.test", func(n *node) { n.hole = true })
		want(t, tr, "tools/call", "eu/n2", "Idempotency-Key", "k1")
		_ = tr.Close()
	})
}

func TestASessionStaysInItsCellUntilThatIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := twoCells()
		tr := open(t, w)
		id := want(t, tr, "initialize", "eu/n1").Get("Mcp-Session-Id")
		for _, host := range []string{"eu1.test", "eu2.test"} {
			w.set(host, func(n *node) { n.far = 300 * time.Millisecond })
		}
		time.Sleep(time.Minute)
		want(t, tr, "tools/list", "eu/n1")
		time.Sleep(2 * time.Second)
		want(t, tr, "tools/list", "us/n1")
		want(t, tr, "tools/list", "eu/n1", "Mcp-Session-Id", id)
		w.set("eu1.test", gone["refuses"])
		want(t, tr, "tools/list", "eu/n2", "Mcp-Session-Id", id)
		w.set("eu2.test", gone["refuses"])
		want(t, tr, "tools/list", "us/n1", "Mcp-Session-Id", id)
		_ = tr.Close()
	})
}

func TestWithoutAnyCellTheErrorSaysThatNothingWasDone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := twoCells()
		tr := open(t, w)
		want(t, tr, "tools/list", "eu/n1")
		for host := range w.nodes {
			w.set(host, gone["refuses"])
		}
		_, _, err := send(t.Context(), tr, "tools/call")
		if !errors.Is(err, nearest.ErrNoCell) || errors.Is(err, nearest.ErrUnknownOutcome) {
			t.Fatalf("%v", err)
		}
		w.set("us1.test", func(n *node) { n.refused = false })
		want(t, tr, "tools/call", "us/n1")
		_ = tr.Close()
	})
}

func TestFromHTTPSNobodyIsLedToHTTP(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := twoCells()
		w.nodes["plain.test"] = &node{cell: "xx", name: "n1"}
		w.dir.Cells = append(w.dir.Cells, &cellv1.CellEntry{Name: "xx", Nodes: []*cellv1.NodeEntry{{Name: "n1", Urls: []string{"http://plain.test/mcp"}}}})
		tr := open(t, w)
		want(t, tr, "tools/call", "eu/n1")
		if w.calls("plain.test") != 0 {
			t.Error("the token went over plain HTTP")
		}
		_ = tr.Close()
	})
}

// TestARealConnectionThatBreaksInTheAnswer has real servers and sockets: the call is cut off after its header and after the
// beginning of its answer.
func TestARealConnectionThatBreaksInTheAnswer(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]string{"before the answer": "", "in the answer": "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"json"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			calls := 0
			doc := &cellv1.CellDirectory{}
			srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == nearest.Path {
					page := &nearest.Page{}
					if err := page.Set(nearest.Of(doc, nearest.FromNode, &nearest.Here{Cell: "a", Node: "n1", Serving: true})); err != nil {
						t.Error(err)
					}
					page.ServeHTTP(rw, r)
					return
				}
				mu.Lock()
				calls++
				mu.Unlock()
				_, _ = io.Copy(io.Discard, r.Body)
				c, _, err := rw.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(c, write)
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
			}))
			defer srv.Close()
			tr, err := nearest.New(nearest.Config{Seeds: []string{srv.URL + "/mcp"}})
			if err != nil {
				t.Fatal(err)
			}
			defer tr.Close()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/mcp", strings.NewReader(`{"method":"tools/call"}`))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := (&http.Client{Transport: tr}).Do(req)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			if !errors.Is(err, nearest.ErrUnknownOutcome) || calls != 1 {
				t.Errorf("%v after %d calls", err, calls)
			}
		})
	}
}

func TestAPageIsBoundedCacheableAndForGETOnly(t *testing.T) {
	t.Parallel()
	page := &nearest.Page{}
	get := func(method string, header ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, nearest.Path, nil)
		if len(header) > 0 {
			r.Header.Set(header[0], header[1])
		}
		rec := httptest.NewRecorder()
		page.ServeHTTP(rec, r)
		return rec
	}
	if got := get(http.MethodGet).Code; got != http.StatusServiceUnavailable {
		t.Errorf("before anything is known: %d", got)
	}
	if err := page.Set(nearest.Of(twoCells().dir, nearest.FromControlPlane, nil)); err != nil {
		t.Fatal(err)
	}
	rec := get(http.MethodGet)
	doc, err := nearest.Parse(rec.Body.Bytes())
	if err != nil || len(doc.Cells) != 2 || len(doc.Shared) != 1 || doc.Shared[0] != "https://mcp.test/mcp" || len(doc.Cells[0].URLs) != 2 {
		t.Errorf("%v %+v", err, doc)
	}
	if got := get(http.MethodGet, "If-None-Match", rec.Header().Get("ETag")).Code; got != http.StatusNotModified {
		t.Errorf("of the same document: %d", got)
	}
	if rec.Header().Get("Cache-Control") != "public, max-age=2" {
		t.Error(rec.Header())
	}
	if got := get(http.MethodPost).Code; got != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", got)
	}
}

func TestADirectoryOverTheBoundsIsCutToThem(t *testing.T) {
	t.Parallel()
	dir := &cellv1.CellDirectory{}
	for i := range 3 * nearest.MaxCells {
		c := &cellv1.CellEntry{Name: fmt.Sprintf("c%d", i)}
		for j := range 2 * nearest.MaxNodes {
			c.Nodes = append(c.Nodes, &cellv1.NodeEntry{Name: fmt.Sprintf("n%d", j), Urls: []string{"ftp://x/mcp", "https://u:p@x/mcp", fmt.Sprintf("https://c%d-%d.test/mcp", i, j)}})
		}
		dir.Cells = append(dir.Cells, c)
	}
	raw, err := json.Marshal(nearest.Of(dir, nearest.FromNode, nil))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := nearest.Parse(raw)
	if err != nil || len(doc.Cells) != nearest.MaxCells || len(doc.Cells[0].Nodes) != nearest.MaxNodes || len(doc.Cells[0].Nodes[0].URLs) != 1 {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	raw, err := json.Marshal(nearest.Of(twoCells().dir, nearest.FromNode, &nearest.Here{Cell: "eu", Node: "n1"}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"cells":[{"name":"a","nodes":[{"name":"n","urls":["https://x/mcp"]}]},{"name":"a"}]}`))
	f.Add([]byte(`{"here":{"cell":"a b","node":""}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := nearest.Parse(raw)
		if err != nil {
			return
		}
		if len(d.Cells) > nearest.MaxCells {
			t.Fatal("over the bound")
		}
		again, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) <= nearest.MaxDocument {
			if _, err := nearest.Parse(again); err != nil {
				t.Fatalf("what was read is not read again: %v", err)
			}
		}
		if bytes.Contains(again, []byte("user:")) && len(d.Cells) == 0 && len(d.Shared) > 0 {
			t.Fatal("an address with a password")
		}
	})
}
