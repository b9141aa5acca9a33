// Package sse speaks to servers of the transport of 2024-11-05: an event stream whose first event names the address that
// messages are posted to, and on which every answer comes. The stream and the posts go through the client that all HTTP goes
// through, with its bounds and its view of what may be dialled.
package sse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/mux"
)

// Scheme begins the address of such a server, before http or https: sse+https://mcp.example.com/sse.
const Scheme = "sse+"

const (
	// maxServers bounds the servers that are remembered.
	maxServers = 1024
	// maxSessions bounds the streams to one server, and maxEndpoint the address that it names.
	maxSessions = 1024
	maxEndpoint = 2048
	postTimeout = 10 * time.Second
)

// HTTP sends one request.
type HTTP interface {
	Do(ctx context.Context, req *upstream.Request) (*upstream.Response, error)
}

// Client speaks to any number of servers.
type Client struct {
	http    HTTP
	version string
	life    context.Context
	end     context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	servers map[string]*mux.Sessions // guarded by mu
	streams map[*mux.Conn]func()     // guarded by mu
}

// New connects to nothing yet. version is what the gateway calls itself.
func New(http HTTP, version string) *Client {
	c := &Client{http: http, version: version, servers: map[string]*mux.Sessions{}, streams: map[*mux.Conn]func(){}}
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

// Do sends one message of the pipeline.
func (c *Client) Do(ctx context.Context, req *upstream.Request) (*upstream.Response, error) {
	c.mu.Lock()
	s := c.servers[req.URL]
	if s == nil {
		if len(c.servers) >= maxServers {
			c.mu.Unlock()
			return nil, upstream.ErrBusy
		}
		s = mux.NewSessions(mux.Opening{Open: c.open, Hang: c.hang, MaxSessions: maxSessions})
		c.servers[req.URL] = s
	}
	c.mu.Unlock()
	return s.Do(ctx, req)
}

// Sweep ends the streams that nobody has used for long.
func (c *Client) Sweep() {
	c.mu.Lock()
	all := make([]*mux.Sessions, 0, len(c.servers))
	for _, s := range c.servers {
		all = append(all, s)
	}
	c.mu.Unlock()
	for _, s := range all {
		s.Sweep()
	}
}

// Close ends every stream and returns when they have ended.
func (c *Client) Close() {
	c.end()
	c.running.Wait()
}

func (c *Client) hang(conn *mux.Conn) {
	c.mu.Lock()
	end := c.streams[conn]
	c.mu.Unlock()
	if end != nil {
		end()
	}
}

// open opens the stream and waits for the address that it names. The credentials of the request that it is opened for stay
// with it.
func (c *Client) open(ctx context.Context, req *upstream.Request) (*mux.Conn, error) {
	base, err := url.Parse(strings.TrimPrefix(req.URL, Scheme))
	if err != nil {
		return nil, fmt.Errorf("%w: its address is malformed", upstream.ErrUnavailable)
	}
	set := http.Header{}
	for k, v := range req.Set {
		set[k] = v
	}
	for _, k := range []string{mcp.HeaderSession, mcp.HeaderVersion, mcp.HeaderMethod, mcp.HeaderName} {
		set[k] = nil
	}
	life, end := context.WithCancel(c.life)
	stopped := context.AfterFunc(ctx, end) // the wait for the stream's head and its first event is the caller's
	resp, err := c.http.Do(life, &upstream.Request{URL: base.String(), Method: http.MethodGet, Identity: req.Identity, Set: set, Long: true})
	if err != nil {
		end()
		return nil, errors.Join(ctx.Err(), err)
	}
	refuse := func(err error) (*mux.Conn, error) {
		end()
		resp.Close()
		return nil, errors.Join(ctx.Err(), err)
	}
	if resp.Events == nil {
		return refuse(fmt.Errorf("%w: it opens no event stream", upstream.ErrProtocol))
	}
	first, err := resp.Events.Next()
	if err != nil {
		return refuse(fmt.Errorf("%w: it closed its stream", upstream.ErrProtocol))
	}
	endpoint, err := Endpoint(base, first)
	if err != nil {
		return refuse(err)
	}
	if !stopped() {
		return refuse(ctx.Err())
	}
	conn := mux.New(mux.Config{Version: c.version, Send: func(b []byte) error {
		ctx, cancel := context.WithTimeout(life, postTimeout)
		defer cancel()
		return c.post(ctx, &upstream.Request{URL: endpoint, Method: http.MethodPost, Identity: req.Identity, Set: set, Body: b})
	}})
	c.mu.Lock()
	c.streams[conn] = end
	c.mu.Unlock()
	c.running.Go(func() {
		defer end()
		defer resp.Close()
		err := read(life, resp.Events, conn)
		conn.Close(errors.Join(upstream.ErrBroken, err))
		c.mu.Lock()
		delete(c.streams, conn)
		c.mu.Unlock()
	})
	return conn, nil
}

func read(ctx context.Context, events *mcp.EventReader, conn *mux.Conn) error {
	for {
		ev, err := events.Next()
		if err != nil || ctx.Err() != nil {
			return err
		}
		if len(ev.Data) > 0 {
			conn.Receive(bytes.Clone(ev.Data))
		}
	}
}

func (c *Client) post(ctx context.Context, req *upstream.Request) error {
	resp, err := c.http.Do(ctx, req)
	if err != nil {
		return err
	}
	defer resp.Close()
	if resp.Status >= http.StatusMultipleChoices {
		return fmt.Errorf("the message was answered with status %d", resp.Status)
	}
	return nil
}

// Endpoint reads the first event of a stream. The address that it names must be of the origin of the stream: a server could
// else have the gateway post a caller's words, and its own credential, to any address that it likes.
func Endpoint(base *url.URL, ev mcp.Event) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%w: its stream does not begin with the address to post to: %s", upstream.ErrProtocol, why)
	}
	name := ""
	for line := range bytes.SplitSeq(bytes.ReplaceAll(ev.Raw, []byte("\r"), []byte("\n")), []byte("\n")) {
		if k, v, _ := bytes.Cut(line, []byte(":")); string(k) == "event" {
			name = string(bytes.TrimPrefix(v, []byte(" ")))
		}
	}
	if name != "endpoint" || len(ev.Data) == 0 || len(ev.Data) > maxEndpoint {
		return bad("no endpoint event")
	}
	ref, err := url.Parse(string(ev.Data))
	if err != nil {
		return bad("no URL")
	}
	u := base.ResolveReference(ref)
	if u.Scheme != base.Scheme || !strings.EqualFold(u.Host, base.Host) || u.User != nil || u.Opaque != "" {
		return bad("it is of another origin")
	}
	u.Fragment, u.RawFragment = "", ""
	return u.String(), nil
}
