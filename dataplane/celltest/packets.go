package celltest

import (
	"context"
	"net"
	"net/netip"
	"sync"
)

// relayPackets carries datagrams from whoever sends them to the destination, and its answers back. A link that is cut loses them,
// as a network does.
func (n *network) relayPackets(p pair, in *net.UDPConn) {
	var mu sync.Mutex
	out := map[netip.AddrPort]*net.UDPConn{} // by sender
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range out {
			_ = c.Close()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		size, from, err := in.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		addr := n.addr(p.to)
		if addr == "" || !n.link(p.from, p.to).passes() {
			continue
		}
		mu.Lock()
		c := out[from]
		if c == nil || c.RemoteAddr().String() != addr {
			if c != nil {
				_ = c.Close()
			}
			raw, err := (&net.Dialer{}).DialContext(context.Background(), "udp", addr)
			if err != nil {
				mu.Unlock()
				continue
			}
			c = raw.(*net.UDPConn) //nolint:forcetypeassert // it is one
			out[from] = c
			n.wg.Go(func() { n.answers(p, c, in, from) })
		}
		mu.Unlock()
		_, _ = c.Write(buf[:size])
	}
}

// answers carries datagrams back to one sender.
func (n *network) answers(p pair, from, in *net.UDPConn, to netip.AddrPort) {
	buf := make([]byte, 64<<10)
	for {
		size, err := from.Read(buf)
		if err != nil {
			return
		}
		if n.link(p.to, p.from).passes() {
			_, _ = in.WriteToUDPAddrPort(buf[:size], to)
		}
	}
}

// passes reports whether the link is open now.
func (l *link) passes() bool {
	select {
	case <-l.wait():
		return true
	default:
		return false
	}
}
