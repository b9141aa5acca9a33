package edge_test

import (
	"context"
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/mcpvault/mcpvault/dataplane/edge"
)

func TestWhatTheLibrariesRefuseIsTold(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		row, want string // want may have two beginnings, one of which is told: who notices first is a matter of luck
		cfg       edge.Config
		do        func(t *testing.T, addr string)
	}{
		{"A19", "127.0.0.1 rapid_reset|unknown http2_conn_ENHANCE_YOUR_CALM", edge.Config{MaxStreams: 16}, func(t *testing.T, addr string) {
			t.Helper()
			c := dialH2(t, addr)
			for range 1000 {
				id, err := c.request(c.fields())
				if err != nil || c.framer.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
					break
				}
			}
		}},
		{"a frame that is none", "unknown http2_frame_ping_length", edge.Config{}, func(t *testing.T, addr string) {
			t.Helper()
			c := dialH2(t, addr)
			_ = c.framer.WriteRawFrame(http2.FramePing, 0, 0, []byte("x"))
			_, _, _ = c.verdict(0)
		}},
		{"A21", "unknown http2_", edge.Config{}, func(t *testing.T, addr string) {
			t.Helper()
			c := dialH2(t, addr)
			id, _ := c.request(c.fields([2]string{":path", "no-path"}))
			_, _, _ = c.verdict(id)
		}},
		{"A24", "127.0.0.1 tls_handshake", edge.Config{}, func(t *testing.T, addr string) {
			t.Helper()
			cfg := clientTLS()
			cfg.MaxVersion = tls.VersionTLS12
			if c, err := (&tls.Dialer{Config: cfg}).DialContext(context.Background(), "tcp", addr); err == nil {
				_ = c.Close()
			}
		}},
	} {
		t.Run(tc.row, func(t *testing.T) {
			t.Parallel()
			var d told
			tc.cfg.Dropped = d.take
			addr := startTLS(t, tc.cfg, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				select {
				case <-r.Context().Done():
				case <-time.After(10 * time.Millisecond):
				}
			}))
			tc.do(t, addr)
			deadline := time.Now().Add(10 * time.Second)
			for !d.has(tc.want) {
				if time.Now().After(deadline) {
					t.Fatalf("%s: nothing was told of %s: %v", tc.row, tc.want, d.n)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

func TestWhoOnlyConnectsAndLeavesIsNotTold(t *testing.T) {
	t.Parallel()
	var d told
	addr := startTLS(t, edge.Config{Dropped: d.take}, hello)
	for range 20 {
		_ = dialFrom(t, "127.0.0.1", addr).Close()
	}
	nextIsServed(t, addr)
	if d.has("") {
		t.Errorf("a probe of a balancer is told of: %v", d.n)
	}
}

// has reports whether something that begins so was told.
func (d *told) has(what string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range d.n {
		for begin := range strings.SplitSeq(what, "|") {
			if strings.HasPrefix(k, begin) {
				return true
			}
		}
	}
	return false
}
