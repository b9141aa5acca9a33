// Package remote finds out from which address a request really comes. That is the address of the connection, unless the
// connection is from a proxy that the node's configuration names: then it is the nearest address of the forwarding headers
// that is no such proxy.
//
// What stands in those headers left of that address was written by the caller and is not looked at. Where the headers
// leave a doubt, because one is malformed or the two kinds tell different stories, the address is unknown: a condition
// that needs one then does not allow, and does deny.
package remote

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// Proxies are the networks whose word on the caller's address is taken. The zero value trusts nobody.
type Proxies struct {
	nets []netip.Prefix
}

// ParseProxies reads networks in CIDR notation and plain addresses.
func ParseProxies(list []string) (Proxies, error) {
	var p Proxies
	for _, text := range list {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(text); err == nil && a.Zone() == "" {
				n, err = a.Prefix(a.BitLen())
			}
		}
		if err != nil || !n.IsValid() {
			return Proxies{}, fmt.Errorf("%q is neither a network like 10.1.0.0/16 nor an address", text)
		}
		if n.Bits() == 0 {
			return Proxies{}, fmt.Errorf("%q would let every caller choose an address: name the proxies' own network", text)
		}
		p.nets = append(p.nets, unmap(n.Masked()))
	}
	return p, nil
}

// unmap writes a network of IPv4 in IPv6 form as IPv4, which is how addresses are compared.
func unmap(n netip.Prefix) netip.Prefix {
	if a := n.Addr(); a.Is4In6() && n.Bits() >= 96 {
		return netip.PrefixFrom(a.Unmap(), n.Bits()-96)
	}
	return n
}

func (p Proxies) trusts(a netip.Addr) bool {
	for _, n := range p.nets {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// Client is the caller's address, the zero Addr when it is not known. IPv4 in IPv6 form is given as IPv4, and without zone.
func (p Proxies) Client(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	conn := plain(ap.Addr())
	if len(p.nets) == 0 || !p.trusts(conn) {
		return conn
	}
	xff, forwarded := r.Header["X-Forwarded-For"], r.Header["Forwarded"]
	switch {
	case len(xff) > 0 && len(forwarded) > 0:
		// A proxy that writes one of them passes on the other as the caller sent it.
		a, b := p.nearest(conn, xff, addrOf), p.nearest(conn, forwarded, forOf)
		if a == b {
			return a
		}
		return netip.Addr{}
	case len(xff) > 0:
		return p.nearest(conn, xff, addrOf)
	case len(forwarded) > 0:
		return p.nearest(conn, forwarded, forOf)
	}
	return conn
}

// nearest goes through the hops from the right, where the nearest proxy wrote, to the first that is no trusted proxy.
func (p Proxies) nearest(conn netip.Addr, lines []string, parse func(string) netip.Addr) netip.Addr {
	at := conn
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			var hop string
			if comma := strings.LastIndexByte(rest, ','); comma >= 0 {
				rest, hop = rest[:comma], rest[comma+1:]
			} else {
				hop, more = rest, false
			}
			if at = parse(strings.Trim(hop, " \t")); !at.IsValid() || !p.trusts(at) {
				return at
			}
		}
	}
	return at // the whole way is through proxies: the caller is the first of them
}

// addrOf reads an address with or without a port: 192.0.2.1, 192.0.2.1:80, 2001:db8::1, [2001:db8::1], [2001:db8::1]:80.
func addrOf(s string) netip.Addr {
	if a, err := netip.ParseAddr(s); err == nil {
		return plain(a)
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return plain(ap.Addr())
	}
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); ok {
			if a, err := netip.ParseAddr(inner); err == nil && a.Is6() {
				return plain(a)
			}
		}
	}
	return netip.Addr{}
}

// forOf reads the for parameter of a forwarded-element (RFC 7239, section 4). What hides its address, and a quoted string
// with an escape or a comma in it, which no address has, comes out as unknown.
func forOf(element string) netip.Addr {
	var found netip.Addr
	seen := false
	for pair := range strings.SplitSeq(element, ";") {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || !strings.EqualFold(strings.Trim(name, " \t"), "for") {
			continue
		}
		if seen {
			return netip.Addr{}
		}
		seen = true
		value = strings.Trim(value, " \t")
		if inner, quoted := strings.CutPrefix(value, `"`); quoted {
			if value, ok = strings.CutSuffix(inner, `"`); !ok || strings.ContainsAny(value, `"\`) {
				return netip.Addr{}
			}
		}
		found = addrOf(value)
	}
	return found
}

func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
