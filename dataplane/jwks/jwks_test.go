package jwks_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/jwks"
	"github.com/mcpvault/mcpvault/kit/egress"
)

// issuer serves a key set and counts who asks.
type issuer struct {
	url   string
	asked atomic.Int64
	close func()

	mu   sync.Mutex
	body string
}

func newIssuer(t *testing.T, kids ...string) *issuer {
	t.Helper()
	i := &issuer{}
	i.serve(kids...)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		i.asked.Add(1)
		i.mu.Lock()
		defer i.mu.Unlock()
		_, _ = w.Write([]byte(i.body))
	}))
	i.url, i.close = srv.URL+"/jwks", srv.Close
	t.Cleanup(srv.Close)
	return i
}

func (i *issuer) serve(kids ...string) {
	var keys []string
	for _, kid := range kids {
		seed := [ed25519.SeedSize]byte{}
		copy(seed[:], kid)
		pub := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
		keys = append(keys, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}`, kid, base64.RawURLEncoding.EncodeToString(pub)))
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.body = `{"keys":[` + strings.Join(keys, ",") + `]}`
}

// watch is a clock that is moved by hand.
type watch struct {
	mu  sync.Mutex
	now time.Time
}

func (w *watch) Now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *watch) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func setup(t *testing.T) (*jwks.Finder, *watch) {
	t.Helper()
	transport, err := egress.NewTransport([]string{"127.0.0.0/8:*"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(transport.CloseIdleConnections)
	clock := &watch{now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	f, err := jwks.New(jwks.Config{Transport: transport, Now: clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	return f, clock
}

func count(f *jwks.Finder, url, kid string) int {
	keys, _ := f.Keys(url, kid)
	return len(keys)
}

func TestUnknownNamesAskTheIssuerAtMostOnceAMinute(t *testing.T) {
	t.Parallel()
	f, clock := setup(t)
	i := newIssuer(t, "new")
	if count(f, i.url, "new") != 1 {
		t.Fatal("the issuer's new key is not found at the first time of asking")
	}
	var all sync.WaitGroup
	for n := range 64 {
		all.Go(func() { count(f, i.url, fmt.Sprintf("../../%d", n)) })
	}
	all.Wait()
	clock.advance(59 * time.Second)
	if count(f, i.url, "'; DROP TABLE keys") != 0 || i.asked.Load() != 1 {
		t.Errorf("D07: %d requests within a minute", i.asked.Load())
	}
	clock.advance(time.Second)
	for n := range 64 {
		all.Go(func() { count(f, i.url, fmt.Sprintf("other-%d", n)) })
	}
	all.Wait()
	if i.asked.Load() != 2 {
		t.Errorf("D07: %d requests in two minutes", i.asked.Load())
	}
	if other := newIssuer(t, "theirs"); count(f, other.url, "theirs") != 1 {
		t.Error("one issuer's budget is another's")
	}
}

func TestAFoundKeyCountsForADayAndNoLonger(t *testing.T) {
	t.Parallel()
	f, clock := setup(t)
	i := newIssuer(t, "new")
	start := clock.Now()
	if _, until := f.Keys(i.url, "new"); !until.Equal(start.Add(24 * time.Hour)) {
		t.Errorf("it counts until %v", until)
	}
	i.close() // what is known serves on
	clock.advance(24*time.Hour - time.Second)
	if count(f, i.url, "new") != 1 {
		t.Error("the key is forgotten although the day is not over")
	}
	clock.advance(time.Second)
	if count(f, i.url, "new") != 0 {
		t.Error("the key counts for more than a day")
	}
}

func TestSeeingAKeyAgainDoesNotProlongIt(t *testing.T) {
	t.Parallel()
	f, clock := setup(t)
	i := newIssuer(t, "new")
	count(f, i.url, "new")
	for range 30 {
		clock.advance(time.Hour)
		count(f, i.url, "unknown")
	}
	if i.asked.Load() != 31 || count(f, i.url, "new") != 0 {
		t.Errorf("after %d requests the key still counts", i.asked.Load())
	}
}

func TestAKeyThatTheIssuerTookAwayDoesNotComeBack(t *testing.T) {
	t.Parallel()
	f, clock := setup(t)
	i := newIssuer(t, "a", "b")
	if count(f, i.url, "a") != 1 {
		t.Fatal("not found")
	}
	i.serve("b", "c")
	clock.advance(time.Minute)
	if count(f, i.url, "c") != 1 || count(f, i.url, "a") != 0 || count(f, i.url, "b") != 1 {
		t.Error("the set is not what the issuer has now")
	}
	i.serve("a", "b", "c")
	clock.advance(time.Minute)
	if count(f, i.url, "a") != 0 {
		t.Error("a key that was taken away lives again")
	}
}

func TestAnIssuerInTroubleAddsAndRemovesNothing(t *testing.T) {
	t.Parallel()
	f, clock := setup(t)
	i := newIssuer(t, "a")
	count(f, i.url, "a")
	for _, body := range []string{"", "{}", `{"keys":7}`, strings.Repeat("x", 1<<20), `{"keys":[],"keys":[]}`} {
		i.mu.Lock()
		i.body = body
		i.mu.Unlock()
		clock.advance(time.Minute)
		if count(f, i.url, "unknown") != 0 {
			t.Errorf("%.20q: something was found", body)
		}
	}
	if count(f, i.url, "a") != 1 || i.asked.Load() != 6 {
		t.Errorf("what was known is gone after %d requests", i.asked.Load())
	}
}

func TestTheGuardOfEgressHolds(t *testing.T) {
	t.Parallel()
	var packets atomic.Int64
	canary := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { packets.Add(1) }))
	defer canary.Close()
	transport, err := egress.NewTransport(nil)
	if err != nil {
		t.Fatal(err)
	}
	closed, err := jwks.New(jwks.Config{Transport: transport})
	if err != nil {
		t.Fatal(err)
	}
	open, _ := setup(t)
	away := httptest.NewServer(http.RedirectHandler(canary.URL, http.StatusFound))
	defer away.Close()
	if count(closed, canary.URL, "k") != 0 || count(open, away.URL, "k") != 0 || count(open, "http://issuer.example/jwks", "k") != 0 {
		t.Error("something was found")
	}
	if packets.Load() != 0 {
		t.Errorf("D06, D24: the canary saw %d requests", packets.Load())
	}
}
