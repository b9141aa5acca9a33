package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

// http2Side serves a destination that speaks HTTP/2 only, with the standard library's client over connections that were
// made and verified here.
type http2Side struct {
	once sync.Once
	rt   *http.Transport
}

func (s *http2Side) transport(d *destination) *http.Transport {
	s.once.Do(func() {
		var protocols http.Protocols
		protocols.SetHTTP2(true)
		s.rt = &http.Transport{
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := d.dial(ctx, protocolHTTP2)
				if err != nil {
					return nil, &dialError{err}
				}
				return c.nc, nil
			},
			Protocols:              &protocols,
			ForceAttemptHTTP2:      true,
			IdleConnTimeout:        d.c.cfg.IdleTimeout,
			DisableCompression:     true,
			MaxResponseHeaderBytes: maxHead,
		}
	})
	return s.rt
}

func (s *http2Side) close() {
	s.once.Do(func() {})
	if s.rt != nil {
		s.rt.CloseIdleConnections()
	}
}

// dialError marks what failed before a byte was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// http2 is do for such a destination.
func (x *call) http2() (*Response, error) {
	ctx, cancel := context.WithCancel(x.ctx)
	out, err := http.NewRequestWithContext(ctx, x.req.Method, x.req.URL, bytes.NewReader(x.req.Body))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, errAddress)
	}
	out.GetBody = nil // nothing is sent twice
	out.Header = http2Header(x.req)
	resp, err := x.d.h2.transport(x.d).RoundTrip(out) //nolint:bodyclose // by end
	if err != nil {
		cancel()
		return nil, x.http2Failed(err)
	}
	end := func() {
		cancel()
		_ = resp.Body.Close()
	}
	r, err := x.receive(resp)
	if err != nil {
		end()
		return nil, x.cut(err)
	}
	if r.Events == nil {
		end()
		return r, nil
	}
	x.d.gate.learn(x.d.c.cfg.Now(), x.probe, x.verdict)
	x.probe = false
	over := *x
	r.close = sync.OnceFunc(func() {
		end()
		over.leave(nil)
	})
	return r, nil
}

func (x *call) http2Failed(err error) error {
	var de *dialError
	switch {
	case x.ctx.Err() != nil:
		return x.ctx.Err()
	case errors.Is(err, errOnlyHTTP2): // no longer: the next call finds out
		x.d.onlyHTTP2.Store(false)
		return fmt.Errorf("%w (%w)", ErrUnavailable, err)
	case errors.As(err, &de):
		return de.err
	}
	return fmt.Errorf("%w (%w)", ErrBroken, err)
}

func (x *call) receive(resp *http.Response) (*Response, error) {
	x.verdict = judge(resp.StatusCode)
	if resp.StatusCode >= 300 && resp.StatusCode < 400 {
		return nil, ErrRedirect
	}
	kind := mediaOf(resp.Header.Get("Content-Type"))
	r := &Response{Status: resp.StatusCode, Session: resp.Header.Get(mcp.HeaderSession), JSON: kind == mediaJSON}
	if kind == mediaEvents && resp.StatusCode == http.StatusOK {
		r.Events = mcp.NewEventReader(resp.Body, x.d.c.cfg.MaxEvent)
		return r, nil
	}
	b := body{src: resp.Body, framing: framedByClose}
	var err error
	r.Body, err = b.all(x.d.c.cfg.MaxAnswer)
	return r, err
}

func http2Header(req *Request) http.Header {
	h := make(http.Header, 10)
	for k, v := range req.Header {
		if Forwarded(k) {
			h[k] = v
		}
	}
	h["User-Agent"] = []string{"mcpvault"}
	h["Accept"] = []string{"application/json, text/event-stream"}
	if req.Method == http.MethodGet {
		h["Accept"] = []string{"text/event-stream"}
	}
	if len(req.Body) > 0 {
		h["Content-Type"] = []string{"application/json"}
	}
	for k, v := range req.Set {
		if len(v) == 0 {
			delete(h, k)
			continue
		}
		h[k] = v
	}
	return h
}
