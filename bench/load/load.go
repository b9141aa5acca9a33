// Package load drives one HTTP/1.1 server with MCP calls in a closed loop and checks every answer. It is lean on purpose:
// on a small machine the driver must not be what is measured.
package load

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Target is what is called.
type Target struct {
	URL   string
	Token string
	Tool  string
	// TLS is nil for plain HTTP.
	TLS *tls.Config
}

// Result is one round.
type Result struct {
	Calls int
	// Wrong are answers to another question or with another payload, Failed the calls that were refused or not answered.
	Wrong, Failed int
	Elapsed       time.Duration
	Each          []time.Duration
	// FirstError is the first of both.
	FirstError error
}

// PerSecond is the rate of right answers.
func (r *Result) PerSecond() float64 { return float64(r.Calls-r.Wrong-r.Failed) / r.Elapsed.Seconds() }

// Run keeps c calls in flight for d.
func Run(ctx context.Context, t Target, c int, d time.Duration) (*Result, error) {
	u, err := url.Parse(t.URL)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, d+10*time.Second)
	defer cancel()
	var mu sync.Mutex
	total := &Result{}
	var wg sync.WaitGroup
	start := time.Now()
	stop := start.Add(d)
	for w := range c {
		wg.Go(func() {
			r := worker(ctx, t, u, w, stop)
			mu.Lock()
			defer mu.Unlock()
			total.Each = append(total.Each, r.Each...)
			total.Wrong += r.Wrong
			total.Failed += r.Failed
			if total.FirstError == nil {
				total.FirstError = r.FirstError
			}
		})
	}
	wg.Wait()
	total.Elapsed = time.Since(start)
	total.Calls = len(total.Each)
	if total.Calls == 0 {
		return nil, fmt.Errorf("no call was answered: %w", total.FirstError)
	}
	return total, nil
}

// errWrong is an answer that is not one to this call.
var errWrong = errors.New("wrong answer")

func worker(ctx context.Context, t Target, u *url.URL, w int, stop time.Time) (r Result) {
	const most = 100
	var c *conn
	defer func() {
		if c != nil {
			_ = c.Close()
		}
	}()
	bad := func(err error) {
		if errors.Is(err, errWrong) {
			r.Wrong++
		} else {
			r.Failed++
		}
		if r.FirstError == nil {
			r.FirstError = err
		}
	}
	for i := 0; time.Now().Before(stop) && ctx.Err() == nil && r.Wrong+r.Failed <= most; i++ {
		if c == nil {
			var err error
			if c, err = dial(ctx, t, u); err != nil {
				bad(err)
				return r
			}
		}
		begin := time.Now()
		err := c.call(t, u, fmt.Sprintf("%d-%d", w, i))
		r.Each = append(r.Each, time.Since(begin))
		if err != nil {
			bad(err)
			_ = c.Close()
			c = nil
		}
	}
	return r
}

type conn struct {
	net.Conn
	r   *bufio.Reader
	out bytes.Buffer
}

func dial(ctx context.Context, t Target, u *url.URL) (*conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	if t.TLS != nil {
		tc := tls.Client(nc, t.TLS)
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		nc = tc
	}
	return &conn{Conn: nc, r: bufio.NewReaderSize(nc, 8<<10)}, nil
}

// call sends one tools/call of the stateless revision with a payload of 128 bytes and checks id and payload.
func (c *conn) call(t Target, u *url.URL, id string) error {
	payload := id + strings.Repeat("x", 128-len(id))
	body := fmt.Sprintf(`{"jsonrpc":"2.0","id":%q,"method":"tools/call","params":{"name":%q,"arguments":{"message":%q},"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"}}}}`, id, t.Tool, payload)
	c.out.Reset()
	fmt.Fprintf(&c.out, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: %s\r\nContent-Length: %d\r\n", u.Path, u.Host, t.Tool, len(body))
	if t.Token != "" {
		c.out.WriteString("Authorization: Bearer " + t.Token + "\r\n")
	}
	c.out.WriteString("\r\n")
	c.out.WriteString(body)
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(c.out.Bytes()); err != nil {
		return err
	}
	answer, err := c.answer()
	if err != nil {
		return err
	}
	switch {
	case !bytes.Contains(answer, []byte(`"id":"`+id+`"`)):
		return fmt.Errorf("%w: %.300s", errWrong, answer)
	case bytes.Contains(answer, []byte(`"error":{`)), bytes.Contains(answer, []byte(`"isError":true`)):
		return fmt.Errorf("refused: %.300s", answer)
	case !bytes.Contains(answer, []byte(payload)):
		return fmt.Errorf("%w: %.300s", errWrong, answer)
	}
	return nil
}

func (c *conn) answer() ([]byte, error) {
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	status := string(bytes.TrimSpace(line))
	length, chunked := -1, false
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			break
		}
		key, value, _ := bytes.Cut(line, []byte(":"))
		switch strings.ToLower(string(key)) {
		case "content-length":
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return nil, err
			}
		case "transfer-encoding":
			chunked = true
		}
	}
	var body []byte
	switch {
	case chunked:
		body, err = c.chunks()
	case length >= 0:
		body = make([]byte, length)
		_, err = io.ReadFull(c.r, body)
	default:
		err = errors.New("an answer without a length")
	}
	if err == nil && !strings.HasPrefix(status, "HTTP/1.1 200") {
		err = fmt.Errorf("%s: %.300s", status, body)
	}
	return body, err
}

func (c *conn) chunks() ([]byte, error) {
	var body []byte
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return nil, err
		}
		chunk := make([]byte, n+2)
		if _, err := io.ReadFull(c.r, chunk); err != nil {
			return nil, err
		}
		if n == 0 {
			return body, nil
		}
		body = append(body, chunk[:n]...)
	}
}

// Once makes one call on a connection of its own.
func Once(ctx context.Context, t Target) error {
	u, err := url.Parse(t.URL)
	if err != nil {
		return err
	}
	c, err := dial(ctx, t, u)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return c.call(t, u, "once")
}
