// Package jwks looks for keys that an issuer has begun to use after the snapshot was made, at the address that the
// snapshot pins it to. The control plane looks regularly and publishes what it finds; this is for the time that it cannot.
//
// It promises that an address is asked at most once a minute, whatever callers send, for a few seconds at most and through
// the guard of all egress; that a key is used for at most a day after this node has first seen it, however often it is seen
// again; and that a key which the issuer has taken away does not come back. It can only add keys: what the snapshot holds,
// and what it names as withdrawn, is for the caller of Keys to put first.
//
// It remembers in memory. A node that starts again has no such keys until it has asked again.
package jwks

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/jose"
)

// The bounds.
const (
	// Every is the shortest time between two requests to one address.
	Every = time.Minute
	// Lifetime is how long a key counts that the snapshot does not have.
	Lifetime = 24 * time.Hour
	// Patience is how long a request to an issuer, and so a caller with a new key, waits.
	Patience = 3 * time.Second
	// maxAddresses bounds the addresses, maxSeen the keys remembered of each.
	maxAddresses, maxSeen = 4096, 1024
)

// Config is what a Finder needs.
type Config struct {
	// Transport makes the connections; that of an egress.Guard.
	Transport http.RoundTripper
	// Now is the node's trusted time; nil means the wall clock.
	Now    func() time.Time
	Logger *slog.Logger
	// Registerer takes the metrics; it may be nil.
	Registerer prometheus.Registerer
}

// Finder remembers what was found. It may be used by many goroutines.
type Finder struct {
	client *http.Client
	now    func() time.Time
	log    *slog.Logger
	total  *prometheus.CounterVec

	mu   sync.Mutex
	sets map[string]*set // by address
}

// set is one address; Finder.mu guards it.
type set struct {
	asked time.Time
	// busy is closed when the request that is under way has ended; nil when there is none.
	busy chan struct{}
	seen map[name]*found
}

// name is what makes a key: its bytes under its name and algorithm.
type name struct {
	kid, alg string
	sum      [sha256.Size]byte
}

type found struct {
	key   jose.Key
	first time.Time
	// gone: the issuer has taken it away.
	gone bool
}

// New makes a Finder.
func New(cfg Config) (*Finder, error) {
	f := &Finder{
		client: &http.Client{Transport: cfg.Transport, Timeout: Patience, CheckRedirect: egress.CheckRedirect},
		now:    cfg.Now, log: cfg.Logger, sets: map[string]*set{},
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "mcpvault_authn_jwks_requests_total", Help: "Requests to issuers for keys newer than the snapshot, by result.",
		}, []string{"result"}),
	}
	if f.now == nil {
		f.now = time.Now
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(f.total); err != nil {
			return nil, fmt.Errorf("register the metrics of jwks: %w", err)
		}
	}
	return f, nil
}

// Keys finds the keys of a name. When none is known and the address may be asked again, it is asked, and everybody who
// wants a key of it meanwhile waits. The keys may be used until the time given.
func (f *Finder) Keys(jwksURL, kid string) ([]jose.Key, time.Time) {
	f.mu.Lock()
	s := f.sets[jwksURL]
	if s == nil {
		if len(f.sets) >= maxAddresses {
			f.mu.Unlock()
			return nil, time.Time{}
		}
		s = &set{seen: map[name]*found{}}
		f.sets[jwksURL] = s
	}
	keys, until := s.find(kid, f.now())
	if len(keys) > 0 {
		f.mu.Unlock()
		return keys, until
	}
	busy := s.busy
	if since := f.now().Sub(s.asked); busy == nil && (s.asked.IsZero() || since >= Every || since < 0) {
		s.asked, s.busy = f.now(), make(chan struct{})
		busy = s.busy
		go f.refresh(jwksURL, s)
	}
	f.mu.Unlock()
	if busy == nil {
		return nil, time.Time{}
	}
	<-busy // at most Patience
	f.mu.Lock()
	defer f.mu.Unlock()
	return s.find(kid, f.now())
}

// find are the keys of a name that count now, and the first end of any of them.
func (s *set) find(kid string, now time.Time) (keys []jose.Key, until time.Time) {
	for n, k := range s.seen {
		end := k.first.Add(Lifetime)
		if n.kid != kid || k.gone || !now.Before(end) {
			continue
		}
		if keys = append(keys, k.key); until.IsZero() || end.Before(until) {
			until = end
		}
	}
	return keys, until
}

// refresh asks an address once and ends the wait of everybody.
func (f *Finder) refresh(jwksURL string, s *set) {
	keys, err := f.fetch(jwksURL)
	f.mu.Lock()
	if err == nil {
		err = s.take(keys, f.now())
	}
	close(s.busy)
	s.busy = nil
	f.mu.Unlock()
	if err != nil {
		f.total.WithLabelValues("failed").Inc()
		f.log.Warn("an issuer's keys cannot be had: tokens signed with a key newer than the policy are refused", "jwks_url", jwksURL, "error", err)
		return
	}
	f.total.WithLabelValues("fetched").Inc()
}

// take remembers the keys that are new, and which of the old ones are there no more.
func (s *set) take(keys []jose.Key, now time.Time) error {
	there := map[name]bool{}
	for _, k := range keys {
		sum, err := k.Thumbprint()
		if err != nil {
			continue
		}
		n := name{k.KID, k.Alg, sum}
		there[n] = true
		if s.seen[n] == nil {
			if len(s.seen) >= maxSeen {
				return errors.New("it has named more keys than are remembered")
			}
			s.seen[n] = &found{key: k, first: now}
		}
	}
	for n, k := range s.seen {
		k.gone = k.gone || !there[n]
	}
	return nil
}

func (f *Finder) fetch(jwksURL string) ([]jose.Key, error) {
	if err := egress.CheckSecure(jwksURL); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, jwksURL, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %d", resp.StatusCode)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, jose.MaxSetSize+1))
	if err != nil {
		return nil, err
	}
	return jose.ParseSet(raw)
}
