package consensus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mcpvault/mcpvault/kit/svid"
)

const (
	// alpn keeps a connection meant for another listener of the house from being taken here.
	alpn           = "mcpvault-raft"
	handshakeLimit = 5 * time.Second
	// maxHandshakes bounds strangers who connect and say nothing.
	maxHandshakes = 64
	// maxConnAge makes every member prove itself anew from time to time.
	maxConnAge = 15 * time.Minute
)

// stream is Raft's transport: TLS 1.3 with SVIDs on both sides, over TCP or QUIC. Addresses in the log are node names; where a
// name is found is this node's own business, and who answers there must prove the name.
type stream struct {
	cfg  *Config
	n    *Node
	log  *slog.Logger
	wire wire

	accepted chan net.Conn
	// life ends with the stream.
	life context.Context
	end  context.CancelFunc
	once sync.Once
	wg   sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[*tracked]string
}

// wire is what carries the bytes.
type wire interface {
	// accept lets in whom the TLS configuration lets in and hands on what they open, until the stream's life ends.
	accept(s *stream)
	// dial connects to a member at an address.
	dial(ctx context.Context, s *stream, node, addr string, cfg *tls.Config) (net.Conn, error)
	addr() net.Addr
	close() error
}

func listen(n *Node) (*stream, error) {
	life, end := context.WithCancel(context.Background())
	s := &stream{
		cfg: &n.cfg, n: n, log: n.log, accepted: make(chan net.Conn), conns: map[*tracked]string{}, life: life, end: end,
	}
	server := svid.ServerTLS(n.cfg.Identity, func(peer svid.ID) error {
		_, node, _ := svid.ParseNode(peer.String())
		if err := svid.CellMembers(n.cfg.TrustDomain, n.cfg.Cell, node)(peer); err != nil {
			return err
		}
		return s.admit(node)
	}, alpn)
	var err error
	switch n.cfg.Transport {
	case QUIC:
		s.wire, err = listenQUIC(n.cfg.Bind, server, n.log)
	default:
		s.wire, err = listenTCP(life, n.cfg.Bind, server)
	}
	if err != nil {
		end()
		return nil, err
	}
	s.wg.Go(func() { s.wire.accept(s) })
	return s, nil
}

// admit holds a name to the list of members as it is now, and to what the caller says of it.
func (s *stream) admit(node string) error {
	if err := s.n.IsMember(node); err != nil {
		return err
	}
	if s.cfg.Admit == nil {
		return nil
	}
	return s.cfg.Admit(node)
}

// hand gives a connection of a member to Raft, or closes it.
func (s *stream) hand(conn net.Conn) {
	select {
	case s.accepted <- conn:
	case <-s.life.Done():
		_ = conn.Close()
	}
}

// tracked is something that ends with the stream, with its member's membership, or at its age.
type tracked struct {
	s   *stream
	age *time.Timer
	// chain is what its member has shown, nil before the handshake is over.
	chain []*x509.Certificate // guarded by s.mu
	// cut ends it at once, without a farewell that may wait for a peer that is cut off.
	cut func()
}

// forget is for what has ended by itself.
func (t *tracked) forget() {
	t.age.Stop()
	t.s.mu.Lock()
	defer t.s.mu.Unlock()
	delete(t.s.conns, t)
}

func (t *tracked) abandon() {
	t.cut()
	t.forget()
}

// track returns nil when the stream is closed already; what it would have kept is cut then.
func (s *stream) track(node string, cut func()) *tracked {
	t := &tracked{s: s, cut: cut}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.life.Done():
		cut()
		return nil
	default:
	}
	t.age = time.AfterFunc(maxConnAge, t.abandon)
	s.conns[t] = node
	return t
}

// name notes whose it is, by the certificates that the handshake has verified.
func (s *stream) name(t *tracked, state tls.ConnectionState) {
	peer, err := svid.PeerID(state)
	if err != nil {
		return
	}
	_, node, _ := svid.ParseNode(peer)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := s.conns[t]; open {
		s.conns[t], t.chain = node, state.PeerCertificates
	}
}

// recheck closes the connections of members that are not admitted any more, or whose SVIDs are worth nothing any more.
func (s *stream) recheck() {
	type member struct {
		t     *tracked
		node  string
		chain []*x509.Certificate
	}
	var open []member
	s.mu.Lock()
	for t, node := range s.conns {
		if node != "" {
			open = append(open, member{t, node, t.chain})
		}
	}
	s.mu.Unlock()
	for _, m := range open {
		err := s.admit(m.node)
		if err == nil && m.chain != nil {
			_, _, _, err = svid.Standing(s.cfg.Identity, m.chain, time.Now())
		}
		if err != nil {
			s.log.Warn("a member is no longer admitted to the log", "peer", m.node, "error", err)
			m.t.abandon()
		}
	}
}

// Accept returns the next connection of a member.
func (s *stream) Accept() (net.Conn, error) {
	select {
	case conn := <-s.accepted:
		return conn, nil
	case <-s.life.Done():
		return nil, net.ErrClosed
	}
}

// Dial connects to the member that a name in the log means. Whoever answers at its address must be that member.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	node := string(address)
	if err := s.admit(node); err != nil {
		return nil, err
	}
	addr := s.n.addressOf(node)
	if addr == "" {
		return nil, fmt.Errorf("nobody knows where node %q of cell %s is", node, s.cfg.Cell)
	}
	id, err := svid.NodeID(s.cfg.TrustDomain, s.cfg.Cell, node)
	if err != nil {
		return nil, err
	}
	if timeout <= 0 || timeout > handshakeLimit {
		timeout = handshakeLimit
	}
	ctx, cancel := context.WithTimeout(s.life, timeout)
	defer cancel()
	conn, err := s.wire.dial(ctx, s, node, addr, svid.ClientTLS(s.cfg.Identity, svid.Exactly(id), alpn))
	if err != nil {
		return nil, fmt.Errorf("node %s at %s: %w", node, addr, err)
	}
	return conn, nil
}

// Close ends the listener and every connection, and waits for what it started.
func (s *stream) Close() error {
	var err error
	s.once.Do(func() {
		s.end()
		err = s.wire.close()
		s.mu.Lock()
		open := maps.Clone(s.conns)
		s.mu.Unlock()
		for c := range open {
			c.abandon()
		}
	})
	s.wg.Wait()
	return err
}

// Addr is this node's address as the log knows it: its name.
func (s *stream) Addr() net.Addr { return nameAddr(s.cfg.Node) }

type nameAddr string

func (nameAddr) Network() string  { return "mcpvault" }
func (a nameAddr) String() string { return string(a) }
