package svid

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/mcpvault/mcpvault/kit/run"
)

const (
	// guardEvery is how often connections are looked at; two rounds fit well into the five seconds that are promised.
	guardEvery = time.Second
	// guardGrace is how long a connection goes on after its peer was refused: whoever was turned away is told why.
	guardGrace = 2500 * time.Millisecond
)

// ErrStanding is in the chain of the reason why a live connection was ended.
var ErrStanding = errors.New("the peer's identity is worth nothing any more")

// Guard ends live connections within five seconds of the moment at which they could not be made any more: an SVID has expired,
// the peer's or the own one, the peer's authority is not believed any more, or the authorizer refuses the peer. A handshake proves who somebody is
// at one moment; connections here live for days.
type Guard struct {
	id    Identity
	log   *slog.Logger
	now   func() time.Time
	grace time.Duration

	mu    sync.Mutex // guards what follows, and the same of each connection
	conns map[*guarded]struct{}
}

// NewGuard makes one. Its Run has to run for as long as there are connections; now is nil for time.Now.
func NewGuard(id Identity, log *slog.Logger, now func() time.Time) *Guard {
	if now == nil {
		now = time.Now
	}
	return &Guard{id: id, log: log, now: now, grace: guardGrace, conns: map[*guarded]struct{}{}}
}

// guarded is the connection below TLS.
type guarded struct {
	net.Conn
	g    *Guard
	once sync.Once

	// What follows is guarded by g.mu; it is set when the handshake has ended well.
	peer    ID
	chain   []*x509.Certificate
	stay    Authorizer
	until   time.Time
	bundle  *x509bundle.Bundle
	refused time.Time // when the authorizer said no, at first
}

// Close ends the connection and the watch over it.
func (c *guarded) Close() error {
	c.once.Do(func() {
		c.g.mu.Lock()
		delete(c.g.conns, c)
		c.g.mu.Unlock()
	})
	return c.Conn.Close()
}

// Listen wraps a listener, below TLS, for ServerTLS.
func (g *Guard) Listen(ln net.Listener) net.Listener { return guardedListener{ln, g} }

type guardedListener struct {
	net.Listener
	g *Guard
}

func (l guardedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &guarded{Conn: conn, g: l.g}, nil
}

// ServerTLS is the package's ServerTLS for a listener that Listen has wrapped. It lets in whom allow admits, and watches that
// stay admits them, too, from then on.
func (g *Guard) ServerTLS(allow, stay Authorizer, protocols ...string) *tls.Config {
	cfg := ServerTLS(g.id, allow, protocols...)
	each := cfg.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		raw, ok := hello.Conn.(*guarded)
		if !ok {
			return nil, errors.New("a connection that nobody watches")
		}
		c := each.Clone()
		c.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := each.VerifyConnection(cs); err != nil {
				return err
			}
			return g.watch(raw, cs.PeerCertificates, stay)
		}
		return c, nil
	}
	return cfg
}

// Dial connects to an SVID holder that allow admits, and watches the connection.
func (g *Guard) Dial(ctx context.Context, network, address string, allow Authorizer, protocols ...string) (*tls.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	raw := &guarded{Conn: conn, g: g}
	tc := tls.Client(raw, ClientTLS(g.id, allow, protocols...))
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	if err := g.watch(raw, tc.ConnectionState().PeerCertificates, allow); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return tc, nil
}

func (g *Guard) watch(raw *guarded, chain []*x509.Certificate, stay Authorizer) error {
	peer, until, bundle, err := Standing(g.id, chain, g.now())
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	raw.peer, raw.chain, raw.stay, raw.until, raw.bundle = peer, chain, stay, until, bundle
	g.conns[raw] = struct{}{}
	return nil
}

// ownEnd says that the own SVID has ended: nobody would let this process in.
func ownEnd(id Identity, now time.Time) error {
	own, err := id.GetX509SVID()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStanding, err)
	}
	if until := own.Certificates[0].NotAfter; !now.Before(until) {
		return fmt.Errorf("%w: this process's own SVID has ended at %s", ErrStanding, stamp(until))
	}
	return nil
}

// Standing verifies a chain anew, as of now: who it is of, until when it is good, and by which bundle. It is refused, too, when
// the own SVID has ended.
func Standing(id Identity, chain []*x509.Certificate, now time.Time) (ID, time.Time, *x509bundle.Bundle, error) {
	if err := ownEnd(id, now); err != nil {
		return ID{}, time.Time{}, nil, err
	}
	if len(chain) == 0 {
		return ID{}, time.Time{}, nil, ErrNoPeer
	}
	peer, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return ID{}, time.Time{}, nil, fmt.Errorf("%w: %w", ErrNoPeer, err)
	}
	bundle, err := id.GetX509BundleForTrustDomain(peer.TrustDomain())
	if err != nil {
		return peer, time.Time{}, nil, fmt.Errorf("%w: %w", ErrStanding, err)
	}
	_, chains, err := x509svid.Verify(chain, bundle, x509svid.WithTime(now))
	if err != nil {
		return peer, time.Time{}, nil, fmt.Errorf("%w: %w", ErrStanding, err)
	}
	until := chains[0][0].NotAfter
	for _, c := range chains[0] {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	return peer, until, bundle.Clone(), nil
}

// Run looks at the connections until ctx ends.
func (g *Guard) Run(ctx context.Context) error {
	return run.Every(ctx, guardEvery, func(context.Context) { g.Check() })
}

// Check ends the connections whose peers have lost their standing.
func (g *Guard) Check() {
	now := g.now()
	g.mu.Lock()
	all := make([]*guarded, 0, len(g.conns))
	for c := range g.conns {
		all = append(all, c)
	}
	g.mu.Unlock()
	for _, c := range all {
		if err := g.judge(c, now); err != nil {
			g.log.Warn("a connection was ended", "peer", c.peer.String(), "error", err)
			_ = c.Close()
		}
	}
}

// judge says why a connection is to end. Signatures are verified again only when the bundle is another.
func (g *Guard) judge(c *guarded, now time.Time) error {
	if err := ownEnd(g.id, now); err != nil {
		return err
	}
	bundle, err := g.id.GetX509BundleForTrustDomain(c.peer.TrustDomain())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrStanding, err)
	}
	g.mu.Lock()
	same, until := c.bundle.Equal(bundle), c.until
	g.mu.Unlock()
	if !same || !now.Before(until) {
		_, later, newer, err := Standing(g.id, c.chain, now)
		if err != nil {
			return err
		}
		g.mu.Lock()
		c.until, c.bundle = later, newer
		g.mu.Unlock()
	}
	err = c.stay(c.peer)
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err == nil:
		c.refused = time.Time{}
		return nil
	case c.refused.IsZero():
		c.refused = now
	}
	if now.Sub(c.refused) < g.grace {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrStanding, err)
}
