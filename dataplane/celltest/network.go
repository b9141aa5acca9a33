package celltest

import (
	"context"
	"net"
	"sync"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/consensus"
)

// network is a relay for each ordered pair of nodes, through which the first reaches the second. What flows on a
// connection in either direction passes the link of that direction.
type network struct {
	addr  func(node string) string
	links map[pair]*link
	ways  map[pair]way
	stop  chan struct{}
	wg    sync.WaitGroup

	mu    sync.Mutex // guards all but addr and stop
	conns map[net.Conn]struct{}
}

type pair struct{ from, to string }

// way is a port where one node finds another, over TCP and UDP.
type way struct {
	net.Listener
	packets *net.UDPConn
}

// way takes a port that is free for both.
func (n *network) way(t testing.TB) way {
	t.Helper()
	for range 100 {
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := ln.Addr().(*net.TCPAddr).Port //nolint:forcetypeassert // it is one
		packets, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err == nil {
			return way{ln, packets}
		}
		_ = ln.Close()
	}
	t.Fatal("no port is free for TCP and UDP")
	return way{}
}

func (n *network) start(p pair, w way) {
	n.wg.Go(func() { n.relay(p, w.Listener) })
	n.wg.Go(func() { n.relayPackets(p, w.packets) })
}

// link lets bytes through or holds them, as a network that drops packets does to TCP.
type link struct {
	mu   sync.Mutex
	open chan struct{} // closed while bytes may pass
}

func newLink() *link {
	l := &link{open: make(chan struct{})}
	close(l.open)
	return l
}

func (l *link) set(open bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.open:
		if !open {
			l.open = make(chan struct{})
		}
	default:
		if open {
			close(l.open)
		}
	}
}

func (l *link) wait() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

func newNetwork(t testing.TB, names []string, addr func(string) string) *network {
	t.Helper()
	n := &network{
		addr: addr, links: map[pair]*link{}, ways: map[pair]way{}, stop: make(chan struct{}),
		conns: map[net.Conn]struct{}{},
	}
	for _, from := range names {
		for _, to := range names {
			if from == to {
				continue
			}
			p := pair{from, to}
			n.links[p], n.ways[p] = newLink(), n.way(t)
		}
	}
	for p, ln := range n.ways {
		n.start(p, ln)
	}
	return n
}

// anybody stands for whoever has no way of its own to a node.
const anybody = "*"

// extend makes the ways to and from a further node, and one for all who have not heard of it, whose address it returns.
func (n *network) extend(t testing.TB, names []string, name string) string {
	t.Helper()
	more := map[pair]way{}
	for _, other := range names {
		more[pair{name, other}], more[pair{other, name}] = way{}, way{}
	}
	more[pair{anybody, name}], more[pair{name, anybody}] = way{}, way{}
	for p := range more {
		more[p] = n.way(t)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for p, ln := range more {
		n.links[p], n.ways[p] = newLink(), ln
		n.start(p, ln)
	}
	return more[pair{anybody, name}].Addr().String()
}

func (n *network) link(from, to string) *link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.links[pair{from, to}]
}

// peersOf is the member list as one node sees it.
func (n *network) peersOf(name string) []consensus.Peer {
	peers := []consensus.Peer{{Node: name}}
	n.mu.Lock()
	defer n.mu.Unlock()
	for p, ln := range n.ways {
		if p.from == name && p.to != anybody {
			peers = append(peers, consensus.Peer{Node: p.to, Addr: ln.Addr().String()})
		}
	}
	return peers
}

func (n *network) relay(p pair, ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		if !n.keep(conn) {
			return
		}
		n.wg.Go(func() { n.carry(p, conn) })
	}
}

// carry connects one accepted connection to its destination, when the link is open.
func (n *network) carry(p pair, from net.Conn) {
	defer n.drop(from)
	if !n.pass(n.link(p.from, p.to)) {
		return
	}
	addr := n.addr(p.to)
	if addr == "" {
		return
	}
	to, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", addr)
	if err != nil || !n.keep(to) {
		return
	}
	defer n.drop(to)
	var both sync.WaitGroup
	both.Go(func() { n.pump(to, from, n.link(p.from, p.to)) })
	both.Go(func() { n.pump(from, to, n.link(p.to, p.from)) })
	both.Wait()
}

// pump moves bytes while the link is open. The end of the connection travels on the link too.
func (n *network) pump(dst, src net.Conn, l *link) {
	buf := make([]byte, 64<<10)
	for {
		size, err := src.Read(buf)
		if !n.pass(l) {
			return
		}
		if size > 0 {
			if _, werr := dst.Write(buf[:size]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			_ = dst.Close()
			_ = src.Close()
			return
		}
	}
}

func (n *network) pass(l *link) bool {
	select {
	case <-n.stop:
		return false
	case <-l.wait():
		return true
	}
}

func (n *network) keep(conn net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.stop:
		_ = conn.Close()
		return false
	default:
		n.conns[conn] = struct{}{}
		return true
	}
}

func (n *network) drop(conn net.Conn) {
	_ = conn.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, conn)
}

func (n *network) close() {
	close(n.stop)
	n.mu.Lock()
	for _, w := range n.ways {
		_ = w.Close()
		_ = w.packets.Close()
	}
	for conn := range n.conns {
		_ = conn.Close()
	}
	n.mu.Unlock()
	n.wg.Wait()
}
