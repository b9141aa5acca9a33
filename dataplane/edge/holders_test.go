package edge_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"

	"github.com/mcpvault/mcpvault/dataplane/edge"
)

// certified is a client's configuration with a certificate to show: any will do, since the test judges it.
func certified(base *tls.Config) *tls.Config {
	c := base.Clone()
	c.Certificates, _ = donor()
	return c
}

// A stream that was opened with a certificate ends within five seconds of the moment at which that is good no more, and so does
// an idle connection; those without a certificate, which have tokens, go on.
func TestAConnectionEndsWithTheCertificateOfItsClient(t *testing.T) {
	t.Parallel()
	onBoth(t, func(t *testing.T, front edge.Front) {
		var bad atomic.Bool
		gone := make(chan struct{}, 4)
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "begun\n")
			_ = http.NewResponseController(w).Flush()
			if r.URL.Path == "/stream" {
				<-r.Context().Done()
				gone <- struct{}{}
			}
		})
		cfg := edge.Config{Front: front, VerifyClient: func(net.Addr, string, []*x509.Certificate) error {
			if bad.Load() {
				return errors.New("expired")
			}
			return nil
		}}
		addr, client, stop := overTLS(t, cfg, h)
		defer func() { _ = stop() }()
		for _, protocol := range []string{"http/1.1", "h2"} {
			bad.Store(false)
			stream := func(path string, c *tls.Config) *bufio.Reader {
				t.Helper()
				c.NextProtos = []string{protocol}
				tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: protocol == "h2"}
				t.Cleanup(tr.CloseIdleConnections)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				t.Cleanup(cancel)
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := tr.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = res.Body.Close() })
				body := bufio.NewReader(res.Body)
				if line, err := body.ReadString('\n'); err != nil || line != "begun\n" {
					t.Fatalf("%q %v", line, err)
				}
				return body
			}
			held, token := stream("/stream", certified(client)), stream("/stream", client.Clone())
			idle := certified(client)
			idle.NextProtos = []string{protocol}
			conn, err := (&tls.Dialer{Config: idle}).DialContext(t.Context(), "tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			// It is watched over more than one round before.
			time.Sleep(1100 * time.Millisecond)
			began := time.Now()
			bad.Store(true)
			if _, err := held.ReadByte(); err == nil {
				t.Fatal("the stream brought more")
			}
			within(t, "the end of the request", gone)
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			var timeout net.Error
			if _, err := io.Copy(io.Discard, conn); errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("%s: an idle connection stays", protocol)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("%s: it took %s", protocol, took)
			}
			more := make(chan struct{})
			go func() { _, _ = token.ReadByte(); close(more) }()
			select {
			case <-more:
				t.Errorf("%s: the stream of a caller without a certificate was ended", protocol)
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
}

func TestAConnectionOverQUICEndsWithTheCertificateOfItsClient(t *testing.T) {
	t.Parallel()
	var bad atomic.Bool
	gone := make(chan struct{}, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begun\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- struct{}{}
	})
	addr, stop := startQUIC(t, edge.Config{VerifyClient: func(net.Addr, string, []*x509.Certificate) error {
		if bad.Load() {
			return errors.New("expired")
		}
		return nil
	}}, h)
	defer func() { _ = stop() }()
	tr := &http3.Transport{TLSClientConfig: certified(clientTLS())}
	defer func() { _ = tr.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	res, err := tr.RoundTrip(get(ctx, t, addr))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body := bufio.NewReader(res.Body)
	if _, err := body.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	bad.Store(true)
	if _, err := body.ReadByte(); err == nil {
		t.Fatal("the stream brought more")
	}
	within(t, "the end of the request", gone)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}
