package nearest

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
	"strings"
	"sync/atomic"
	"time"
)

const sessionHeader = "Mcp-Session-Id"

// message is what a request is about.
type message struct {
	method  string
	session string
	body    []byte
	// repeatable is whether it may be carried out twice.
	repeatable bool
}

// repeatable are the JSON-RPC methods without an effect, or with one that is the same the second time.
var repeatable = map[string]bool{
	"initialize": true, "ping": true, "server/discover": true, "tools/list": true, "prompts/list": true, "prompts/get": true,
	"resources/list": true, "resources/templates/list": true, "resources/read": true, "resources/subscribe": true,
	"resources/unsubscribe": true, "completion/complete": true, "logging/setLevel": true, "subscriptions/listen": true,
	"notifications/initialized": true, "notifications/cancelled": true, "notifications/roots/list_changed": true,
}

// read takes the request's body and finds out whether it may be repeated: one of another HTTP method than POST, of a method
// without an effect, or one that its caller has given an Idempotency-Key.
func read(r *http.Request) (*message, error) {
	m := &message{session: r.Header.Get(sessionHeader), repeatable: r.Method != http.MethodPost || r.Header.Get("Idempotency-Key") != ""}
	if r.Body == nil || r.Body == http.NoBody {
		return m, nil
	}
	raw, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	err = errors.Join(err, r.Body.Close())
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	if len(raw) > maxBody {
		return nil, fmt.Errorf("a request is longer than the %d bytes that a cell takes", maxBody)
	}
	m.body = raw
	var head struct {
		Method string `json:"method"`
	}
	if json.Unmarshal(raw, &head) == nil {
		m.method = head.Method
		m.repeatable = m.repeatable || repeatable[head.Method]
	}
	return m, nil
}

// RoundTrip implements http.RoundTripper. Only scheme and host of the request's URL are replaced; the host that it names is
// sent as it is, because it is what the cell knows the organisation, and the token's audience, by.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	m, err := read(r)
	if err != nil {
		return nil, err
	}
	var errs []error
	for again := range 2 {
		host := t.hostOf(r)
		list, err := t.order(r.Context(), host, m.session)
		if err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
		resp, err := t.through(r, m, list, host, again > 0, &errs)
		if resp != nil || err != nil {
			return resp, err
		}
		// Every way has failed since it was measured.
		if err := t.probeAll(r.Context(), host); err != nil {
			return nil, errors.Join(append(errs, err)...)
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrNoCell, errors.Join(errs...))
}

// hostOf is the host name that a request is sent under: the one that it names, unless that is a cell's own address.
func (t *Transport) hostOf(r *http.Request) string {
	if r.Host != "" && r.Host != r.URL.Host {
		return r.Host
	}
	base := r.URL.Scheme + "://" + strings.ToLower(r.URL.Host)
	t.mu.Lock()
	defer t.mu.Unlock()
	if slices.ContainsFunc(t.places(), func(p *place) bool { return p.base == base }) {
		return t.cfg.Host
	}
	return r.URL.Host
}

// through tries the ways one after the other, and measures anew after the first that has failed. It returns neither answer nor
// error when all have failed and the request may still be sent.
func (t *Transport) through(r *http.Request, m *message, list []*place, host string, last bool, errs *[]error) (*http.Response, error) {
	for i := 0; i < len(list); i++ {
		p := list[i]
		resp, sent, err := t.try(r, m, p, host)
		if err == nil {
			if resp.StatusCode == http.StatusServiceUnavailable && m.repeatable && !(last && i == len(list)-1) {
				drain(resp)
				*errs = append(*errs, fmt.Errorf("%s: it does not serve (HTTP 503)", p.base))
				t.drop(p)
				continue
			}
			t.use(p)
			t.note(r, m, p, resp)
			return resp, nil
		}
		if r.Context().Err() != nil || sent && !m.repeatable {
			return nil, t.lost(r, m, p, sent, err)
		}
		t.drop(p)
		*errs = append(*errs, fmt.Errorf("%s: %w", p.base, err))
		if i+1 < len(list) {
			// Where one has failed others may have: one round of probes is shorter than trying each.
			if err := t.probeAll(r.Context(), host); err != nil {
				return nil, errors.Join(append(*errs, err)...)
			}
			if fresh, err := t.order(r.Context(), host, m.session); err == nil {
				list, i = without(fresh, p), -1
				if len(*errs) > 2*MaxNodes {
					break
				}
			}
		}
	}
	return nil, nil
}

func without(list []*place, p *place) []*place {
	var out []*place
	for _, q := range list {
		if q.base != p.base {
			out = append(out, q)
		}
	}
	return out
}

func drain(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // The connection is used again if this works.
	_ = resp.Body.Close()
}

// lost is the error of a request whose answer did not come.
func (t *Transport) lost(r *http.Request, m *message, p *place, sent bool, err error) error {
	if cause := context.Cause(r.Context()); cause != nil {
		err = errors.Join(cause, err)
	} else {
		t.drop(p)
	}
	if !sent || m.repeatable {
		return err
	}
	return &UnknownOutcomeError{Method: m.method, URL: p.base + r.URL.Path, Cell: p.cell, Err: err}
}

// note keeps which cell a session belongs to.
func (t *Transport) note(r *http.Request, m *message, p *place, resp *http.Response) {
	if id := resp.Header.Get(sessionHeader); id != "" && p.cell != "" && m.method == "initialize" {
		t.remember(id, p.cell)
	}
	if m.session != "" && (r.Method == http.MethodDelete || resp.StatusCode == http.StatusNotFound) {
		t.forget(m.session)
	}
}

// errSilent ends a request to a node that answers nobody.
var errSilent = errors.New("the node does not answer any more")

// try sends the request to one place. sent is whether the node may have read it.
func (t *Transport) try(r *http.Request, m *message, p *place, host string) (resp *http.Response, sent bool, err error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	var connected, wrote atomic.Bool
	req := r.Clone(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		// net/http begins anew only with what it has not written, or what may be repeated.
		GetConn: func(string) { wrote.Store(false) },
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
		// A request whose header has not been written as a whole cannot have been read.
		WroteHeaders: func() { wrote.Store(true) },
	}))
	req.Host = host
	req.URL.Scheme, req.URL.Host, _ = strings.Cut(p.base, "://")
	if m.body != nil {
		req.Body = io.NopCloser(bytes.NewReader(m.body))
		req.ContentLength = int64(len(m.body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(m.body)), nil }
	}
	type result struct {
		resp *http.Response
		err  error
	}
	done := make(chan result, 1)
	go func() {
		resp, err := t.base.RoundTrip(req) //nolint:bodyclose // whoever asked closes it
		done <- result{resp, err}
	}()
	watch := time.NewTicker(t.cfg.ConnectTimeout)
	defer watch.Stop()
	begin := time.Now()
	for {
		select {
		case got := <-done:
			if got.err != nil {
				cancel(nil)
				if errors.Is(context.Cause(ctx), errSilent) {
					got.err = errSilent
				}
				return nil, wrote.Load(), got.err
			}
			got.resp.Body = &answer{ReadCloser: got.resp.Body, t: t, r: r, m: m, p: p, cancel: cancel}
			return got.resp, true, nil
		case <-watch.C:
			if ctx.Err() == nil && t.silent(ctx, p, host, connected.Load(), m.repeatable, time.Since(begin)) {
				cancel(errSilent)
			}
		}
	}
}

// silent looks whether a node that owes an answer is there at all. It is given time when the request cannot be sent elsewhere.
func (t *Transport) silent(ctx context.Context, p *place, host string, connected, repeatable bool, since time.Duration) bool {
	if !connected {
		return true
	}
	if !repeatable && since < t.cfg.Patience {
		return false
	}
	pctx, cancel := context.WithTimeout(ctx, t.cfg.ConnectTimeout)
	defer cancel()
	_, err := Ask(pctx, t.base, p.base, host)
	return err != nil && ctx.Err() == nil
}

// answer is a body whose end is watched.
type answer struct {
	io.ReadCloser
	t      *Transport
	r      *http.Request
	m      *message
	p      *place
	cancel context.CancelCauseFunc
}

// Read implements io.Reader. What breaks off is an unknown outcome, where that matters.
func (a *answer) Read(b []byte) (int, error) {
	n, err := a.ReadCloser.Read(b)
	if err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	return n, a.t.lost(a.r, a.m, a.p, true, err)
}

// Close implements io.Closer.
func (a *answer) Close() error {
	err := a.ReadCloser.Close()
	a.cancel(nil)
	return err
}
