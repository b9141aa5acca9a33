package consensus

import (
	"context"
	"crypto/tls"
	"errors"
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

// stream is Raft's transport: TLS 1.3 with SVIDs on both sides. Addresses in the log are node names; where a name is
// found is this node's own business, and who answers there must prove the name.
type stream struct {
	cfg    *Config
	n      *Node
	log    *slog.Logger
	ln     net.Listener
	server *tls.Config

	accepted chan net.Conn
	slots    chan struct{}
	// life ends with the stream.
	life context.Context
	end  context.CancelFunc
	once sync.Once
	wg   sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[*tracked]string
}

func listen(n *Node) (*stream, error) {
	cfg, log := &n.cfg, n.log
	life, end := context.WithCancel(context.Background())
	ln, err := (&net.ListenConfig{}).Listen(life, "tcp", cfg.Bind)
	if err != nil {
		end()
		return nil, err
	}
	s := &stream{
		cfg: cfg, n: n, log: log, ln: ln,
		accepted: make(chan net.Conn), slots: make(chan struct{}, maxHandshakes),
		conns: map[*tracked]string{}, life: life, end: end,
	}
	s.server = svid.ServerTLS(cfg.Identity, func(peer svid.ID) error {
		_, node, _ := svid.ParseNode(peer.String())
		if err := svid.CellMembers(cfg.TrustDomain, cfg.Cell, node)(peer); err != nil {
			return err
		}
		return s.admit(node)
	}, alpn)
	s.wg.Go(s.acceptLoop)
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

func (s *stream) acceptLoop() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, most likely: do not spin.
			select {
			case <-s.life.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		select {
		case s.slots <- struct{}{}:
			s.wg.Go(func() {
				defer func() { <-s.slots }()
				s.handshake(conn)
			})
		case <-s.life.Done():
			_ = conn.Close()
			return
		}
	}
}

// handshake lets a member in. Until it is over the connection can hold nothing but one of the slots.
func (s *stream) handshake(raw net.Conn) {
	ctx, cancel := context.WithTimeout(s.life, handshakeLimit)
	defer cancel()
	conn := s.track(tls.Server(raw, s.server), "")
	if conn == nil {
		return
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		s.log.Warn("a connection to the log was refused", "remote", raw.RemoteAddr().String(), "error", err)
		_ = conn.Close()
		return
	}
	if peer, err := svid.PeerID(conn.ConnectionState()); err == nil {
		_, node, _ := svid.ParseNode(peer)
		s.name(conn, node)
	}
	select {
	case s.accepted <- conn:
	case <-s.life.Done():
		_ = conn.Close()
	}
}

// tracked is a connection that ends with the stream, or at its age.
type tracked struct {
	*tls.Conn
	s   *stream
	age *time.Timer
}

func (c *tracked) Close() error {
	c.age.Stop()
	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

// abandon closes without a TLS farewell, which may wait for a peer that is cut off.
func (c *tracked) abandon() {
	_ = c.NetConn().Close()
	_ = c.Close()
}

// track returns nil when the stream is closed already; the connection is closed then.
func (s *stream) track(conn *tls.Conn, node string) *tracked {
	c := &tracked{Conn: conn, s: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.life.Done():
		_ = conn.NetConn().Close()
		return nil
	default:
	}
	c.age = time.AfterFunc(maxConnAge, c.abandon)
	s.conns[c] = node
	return c
}

// name notes whose connection it is.
func (s *stream) name(c *tracked, node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, open := s.conns[c]; open {
		s.conns[c] = node
	}
}

// recheck closes the connections of members that are not admitted any more, or whose SVIDs are worth nothing any more.
func (s *stream) recheck() {
	s.mu.Lock()
	open := maps.Clone(s.conns)
	s.mu.Unlock()
	for c, node := range open {
		if node == "" {
			continue
		}
		err := s.admit(node)
		if err == nil {
			_, _, _, err = svid.Standing(s.cfg.Identity, c.ConnectionState().PeerCertificates, time.Now())
		}
		if err != nil {
			s.log.Warn("a member is no longer admitted to the log", "peer", node, "error", err)
			c.abandon()
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
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn := s.track(tls.Client(raw, svid.ClientTLS(s.cfg.Identity, svid.Exactly(id), alpn)), node)
	if conn == nil {
		return nil, net.ErrClosed
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("node %s at %s: %w", node, addr, err)
	}
	return conn, nil
}

// Close ends the listener and every connection, and waits for what it started.
func (s *stream) Close() error {
	var err error
	s.once.Do(func() {
		s.end()
		err = s.ln.Close()
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
