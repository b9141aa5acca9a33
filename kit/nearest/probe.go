package nearest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"slices"
	"time"
)

// Probe is what one look at a node gave.
type Probe struct {
	// Latency is from sending the request to the first byte of the answer, without connecting.
	Latency time.Duration
	// Document is nil from a node that knows none.
	Document *Document
	// Serving is whether the node would take calls.
	Serving bool
}

// Ask asks one node which cells there are and whether it serves, and measures the way to it. base is a scheme and host; host,
// when it is not "", is the name under which it is asked.
func Ask(ctx context.Context, rt http.RoundTripper, base, host string) (*Probe, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+Path, nil)
	if err != nil {
		return nil, err
	}
	req.Host = host
	req.Header.Set("Cache-Control", "no-cache")
	var sent, first time.Time
	req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:              func(httptrace.GotConnInfo) { sent = time.Now() },
		GotFirstResponseByte: func() { first = time.Now() },
	}))
	begin := time.Now()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	p := &Probe{Latency: time.Since(begin)}
	if !sent.IsZero() && first.After(sent) {
		p.Latency = first.Sub(sent)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, MaxDocument+1))
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusMisdirectedRequest:
		return p, nil // it is there, and it says that it does not serve
	default:
		p.Serving = true // a node from before there were documents
		return p, nil
	}
	if p.Document, err = Parse(raw); err != nil {
		return nil, err
	}
	p.Serving = p.Document.Here == nil || p.Document.Here.Serving
	return p, nil
}

// round is one measurement of all ways, which whoever comes meanwhile waits for too.
type round struct {
	begun time.Time
	// done is closed when there is a ranking, or none to be had.
	done chan struct{}
	err  error // written before done is closed
}

// probeAll measures every way there is and ranks them. It returns when the nearest are known; the error is an ErrNoCell.
func (t *Transport) probeAll(ctx context.Context, host string) error {
	t.mu.Lock()
	r := t.round
	if r == nil {
		r = &round{begun: time.Now(), done: make(chan struct{})}
		t.round = r
		t.background.Go(func() {
			t.measure(t.stop, r, host)
			t.mu.Lock()
			defer t.mu.Unlock()
			t.round = nil
		})
	}
	t.mu.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type probed struct {
	place *place
	probe *Probe
	err   error
}

// measure asks the ways that are known and those that the answers name. There is a ranking of those that have answered a little
// after the first one has, and another when all have, or the time is up: who is far is ranked too.
func (t *Transport) measure(ctx context.Context, r *round, host string) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.ConnectTimeout)
	defer cancel()
	if host == "" {
		host = t.cfg.Host
	}
	answers := make(chan probed)
	asked := map[string]bool{}
	waiting := 0
	ask := func() {
		t.mu.Lock()
		all := t.places()
		t.mu.Unlock()
		for _, p := range all {
			if asked[p.base] {
				continue
			}
			asked[p.base] = true
			waiting++
			t.background.Go(func() {
				got, err := Ask(ctx, t.base, p.base, host)
				select {
				case answers <- probed{p, got, err}:
				case <-ctx.Done():
				}
			})
		}
	}
	var good []*place
	var errs []error
	told := false
	tell := func() {
		if len(good) > 0 {
			t.rank(r.begun, good)
		}
		if told {
			return
		}
		told = true
		if len(good) == 0 {
			r.err = fmt.Errorf("%w: %w", ErrNoCell, errors.Join(append(errs, ctx.Err())...))
		}
		close(r.done)
	}
	defer tell()
	ask()
	var over <-chan time.Time
	for waiting > 0 {
		select {
		case a := <-answers:
			waiting--
			if err := t.take(a); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", a.place.base, err))
				continue
			}
			good = append(good, a.place)
			if over == nil {
				over = time.After(grace)
			}
			ask()
		case <-over:
			tell()
		case <-ctx.Done():
			return
		}
	}
}

// errNotServing is said of a node that is there and would not take calls.
var errNotServing = errors.New("it does not serve")

// take learns from what one node has answered.
func (t *Transport) take(a probed) error {
	if a.err != nil {
		return a.err
	}
	t.learn(a.probe.Document)
	if h := hereOf(a.probe); h != nil {
		a.place.cell, a.place.node = h.Cell, h.Node
	}
	if !a.probe.Serving {
		return errNotServing
	}
	a.place.latency = a.probe.Latency
	return nil
}

func hereOf(p *Probe) *Here {
	if p.Document == nil {
		return nil
	}
	return p.Document.Here
}

// learn keeps the newest document: one that knows more cells where none is newer.
func (t *Transport) learn(d *Document) {
	if d == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil || d.AsOf.After(t.known.AsOf) || len(d.Cells) > len(t.known.Cells) {
		t.known = d
	}
}

// margin is what one way may be longer than another and still be as good: what is listed first is taken then, so that a client
// does not wander between nodes that are equally far.
func margin(best time.Duration) time.Duration { return best + best/4 + 5*time.Millisecond }

// rank puts the ways in order: by cell, the nearest first, and in a cell by node. Those that have failed since the measurement
// began are left out.
func (t *Transport) rank(begun time.Time, good []*place) {
	t.mu.Lock()
	good = slices.DeleteFunc(slices.Clone(good), func(p *place) bool { return t.failed[p.base].After(begun) })
	t.mu.Unlock()
	if len(good) == 0 {
		return
	}
	far := map[string]time.Duration{}
	for _, p := range good {
		if d, ok := far[p.cell]; !ok || p.latency < d {
			far[p.cell] = p.latency
		}
	}
	ranked := front(good, func(p *place) time.Duration { return far[p.cell] })
	var all []*place
	for len(ranked) > 0 {
		cell := ranked[0].cell
		same := func(p *place) bool { return p.cell == cell }
		var nodes []*place
		for _, p := range ranked {
			if same(p) {
				nodes = append(nodes, p)
			}
		}
		all = append(all, front(nodes, func(p *place) time.Duration { return p.latency })...)
		ranked = slices.DeleteFunc(ranked, same)
	}
	t.mu.Lock()
	t.ranked, t.measured = all, time.Now()
	for _, p := range all {
		delete(t.failed, p.base)
	}
	from, to := t.current, t.current
	if i := slices.IndexFunc(all, func(p *place) bool { return p.base == t.current }); i < 0 || far[all[i].cell] > margin(far[all[0].cell]) {
		to = all[0].base
	}
	t.current = to
	t.mu.Unlock()
	if from != to {
		t.cfg.OnSwitch(from, to)
	}
}

// front sorts by distance, and puts all that are within the margin of the nearest in the order in which they are listed.
func front(list []*place, far func(*place) time.Duration) []*place {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *place) int { return int(far(a) - far(b)) })
	if len(list) == 0 {
		return nil
	}
	n := 0
	for n < len(list) && far(list[n]) <= margin(far(list[0])) {
		n++
	}
	slices.SortFunc(list[:n], func(a, b *place) int { return a.order - b.order })
	return list
}
