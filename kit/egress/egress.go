// Package egress makes connections to places that somebody else has named: upstream servers, issuers, sinks. It promises
// that no name, redirect, proxy variable or spelling of an address leads to a host inside: what is judged is the address
// that the socket is about to connect to, after every resolution, and a connection that is refused sends no packet.
//
// Public addresses are open, but for those of this host itself. Everything else is closed unless the node's own configuration names it as "CIDR:port".
package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// ErrBlocked is in the chain of the error of a connection that was refused here; the error's text says which range.
var ErrBlocked = errors.New("destination is not allowed")

// ErrRedirect is in the chain of the error when a server answers with a redirect.
var ErrRedirect = errors.New("redirects are not followed")

const (
	connectLimit   = 5 * time.Second
	handshakeLimit = 5 * time.Second
	idleLimit      = 90 * time.Second
	maxHeaderBytes = 64 << 10
)

// Guard decides which addresses may be connected to.
type Guard struct {
	allow []entry
	dial  net.Dialer
	own   ownAddresses
}

// entry is one line of the allow-list; port 0 is every port.
type entry struct {
	prefix netip.Prefix
	port   uint16
}

// NewGuard takes the allow-list: entries such as "10.1.0.0/16:443", "127.0.0.0/8:*" or "[fd00::/8]:8443". An address
// without a length is that one host. All entries that cannot be taken are told in one problem (invalid).
//
// The unspecified addresses and multicast stay closed whatever the list says, and a cloud's metadata address is opened
// only by an entry for that one host.
func NewGuard(allow []string) (*Guard, error) {
	g := &Guard{}
	var wrong []string
	for _, text := range allow {
		e, err := parseEntry(text)
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%q: %v", text, err))
			continue
		}
		g.allow = append(g.allow, e)
	}
	if len(wrong) > 0 {
		return nil, problem.Newf(problem.Invalid, `write entries as "10.1.0.0/16:443" or "127.0.0.0/8:*"`,
			"the egress allow-list has entries that cannot be read: %s", strings.Join(wrong, "; "))
	}
	g.dial = net.Dialer{Timeout: connectLimit, KeepAlive: idleLimit / 3, ControlContext: g.control}
	return g, nil
}

func parseEntry(text string) (entry, error) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return entry{}, errors.New("the port is missing")
	}
	var e entry
	if portText := text[i+1:]; portText != "*" {
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || port == 0 {
			return entry{}, errors.New("the port is neither a number from 1 to 65535 nor *")
		}
		e.port = uint16(port)
	}
	host, bracketed := strings.CutPrefix(text[:i], "[")
	if bracketed {
		var closed bool
		if host, closed = strings.CutSuffix(host, "]"); !closed {
			return entry{}, errors.New("the bracket is not closed")
		}
	}
	if !strings.Contains(host, "/") {
		addr, err := netip.ParseAddr(host)
		if err != nil || addr.Zone() != "" || (addr.Is6() && !bracketed) {
			return entry{}, errors.New("neither an address nor a CIDR (IPv6 stands in brackets)")
		}
		addr = addr.Unmap()
		e.prefix = netip.PrefixFrom(addr, addr.BitLen())
		return e, nil
	}
	p, err := netip.ParsePrefix(host)
	switch {
	case err != nil:
		return entry{}, errors.New("not a CIDR")
	case p.Addr().Is4In6():
		return entry{}, errors.New("write it as IPv4")
	case p != p.Masked():
		return entry{}, fmt.Errorf("it has bits behind its length, %s is meant", p.Masked())
	}
	e.prefix = p
	return e, nil
}

// Check returns nil when a connection to the address may be made, else an error with ErrBlocked in its chain.
func (g *Guard) Check(to netip.AddrPort) error {
	addr := to.Addr().WithZone("").Unmap()
	class := Classify(addr)
	if class == Public {
		if !g.own.has(addr) {
			return nil
		}
		class = Own
	}
	if class.mayBeAllowed() {
		for _, e := range g.allow {
			if e.prefix.Contains(addr) && (e.port == 0 || e.port == to.Port()) && (class != Metadata || e.prefix.IsSingleIP()) {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: %s is a %s address", ErrBlocked, to, class)
}

// control runs between the resolution and the connect of each attempt, so that a name that changes its mind gains nothing.
func (g *Guard) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: %s %q", ErrBlocked, network, address)
	}
	return g.Check(to)
}

// DialContext connects over TCP or UDP. Of a name's several addresses, those that are not allowed are passed over.
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
		return g.dial.DialContext(ctx, network, address)
	}
	return nil, fmt.Errorf("%w: network %q", ErrBlocked, network)
}

// Transport is an HTTP transport of this guard. It uses no proxy, whatever the environment says; each call returns a new
// one, whose idle connections the caller closes.
func (g *Guard) Transport() *http.Transport {
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            g.DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    handshakeLimit,
		ForceAttemptHTTP2:      true,
		IdleConnTimeout:        idleLimit,
		MaxIdleConns:           1024,
		MaxIdleConnsPerHost:    64,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
}

// NewTransport is the transport of a new guard.
func NewTransport(allow []string) (*http.Transport, error) {
	g, err := NewGuard(allow)
	if err != nil {
		return nil, err
	}
	return g.Transport(), nil
}

// CheckRedirect is for http.Client: it follows nothing, and the caller sees ErrRedirect. Only the host is named; a
// redirect's path and query may carry what must not be logged.
func CheckRedirect(req *http.Request, _ []*http.Request) error {
	return fmt.Errorf("%w: to %q", ErrRedirect, req.URL.Host)
}
