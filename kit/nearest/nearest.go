// Package nearest lets a client use the nearest of several cells, and the next one when that is gone. Transport is an
// http.RoundTripper for any MCP client: it finds the cells, measures the way to each, sends every request to the best one, and
// turns to another when nothing answers there.
//
// It promises that a request which may have an effect is sent to one place, once: it goes elsewhere only while nothing of it
// can have been read, and otherwise its error says that the outcome is unknown (ErrUnknownOutcome). Requests that have no
// effect are sent again. A session stays with the cell that opened it for as long as that answers; another cell answers 404,
// which tells a client to open a session anew. The token goes to whatever the cells themselves name, never from https to http.
package nearest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrUnknownOutcome is in the chain of an *UnknownOutcomeError.
var ErrUnknownOutcome = errors.New("the outcome is unknown")

// ErrNoCell is in the chain of an error of a request that no cell could be given: nothing was done.
var ErrNoCell = errors.New("no cell can be reached")

// UnknownOutcomeError says that a request was sent, that no whole answer came, and that it was not sent again: whether it was
// carried out is for the audit log, or the server itself, to say.
type UnknownOutcomeError struct {
	// Method is the JSON-RPC method; URL is where the request was sent, in Cell when that is known.
	Method, URL, Cell string
	Err               error
}

// Error implements error.
func (e *UnknownOutcomeError) Error() string {
	what := e.Method
	if what == "" {
		what = "the request"
	}
	return fmt.Sprintf("%s was sent to %s and may have been carried out: it was not sent again: %v", what, e.URL, e.Err)
}

// Unwrap is the failure itself.
func (e *UnknownOutcomeError) Unwrap() error { return e.Err }

// Is makes it an ErrUnknownOutcome.
func (e *UnknownOutcomeError) Is(target error) bool { return target == ErrUnknownOutcome }

// Config says where to begin. Zero values take the defaults named.
type Config struct {
	// Seeds are MCP endpoints of any cells, the preferred first: https://eu.mcp.example.com/mcp. The cells behind them name the
	// others, unless SeedsOnly. Where all seeds are https, nothing else is used.
	Seeds     []string
	SeedsOnly bool
	// Host is the host name of the organisation, for cells reached under names of their own; "" for each address's own. A
	// request's own Host wins for that request.
	Host string
	// Base carries the requests; nil for a transport that trusts the system's authorities and takes no proxy from the
	// environment.
	Base http.RoundTripper
	// ConnectTimeout is the wait for a connection, and for the answer to a probe: 1 s.
	ConnectTimeout time.Duration
	// Patience is how long a request that may have an effect waits for a node that answers nobody else either: 5 s.
	Patience time.Duration
	// Recheck is how old a measurement may be before it is made again, beside the requests: 30 s.
	Recheck time.Duration
	// OnSwitch hears that requests go to another node from now on, "" at first; it must not block. It may be nil.
	OnSwitch func(from, to string)
}

const (
	// grace is how long the first answer to a round of probes waits for others that may be nearer.
	grace = 250 * time.Millisecond
	// maxBody bounds a request that can be sent again: what a cell takes.
	maxBody = 4 << 20
	// maxSessions bounds how many sessions' cells are remembered.
	maxSessions = 4096
)

// Transport is an http.RoundTripper. It is safe for concurrent use.
type Transport struct {
	cfg   Config
	base  http.RoundTripper
	seeds []*place
	https bool

	mu       sync.Mutex // guards all below
	known    *Document
	ranked   []*place
	measured time.Time
	current  string               // base URL of the node in use
	failed   map[string]time.Time // when a way failed that has not been good since, by base URL
	sessions map[string]string    // session id to cell
	oldest   []string             // session ids, the oldest first
	round    *round               // the probes that are under way

	background sync.WaitGroup
	stop       context.Context
	cancel     context.CancelFunc
}

// place is a way to a node: scheme and host of its URLs.
type place struct {
	base, cell, node string
	latency          time.Duration
	// order is its position in what names it.
	order int
}

// New makes a transport; it does no IO.
func New(cfg Config) (*Transport, error) {
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = time.Second
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 5 * time.Second
	}
	if cfg.Recheck <= 0 {
		cfg.Recheck = 30 * time.Second
	}
	if cfg.OnSwitch == nil {
		cfg.OnSwitch = func(string, string) {}
	}
	t := &Transport{cfg: cfg, base: cfg.Base, failed: map[string]time.Time{}, sessions: map[string]string{}, https: true}
	if t.base == nil {
		t.base = &http.Transport{
			DialContext: (&net.Dialer{Timeout: cfg.ConnectTimeout}).DialContext, TLSHandshakeTimeout: cfg.ConnectTimeout, ForceAttemptHTTP2: true,
			IdleConnTimeout: time.Minute,
		}
	}
	for i, raw := range cfg.Seeds {
		base, err := baseOf(raw)
		if err != nil {
			return nil, err
		}
		t.https = t.https && strings.HasPrefix(base, "https:")
		if !slices.ContainsFunc(t.seeds, func(p *place) bool { return p.base == base }) {
			t.seeds = append(t.seeds, &place{base: base, order: i})
		}
	}
	if len(t.seeds) == 0 {
		return nil, errors.New("nearest: no seeds: name at least one MCP endpoint")
	}
	t.stop, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// Close ends what goes on beside requests and closes idle connections. Requests under way are their callers'.
func (t *Transport) Close() error {
	t.cancel()
	t.background.Wait()
	t.CloseIdleConnections()
	return nil
}

// CloseIdleConnections closes those of the transport below.
func (t *Transport) CloseIdleConnections() {
	if c, ok := t.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// Current is the base URL of the node in use, "" before the first request.
func (t *Transport) Current() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.current
}

// baseOf is scheme and host of a URL.
func baseOf(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.User != nil {
		return "", fmt.Errorf("nearest: %.200q is not an http or https address", raw)
	}
	return u.Scheme + "://" + strings.ToLower(u.Host), nil
}

// places are all ways that are known, seeds first, each once. t.mu is held.
func (t *Transport) places() []*place {
	all := make([]*place, 0, len(t.seeds))
	add := func(p place) {
		if t.https && !strings.HasPrefix(p.base, "https:") || !t.https && !t.seeded(p.base) {
			return
		}
		for _, q := range all {
			if q.base == p.base {
				if q.cell == "" {
					q.cell, q.node = p.cell, p.node
				}
				return
			}
		}
		p.order = len(all)
		all = append(all, &p)
	}
	for _, s := range t.seeds {
		add(*s)
	}
	if t.known != nil && !t.cfg.SeedsOnly {
		for _, c := range t.known.Cells {
			for _, n := range c.Nodes {
				for _, raw := range n.URLs {
					if base, err := baseOf(raw); err == nil && !slices.Contains(t.known.Shared, raw) {
						add(place{base: base, cell: c.Name, node: n.Name})
					}
				}
			}
		}
	}
	return all
}

// seeded reports whether an address has the scheme of a seed: a client of plain HTTP may know no authority.
func (t *Transport) seeded(base string) bool {
	scheme, _, _ := strings.Cut(base, ":")
	return slices.ContainsFunc(t.seeds, func(s *place) bool { return strings.HasPrefix(s.base, scheme+":") })
}

// order is where a request should be tried, the best first. The first request waits for the measurement.
func (t *Transport) order(ctx context.Context, host, session string) ([]*place, error) {
	t.mu.Lock()
	fresh := time.Since(t.measured) < t.cfg.Recheck
	if len(t.ranked) > 0 {
		if !fresh && t.round == nil {
			t.background.Go(func() { _ = t.probeAll(t.stop, host) })
		}
		defer t.mu.Unlock()
		return t.arrange(session), nil
	}
	t.mu.Unlock()
	if err := t.probeAll(ctx, host); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.arrange(session), nil
}

// arrange puts the session's own cell first, then the node in use and its cell. t.mu is held.
func (t *Transport) arrange(session string) []*place {
	list := slices.Clone(t.ranked)
	home := t.sessions[session]
	current := ""
	for _, p := range list {
		if p.base == t.current {
			current = p.cell
		}
	}
	weight := func(p *place) int {
		switch {
		case home != "" && p.cell != home:
			return 2
		case p.base == t.current:
			return -1
		case home == "" && current != "" && p.cell == current:
			return 0
		}
		return 1
	}
	slices.SortStableFunc(list, func(a, b *place) int { return weight(a) - weight(b) })
	return list
}

// use notes that a place has answered. It takes the place of the one in use where that has failed; otherwise measurements say
// where requests go.
func (t *Transport) use(p *place) {
	t.mu.Lock()
	from := t.current
	if _, failed := t.failed[from]; from == "" || failed {
		t.current = p.base
	}
	to := t.current
	t.mu.Unlock()
	if from != to {
		t.cfg.OnSwitch(from, to)
	}
}

// drop takes a place out of use until it has answered a probe.
func (t *Transport) drop(p *place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failed[p.base] = time.Now()
	t.ranked = slices.DeleteFunc(slices.Clone(t.ranked), func(q *place) bool { return q.base == p.base })
	t.measured = time.Time{}
}

// remember keeps in which cell a session was opened.
func (t *Transport) remember(session, cell string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.sessions[session]; !ok {
		t.oldest = append(t.oldest, session)
		if len(t.oldest) > maxSessions {
			delete(t.sessions, t.oldest[0])
			t.oldest = t.oldest[1:]
		}
	}
	t.sessions[session] = cell
}

// forget lets go of a session that has ended.
func (t *Transport) forget(session string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.sessions[session]; ok {
		delete(t.sessions, session)
		t.oldest = slices.DeleteFunc(t.oldest, func(s string) bool { return s == session })
	}
}
