package edge

import (
	"context"
	"crypto/x509"
	"net"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/kit/run"
)

// holdersEvery is how often the certificates of live connections are judged again: two rounds fit into five seconds.
const holdersEvery = time.Second

// holders are the live connections whose clients have shown certificates. A handshake says that a certificate is good at one
// moment; when it has expired, or is believed no more, the connection ends with everything on it.
type holders struct {
	verify VerifyClient

	mu   sync.Mutex // guards open
	open map[*holder]struct{}
}

// holder is one of them.
type holder struct {
	from  net.Addr
	host  string
	chain []*x509.Certificate
	end   func()
	ended func() bool
}

func newHolders(verify VerifyClient) *holders {
	return &holders{verify: verify, open: map[*holder]struct{}{}}
}

// add watches a connection that the handshake has let in. Without a certificate, or anybody to judge it, there is nothing to
// watch.
func (h *holders) add(c holder) {
	if h.verify == nil || len(c.chain) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open[&c] = struct{}{}
}

// run judges until ctx ends.
func (h *holders) run(ctx context.Context) {
	if h.verify == nil {
		return
	}
	_ = run.Every(ctx, holdersEvery, func(context.Context) { h.check() })
}

func (h *holders) check() {
	h.mu.Lock()
	all := make([]*holder, 0, len(h.open))
	for c := range h.open {
		if c.ended() {
			delete(h.open, c)
		} else {
			all = append(all, c)
		}
	}
	h.mu.Unlock()
	for _, c := range all {
		if h.verify(c.from, c.host, c.chain) == nil {
			continue
		}
		h.mu.Lock()
		delete(h.open, c)
		h.mu.Unlock()
		c.end()
	}
}
