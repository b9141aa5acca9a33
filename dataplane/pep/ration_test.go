package pep_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// limited publishes rate limits; each is scope, name, item and how many in an hour, all at once.
func (g *gateway) limited(maxCalls uint32, limits ...*snapshotv1.RateLimit) {
	g.t.Helper()
	g.cat.Settings.RateLimits, g.cat.Settings.MaxCalls = limits, maxCalls
	g.publish()
}

func hourly(scope, name, item string, requests int64) *snapshotv1.RateLimit {
	return &snapshotv1.RateLimit{Scope: scope, Name: name, Item: item, Requests: requests, PerMs: 3600e3, Burst: requests}
}

func TestEachLimitRefusesWhatIsBeyondItAndSaysSo(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		scope, name, item, words string
		// spared is a request that the limit does not touch.
		spared func(*gateway) *answer
	}{
		{"principal", "", "", "one caller", func(g *gateway) *answer { return g.call("/mcp/pay", "root", "balance", `{}`) }},
		{"principal", "alice", "", "one caller", func(g *gateway) *answer { return g.call("/mcp/pay", "root", "balance", `{}`) }},
		{"tenant", "", "", "the whole organisation", nil},
		{"server", "pay", "", "this server", func(g *gateway) *answer { return g.modern("/mcp/pay", "alice", "tools/list", "", "") }},
		{"tool", "", "", "this tool", func(g *gateway) *answer { return g.call("/mcp/pay", "alice", "odd", `{}`) }},
		{"tool", "pay", "balance", "this tool", func(g *gateway) *answer { return g.call("/mcp/pay", "alice", "odd", `{}`) }},
	} {
		t.Run(tc.scope+"/"+tc.name+"/"+tc.item, func(t *testing.T) {
			t.Parallel()
			g, up := payments(t)
			g.limited(0, hourly(tc.scope, tc.name, tc.item, 3))
			for i := range 3 {
				a := g.call("/mcp/pay", "alice", "balance", `{}`)
				if want := fmt.Sprintf(`"%s";r=%d`, tc.scope, 2-i); a.status != 200 || !strings.HasPrefix(a.header.Get("RateLimit"), want) {
					t.Fatalf("call %d within the limit: %d %s, RateLimit %q", i, a.status, a.body, a.header.Get("RateLimit"))
				}
			}
			a := g.call("/mcp/pay", "alice", "balance", `{}`)
			if a.status != http.StatusTooManyRequests || a.code() != -32000 || string(a.ID) != "1" || up.calls() != 3 {
				t.Fatalf("beyond the limit: %d %s after %d calls", a.status, a.body, up.calls())
			}
			if !strings.Contains(a.Error.Message, "3 per 1h for "+tc.words) || !strings.Contains(a.Error.Message, "try again in 1200 s") {
				t.Errorf("the words: %q", a.Error.Message)
			}
			if got := a.header.Get("RateLimit-Policy"); got != `"`+tc.scope+`";q=3;w=3600` {
				t.Errorf("RateLimit-Policy: %q", got)
			}
			if got := a.header.Get("RateLimit"); got != `"`+tc.scope+`";r=0;t=1200` || a.header.Get("Retry-After") != "1200" {
				t.Errorf("RateLimit: %q, Retry-After: %q", got, a.header.Get("Retry-After"))
			}
			rec := g.book.of(a.decision())
			if len(rec) != 1 || rec[0].GetReason() != "rate_limited" || rec[0].GetDetail() != tc.scope || rec[0].GetDecision() != auditv1.Decision_DECISION_DENY || rec[0].GetHttpStatus() != 429 {
				t.Errorf("recorded as %v", rec)
			}
			if tc.spared != nil {
				if a := tc.spared(g); a.status != 200 {
					t.Errorf("something else was refused too: %d %s", a.status, a.body)
				}
			}
			g.limited(0)
			if a := g.call("/mcp/pay", "alice", "balance", `{}`); a.status != 200 || a.header.Get("RateLimit") != "" {
				t.Errorf("after the limit was taken away: %d %s", a.status, a.body)
			}
		})
	}
}

func TestOneCallersFloodLeavesTheOrganisationsBudgetToTheOthers(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	g.limited(0, hourly("tenant", "", "", 10), hourly("principal", "", "", 3))
	for range 50 {
		g.call("/mcp/pay", "alice", "balance", `{}`)
	}
	for i := range 3 {
		a := g.call("/mcp/pay", "root", "balance", `{}`)
		if want := fmt.Sprintf(`"tenant";r=%d`, 6-i); a.status != 200 || !strings.HasSuffix(a.header.Get("RateLimit"), want) {
			t.Errorf("%d %s, want %s", a.status, a.header.Get("RateLimit"), want)
		}
	}
}

func TestC28AFloodOfDiscoveriesIsHeldBackAndAsksNoUpstream(t *testing.T) {
	t.Parallel()
	own := &limit.Plan{}
	if err := own.Set(limit.Discover, "", "", limit.Rate{Requests: 2, Per: time.Hour, Burst: 5}); err != nil {
		t.Fatal(err)
	}
	up := newScripted(t)
	g := newGateway(t, pep.Config{Limits: own}, []snapshot.Grant{{ID: "g", Subject: "user:alice", Server: "pay"}},
		catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
	passed, refused := 0, 0
	for range 40 {
		switch a := g.modern("/mcp/pay", "alice", "server/discover", "", ""); {
		case a.status == 200 && a.Result != nil:
			passed++
		case a.status == 429 && a.code() == -32000 && a.header.Get("Retry-After") != "":
			refused++
		default:
			t.Fatalf("C28: %d %s", a.status, a.body)
		}
	}
	if passed != 5 || refused != 35 || len(up.seen) != 0 {
		t.Errorf("C28: %d passed, %d refused, upstream asked %v", passed, refused, up.seen)
	}
	if a := g.call("/mcp/pay", "alice", "balance", `{}`); a.status != 200 {
		t.Errorf("C28: calls are refused too: %d %s", a.status, a.body)
	}
}

func TestC22AFloodOfResumedStreamsIsHeldBack(t *testing.T) {
	t.Parallel()
	own := &limit.Plan{}
	if err := own.Set(limit.Resume, "", "", limit.Rate{Requests: 10, Per: time.Hour, Burst: 10}); err != nil {
		t.Fatal(err)
	}
	up := newScripted(t)
	up.script(func(w http.ResponseWriter, r *http.Request, body string) {
		if r.Method == http.MethodGet {
			w.WriteHeader(http.StatusConflict) // the session has such a stream
			return
		}
		up.answer(w, body)
	})
	g := newGateway(t, pep.Config{Limits: own}, []snapshot.Grant{{ID: "g", Subject: "user:alice", Server: "pay"}},
		catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
	id := g.legacy("/mcp/pay", "alice")
	statuses := map[int]int{}
	for range 100 {
		a := g.do(g.request(t.Context(), http.MethodGet, "/mcp/pay", "alice", "", "Mcp-Session-Id", id, "Last-Event-ID", "7"))
		if statuses[a.status]++; a.status == 429 && a.header.Get("Retry-After") == "" {
			t.Error("C22: no Retry-After")
		}
	}
	if statuses[429] != 90 {
		t.Errorf("C22: %v", statuses)
	}
}

func TestOfARefusedFloodOneASecondIsRecordedAndTheRestIsCounted(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var mu sync.Mutex
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	up := newScripted(t)
	g := newGateway(t, pep.Config{Now: clock}, []snapshot.Grant{{ID: "g", Subject: "user:alice", Server: "pay"}},
		catalogueServer("pay", up.url, allEras(), plainTool("balance", read)))
	g.limited(0, hourly("principal", "", "", 1))
	g.call("/mcp/pay", "alice", "balance", `{}`)
	ids := map[string]bool{}
	const flood = 60
	for i := range flood {
		if i%20 == 0 {
			mu.Lock()
			now = now.Add(time.Second)
			mu.Unlock()
		}
		a := g.call("/mcp/pay", "alice", "balance", `{}`)
		if a.status != 429 {
			t.Fatal(a.status, a.body)
		}
		ids[a.decision()] = true
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.pep.Run(ctx); err != nil {
		t.Fatal(err)
	}
	stored, counted := 0, uint64(0)
	for _, r := range g.book.records {
		if r.GetReason() == "rate_limited" {
			stored++
			counted += r.GetRepeated()
		}
	}
	if stored != 3+1 || stored+int(counted) != flood {
		t.Errorf("%d records that count %d more, of %d refusals in 3 s", stored, counted, flood)
	}
	for id := range ids {
		if len(g.book.of(id)) != 1 {
			t.Errorf("the caller was told %s, which is no record", id)
		}
	}
}

func TestB24ALimitDoesNotTellAHiddenToolFromNone(t *testing.T) {
	t.Parallel()
	g, _ := payments(t)
	g.limited(0, hourly("tool", "", "", 1), hourly("server", "", "", 1), hourly("principal", "", "", 1000))
	for range 3 {
		hidden, none := g.call("/mcp/pay", "alice", "secret", `{}`), g.call("/mcp/pay", "alice", "nosuch", `{}`)
		for _, a := range []*answer{hidden, none} {
			a.body = strings.NewReplacer(a.decision(), "ID", "secret", "NAME", "nosuch", "NAME").Replace(a.body)
		}
		if hidden.status != none.status || hidden.body != none.body || len(hidden.header) != len(none.header) || hidden.header.Get("RateLimit-Policy") != none.header.Get("RateLimit-Policy") {
			t.Fatalf("B24: %d %s %v\n%d %s %v", hidden.status, hidden.body, hidden.header, none.status, none.body, none.header)
		}
	}
	if a := g.call("/mcp/pay", "alice", "balance", `{}`); a.status != 200 {
		t.Errorf("calls of what is hidden used up the server's budget: %d %s", a.status, a.body)
	}
}

func TestACallerHasSoManyRequestsUnderWay(t *testing.T) {
	t.Parallel()
	g, up := payments(t)
	arrived, release := make(chan struct{}), make(chan struct{})
	up.script(func(w http.ResponseWriter, _ *http.Request, body string) {
		arrived <- struct{}{}
		<-release
		up.answer(w, body)
	})
	g.limited(2)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if a := g.call("/mcp/pay", "alice", "balance", `{}`); a.status != 200 {
				t.Errorf("within the bound: %d %s", a.status, a.body)
			}
		})
		<-arrived
	}
	a := g.call("/mcp/pay", "alice", "balance", `{}`)
	if a.status != 429 || a.header.Get("Retry-After") == "" || !strings.Contains(a.Error.Message, "2 requests under way") {
		t.Errorf("the third: %d %s", a.status, a.body)
	}
	if r := g.book.of(a.decision()); len(r) != 1 || r[0].GetReason() != "too_many_calls" {
		t.Errorf("recorded as %v", r)
	}
	if a := g.modern("/mcp/pay", "root", "tools/list", "", ""); a.status != 200 {
		t.Errorf("another caller: %d %s", a.status, a.body)
	}
	close(release)
	wg.Wait()
	up.script(nil)
	for range 5 {
		if a := g.call("/mcp/pay", "alice", "balance", `{}`); a.status != 200 {
			t.Fatalf("places were not given back: %d %s", a.status, a.body)
		}
	}
}
