package cell

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/kit/run"
)

// addQUIC serves h as HTTP/3 at the address of the TLS listener, on UDP, and returns the handler for that listener, whose
// answers say so.
func (n *Node) addQUIC(g *run.Group, cfg edge.Config, tcp net.Addr, h http.Handler) (http.Handler, error) {
	if n.cfg.Listen.HTTP3 == http3Off {
		return h, nil
	}
	at, err := netip.ParseAddrPort(tcp.String())
	if err != nil {
		return nil, fmt.Errorf("quic listener: %w", err)
	}
	socket, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, fmt.Errorf("quic listener, which `listen.http3: off` spares: %w", err)
	}
	cfg.Name = "quic"
	s, err := edge.NewQUIC(cfg, socket, h, n.log)
	if err != nil {
		return nil, err
	}
	g.Add("front quic", s, cfg.Grace+2*time.Second)
	return edge.Announce(n.publicPort(at.Port()), h), nil
}

// publicPort is the port at which clients reach the TLS listener: that of the first https address that they type, or the
// listener's own.
func (n *Node) publicPort(own uint16) int {
	for _, raw := range n.cfg.PublicURLs {
		u, err := url.Parse(raw)
		if err != nil || u.Scheme != "https" {
			continue
		}
		const https = 443
		if u.Port() == "" {
			return https
		}
		if port, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
			return int(port)
		}
	}
	return int(own)
}
