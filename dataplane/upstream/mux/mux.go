// Package mux lets many callers share one connection on which messages follow each other in both directions: a process's
// standard input and output, or the legacy pair of an event stream and posted messages. It gives each request an id of its
// own, and its progress token too, and puts the caller's back into what comes; every other byte crosses as it is.
//
// The gateway leads the dialogue: it initializes the connection once, offering nothing, and answers the server's own
// requests itself, for they cannot be told apart by caller. What the server says to nobody in particular is dropped.
package mux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
)

// progressRoom is how many messages about a call wait for a caller that is slow to read; more are dropped.
const progressRoom = 64

// Config configures a Conn. Zero counts take the defaults named.
type Config struct {
	// Send writes one message, which holds no line break. It is called by one goroutine at a time.
	Send func([]byte) error
	// MaxCalls bounds the calls under way: 64.
	MaxCalls int
	// MaxMessage bounds what is read of an event: 8 MiB.
	MaxMessage int
	// Version is what the gateway calls itself.
	Version string
	// Odd is told of what the server said that is no message; nil for nobody.
	Odd func(string)
}

// Conn is one connection.
type Conn struct {
	cfg    Config
	framer *mcp.Framer

	sending sync.Mutex // held while cfg.Send runs; never together with mu

	mu    sync.Mutex
	next  int64            // guarded by mu
	calls map[string]*call // guarded by mu; by wire id
	err   error            // guarded by mu; why the connection ended
	ended chan struct{}

	initializing sync.Mutex
	initialized  []byte // guarded by initializing: the raw result
}

type call struct {
	session   string
	id, token []byte // raw, the caller's
	wire      string
	said      chan []byte // progress
	answer    chan []byte // the response; closed without one when the connection ends
}

// New makes a connection on which nothing was said yet.
func New(cfg Config) *Conn {
	if cfg.MaxCalls <= 0 {
		cfg.MaxCalls = 64
	}
	if cfg.MaxMessage <= 0 {
		cfg.MaxMessage = 8 << 20
	}
	if cfg.Odd == nil {
		cfg.Odd = func(string) {}
	}
	return &Conn{cfg: cfg, framer: mcp.NewFramer(mcp.DefaultLimits()), calls: map[string]*call{}, ended: make(chan struct{})}
}

// Close ends the connection: every call under way fails with err, and so does every later one.
func (c *Conn) Close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	close(c.ended)
	for _, k := range c.calls {
		close(k.answer)
	}
	c.calls = map[string]*call{}
}

// Ended is closed when the connection has ended.
func (c *Conn) Ended() <-chan struct{} { return c.ended }

func (c *Conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *Conn) send(b []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if err := c.cfg.Send(oneLine(b)); err != nil {
		return fmt.Errorf("%w (%w)", upstream.ErrBroken, err)
	}
	return nil
}

// Receive takes one message from the server.
func (c *Conn) Receive(b []byte) {
	m, refusal := c.framer.FrameAnswer(b)
	switch {
	case refusal != nil:
		c.cfg.Odd("no message: " + refusal.Reason)
	case m.Kind == mcp.KindResponse:
		c.answered(&m)
	case m.Kind == mcp.KindRequest:
		body := mcp.AppendError(nil, m.ID, mcp.CodeMethodNotFound, "not offered", nil)
		if m.Method == mcp.MethodPing {
			body = mcp.AppendEmptyResult(nil, m.ID, mcp.EraLegacy)
		}
		// The reader must not wait for a server that does not read: its own words would never be taken from it.
		go func() { _ = c.send(body) }()
	case m.Method == mcp.MethodProgress:
		c.progressed(&m)
	}
}

func (c *Conn) answered(m *mcp.Message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[string(m.ID)]
	if k == nil {
		return // given up, or never asked
	}
	delete(c.calls, k.wire)
	k.answer <- veneer.Apply(m.Body, veneer.Splice{At: m.IDSpan(), With: k.id})
}

func (c *Conn) progressed(m *mcp.Message) {
	params := m.Raw(m.Params)
	at := mcp.Member(params, "progressToken")
	if !at.Present() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[string(params[at.Start:at.End])]
	if k == nil || k.token == nil {
		return
	}
	at.Start, at.End = at.Start+m.Params.Start, at.End+m.Params.Start
	select {
	case k.said <- veneer.Apply(m.Body, veneer.Splice{At: at, With: k.token}):
	default:
	}
}

// Call sends a request and returns its answer, or the stream that it begins with. The answer is bounded by the context.
func (c *Conn) Call(ctx context.Context, session string, m *mcp.Message) (*upstream.Response, error) {
	k, err := c.begin(session, m)
	if err != nil {
		return nil, err
	}
	splices := []veneer.Splice{{At: m.IDSpan(), With: []byte(k.wire)}}
	if k.token != nil {
		splices = append(splices, veneer.Splice{At: m.ProgressToken, With: []byte(k.wire)})
		if splices[0].At.Start > splices[1].At.Start {
			splices[0], splices[1] = splices[1], splices[0]
		}
	}
	if err := c.send(veneer.Apply(m.Body, splices...)); err != nil {
		c.drop(k)
		return nil, err
	}
	select {
	case b, ok := <-k.answer:
		return c.whole(k, b, ok)
	case first := <-k.said:
		return c.stream(ctx, k, first), nil
	case <-ctx.Done():
		c.giveUp(k)
		return nil, ctx.Err()
	}
}

func (c *Conn) whole(k *call, b []byte, ok bool) (*upstream.Response, error) {
	if !ok {
		return nil, c.cause()
	}
	if len(k.said) > 0 { // both came at once: progress goes first
		return c.stream(context.Background(), k, b), nil
	}
	return &upstream.Response{Status: http.StatusOK, Body: b, JSON: true}, nil
}

func (c *Conn) begin(session string, m *mcp.Message) (*call, error) {
	k := &call{session: session, id: m.ID, token: m.Raw(m.ProgressToken), said: make(chan []byte, progressRoom), answer: make(chan []byte, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return nil, fmt.Errorf("%w (%w)", upstream.ErrUnavailable, c.err)
	case len(c.calls) >= c.cfg.MaxCalls:
		return nil, upstream.ErrBusy
	}
	c.next++
	k.wire = strconv.FormatInt(c.next, 10)
	c.calls[k.wire] = k
	return k, nil
}

func (c *Conn) drop(k *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, there := c.calls[k.wire]
	delete(c.calls, k.wire)
	return there
}

// giveUp forgets a call and tells the server that nobody waits for it.
func (c *Conn) giveUp(k *call) {
	if !c.drop(k) {
		return
	}
	go func() { _ = c.send(cancelled(k.wire)) }()
}

func cancelled(wire string) []byte {
	return []byte(`{"jsonrpc":"2.0","method":"` + mcp.MethodCancelled + `","params":{"requestId":` + wire + `}}`)
}

// Cancel ends the call that a session made under a raw id; the caller is not answered, as the protocol has it.
func (c *Conn) Cancel(session string, id []byte) {
	c.mu.Lock()
	var found *call
	for _, k := range c.calls {
		if k.session == session && string(k.id) == string(id) {
			found = k
		}
	}
	c.mu.Unlock()
	if found != nil {
		_ = c.send(cancelled(found.wire))
	}
}

// stream makes an event stream of what is said about a call; first is a message that was taken already.
func (c *Conn) stream(ctx context.Context, k *call, first []byte) *upstream.Response {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.CloseWithError(c.relay(ctx, k, first, w))
	}()
	return upstream.Streamed(mcp.NewEventReader(r, c.cfg.MaxMessage+64), sync.OnceFunc(func() {
		cancel()
		_ = r.Close()
		<-done
		c.giveUp(k)
	}))
}

func (c *Conn) relay(ctx context.Context, k *call, first []byte, w io.Writer) error {
	put := func(b []byte) error {
		_, err := w.Write(mcp.AppendEvent(make([]byte, 0, len(b)+32), oneLine(b)))
		return err
	}
	last := func(b []byte) error {
		for len(k.said) > 0 {
			if err := put(<-k.said); err != nil {
				return err
			}
		}
		return errors.Join(put(b), io.EOF)
	}
	if m, refusal := c.framer.FrameAnswer(first); refusal == nil && m.Kind == mcp.KindResponse {
		return last(first)
	}
	if err := put(first); err != nil {
		return err
	}
	for {
		select {
		case b := <-k.said:
			if err := put(b); err != nil {
				return err
			}
		case b, ok := <-k.answer:
			if !ok {
				return c.cause()
			}
			return last(b)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Initialize opens the dialogue, once for all callers, and returns the raw result.
func (c *Conn) Initialize(ctx context.Context) ([]byte, error) {
	c.initializing.Lock()
	defer c.initializing.Unlock()
	if c.initialized != nil {
		return c.initialized, nil
	}
	body := []byte(`{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"` + mcp.Rev20251125 + `","capabilities":{},"clientInfo":{"name":"mcpvault","version":`)
	body = append(mcp.AppendString(body, c.cfg.Version), "}}}"...)
	raw, err := c.Ask(ctx, body)
	if err != nil {
		return nil, err
	}
	if err := c.send([]byte(`{"jsonrpc":"2.0","method":"` + mcp.MethodInitialized + `"}`)); err != nil {
		return nil, err
	}
	c.initialized = raw
	return raw, nil
}

// Ask makes a request of the gateway's own and returns the raw result; progress is skipped.
func (c *Conn) Ask(ctx context.Context, body []byte) ([]byte, error) {
	m, refusal := c.framer.Frame(body)
	if refusal != nil {
		return nil, refusal
	}
	resp, err := c.Call(ctx, "", &m)
	if err != nil {
		return nil, err
	}
	defer resp.Close()
	a, refusal := c.framer.FrameAnswer(resp.Body)
	switch {
	case refusal != nil:
		return nil, fmt.Errorf("%w (%s)", upstream.ErrProtocol, refusal.Reason)
	case a.Error.Present():
		return nil, fmt.Errorf("%w: %s was answered with %.200s", upstream.ErrProtocol, m.Method, a.Raw(a.Error))
	}
	return a.Raw(a.Result), nil
}

// oneLine takes out line breaks, which in a valid message can only be between its tokens.
func oneLine(b []byte) []byte {
	var out []byte
	for i, ch := range b {
		if ch != '\n' && ch != '\r' {
			continue
		}
		if out == nil {
			out = append([]byte(nil), b...)
		}
		out[i] = ' '
	}
	if out == nil {
		return b
	}
	return out
}
