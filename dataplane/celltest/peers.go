package celltest

import (
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/peers"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// Serve answers at a node what its peers ask beside the log, over mTLS, until the test ends or Serve is called again.
func (c *Cell) Serve(name string, h http.Handler) {
	c.t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(c.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	srv := &http.Server{
		Handler: h, Protocols: protocols, ReadHeaderTimeout: 5 * time.Second,
		TLSConfig: svid.ServerTLS(c.identity(name), svid.CellMembers(TrustDomain, CellName, c.Names...), "h2"),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.ServeTLS(ln, "", "")
	}()
	c.t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serving[name] = ln.Addr().String()
}

// Peers is how a node reaches what the others serve, through links that Cut cuts.
func (c *Cell) Peers(name string) *peers.Set {
	c.t.Helper()
	addrs := map[string]string{}
	for _, p := range c.beside.peersOf(name) {
		if p.Node != name {
			addrs[p.Node] = p.Addr
		}
	}
	id := c.identity(name)
	return peers.NewSet(addrs, func(node string) http.RoundTripper {
		protocols := new(http.Protocols)
		protocols.SetHTTP2(true)
		t := &http.Transport{
			TLSClientConfig: svid.ClientTLS(id, svid.CellMembers(TrustDomain, CellName, node), "h2"), Protocols: protocols,
			TLSHandshakeTimeout: 2 * time.Second,
		}
		c.t.Cleanup(t.CloseIdleConnections)
		return t
	})
}

func (c *Cell) identity(name string) *svid.Source {
	c.t.Helper()
	src, err := svid.Open(c.t.Context(), svid.Config{Dir: filepath.Join(c.Node(name).Dir, "identity"), Logger: testLogger(c.t, name)})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = src.Close() })
	return src
}

// servingAt is where a node serves its peers now; empty while it does not.
func (c *Cell) servingAt(name string) string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.serving[name]
}
