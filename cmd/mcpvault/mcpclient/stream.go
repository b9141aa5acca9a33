package mcpclient

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"

	"github.com/mcpvault/mcpvault/kit/nearest"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Bounds on what a server may send for one request.
const (
	maxAnswer = 64 << 20
	maxEvent  = 16 << 20
)

// NewHTTP returns a client that follows no redirect: the token would go along.
func NewHTTP(base http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     base,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (c *Client) newRequest(ctx context.Context, method string, body []byte, headers map[string]string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return nil, problem.Newf(problem.Invalid, "check mcp_urls of the context", "%q is not an address", c.cfg.URL).Because(err)
	}
	if c.cfg.Host != "" {
		req.Host = c.cfg.Host
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, text/event-stream")
	if c.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.cfg.Token)
	}
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	return req, nil
}

// post sends one message and reads what comes back for it. With id 0 no answer is expected.
func (c *Client) post(ctx context.Context, body []byte, headers map[string]string, id int) (*Answer, http.Header, error) {
	req, err := c.newRequest(ctx, http.MethodPost, body, headers)
	if err != nil {
		return nil, nil, err
	}
	resp, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return nil, nil, c.sendError(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, nil, problem.New(problem.Unauthenticated, "the cell does not accept the token"+challenge(resp.Header),
			"get a new one with `mcpvault token create`, or log in with `mcpvault login`")
	}
	a := &Answer{Status: resp.StatusCode, Decision: decisionOf(resp.Header)}
	if id == 0 {
		return a, resp.Header, nil
	}
	limited := &io.LimitedReader{R: resp.Body, N: maxAnswer + 1}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if media == "text/event-stream" {
		err = c.readStream(limited, a, id)
	} else {
		err = readSingle(limited, a, id)
	}
	if err != nil {
		return nil, nil, c.readError(ctx, err)
	}
	return a, resp.Header, nil
}

// challenge adds what a 401 says about itself, in the words of RFC 6750.
func challenge(h http.Header) string {
	if strings.Contains(h.Get("WWW-Authenticate"), `error="invalid_token"`) {
		return ": it is expired, revoked or meant for somebody else"
	}
	return ""
}

func (c *Client) sendError(ctx context.Context, err error) error {
	if timedOut(ctx, err) {
		return problem.Newf(problem.Timeout, "raise --timeout, or look with `mcpvault cell status`", "no answer from %s in time", c.cfg.URL).Because(err)
	}
	if errors.Is(err, nearest.ErrUnknownOutcome) {
		return problem.Newf(problem.Unavailable, outcomeUnknown, "%v", err).Because(err)
	}
	return problem.Newf(problem.Unavailable, "look with `mcpvault doctor`", "%s cannot be reached", c.cfg.URL).Because(err)
}

// outcomeUnknown is the next step after a call that may or may not have been made.
const outcomeUnknown = "the call may have been made: look with `mcpvault audit tail`"

func (c *Client) readError(ctx context.Context, err error) error {
	if timedOut(ctx, err) {
		return problem.Newf(problem.Timeout, outcomeUnknown,
			"the answer from %s did not end in time", c.cfg.URL).Because(err)
	}
	return problem.Newf(problem.Unavailable, outcomeUnknown,
		"the answer from %s is not to be read", c.cfg.URL).Because(err)
}

func timedOut(ctx context.Context, err error) bool {
	var ne net.Error
	return ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded) || (errors.As(err, &ne) && ne.Timeout())
}

// message is any JSON-RPC message from the server.
type message struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *RPCError       `json:"error"`
}

func readSingle(r *io.LimitedReader, a *Answer, id int) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if r.N <= 0 {
		return fmt.Errorf("it is larger than %d bytes", maxAnswer)
	}
	var m message
	if err := json.Unmarshal(raw, &m); err != nil || (m.Result == nil && m.Error == nil) {
		if a.Status >= 400 {
			return nil // A refusal that is no JSON-RPC: the status says it.
		}
		return fmt.Errorf("it is not a JSON-RPC answer (HTTP %d)", a.Status)
	}
	if m.Error == nil && !isID(m.ID, id) {
		return fmt.Errorf("it answers another request (id %.64s)", m.ID)
	}
	a.Result, a.Error = m.Result, m.Error
	return nil
}

// readStream reads server-sent events up to the one that answers id.
func (c *Client) readStream(r *io.LimitedReader, a *Answer, id int) error {
	in := bufio.NewReaderSize(r, 64<<10)
	var data []byte
	for {
		line, err := readLine(in)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("the stream ended without the answer")
			}
			return err
		}
		switch {
		case len(line) == 0:
			if done, err := c.event(data, a, id); done || err != nil {
				return err
			}
			data = data[:0]
		case bytes.HasPrefix(line, []byte("data:")):
			if len(data) > 0 {
				data = append(data, '\n')
			}
			data = append(data, bytes.TrimPrefix(line[len("data:"):], []byte(" "))...)
			if len(data) > maxEvent {
				return fmt.Errorf("an event is larger than %d bytes", maxEvent)
			}
		}
	}
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxEvent {
			return nil, fmt.Errorf("an event is larger than %d bytes", maxEvent)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return bytes.TrimRight(line, "\r\n"), nil
	}
}

func (c *Client) event(data []byte, a *Answer, id int) (done bool, err error) {
	if len(data) == 0 {
		return false, nil // A comment, or an event that only carries an id.
	}
	var m message
	if err := json.Unmarshal(data, &m); err != nil {
		return false, fmt.Errorf("an event is not JSON-RPC: %w", err)
	}
	if m.Method != "" {
		if c.cfg.Notify != nil && len(m.ID) == 0 {
			c.cfg.Notify(m.Method, m.Params)
		}
		return false, nil // No capability was offered, so no request of the server needs an answer.
	}
	if (m.Result == nil && m.Error == nil) || !isID(m.ID, id) {
		return false, nil
	}
	a.Result, a.Error = m.Result, m.Error
	return true, nil
}

func isID(raw json.RawMessage, id int) bool { return string(bytes.TrimSpace(raw)) == fmt.Sprint(id) }

// StatusProblem words an HTTP refusal that says nothing more.
func StatusProblem(status int) error {
	switch {
	case status == http.StatusForbidden:
		return problem.New(problem.Denied, "the cell refuses the request (HTTP 403)", "check the address and the token's scope")
	case status == http.StatusNotFound:
		return problem.New(problem.NotFound, "there is no MCP endpoint (HTTP 404)", "check mcp_urls of the context: they end in /mcp")
	case status == http.StatusTooManyRequests:
		return problem.New(problem.Exhausted, "the cell takes no more requests of this caller now (HTTP 429)", "try again in a moment")
	case status >= 500:
		return problem.Newf(problem.Unavailable, "look with `mcpvault cell status`", "the cell cannot answer (HTTP %d)", status)
	}
	return problem.Newf(problem.Internal, "", "the cell refuses the request (HTTP %d)", status)
}
