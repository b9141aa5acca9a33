package egress

import (
	"encoding/binary"
	"net/netip"
)

// Class is what kind of place an address leads to.
type Class string

// The classes. Only Public is open without being named.
const (
	Public      Class = "public"
	Unspecified Class = "unspecified"
	Loopback    Class = "loopback"
	Private     Class = "private"
	LinkLocal   Class = "link-local"
	Shared      Class = "carrier-grade NAT"
	Metadata    Class = "cloud metadata"
	Multicast   Class = "multicast"
	Tunnel      Class = "tunnel"
	Reserved    Class = "reserved"
	// Own is a public address that this host has itself.
	Own Class = "this host's own"
)

// mayBeAllowed is false where no sensible configuration leads: 0.0.0.0 is another word for this host.
func (c Class) mayBeAllowed() bool { return c != Unspecified && c != Multicast }

type block struct {
	prefix netip.Prefix
	class  Class
}

func blocks(class Class, prefixes ...string) []block {
	out := make([]block, len(prefixes))
	for i, p := range prefixes {
		out[i] = block{netip.MustParsePrefix(p), class}
	}
	return out
}

// special lists the address blocks that are not the public Internet, in the order in which they are looked at: the IANA
// special-purpose registries (RFC 6890 and its updates) and the clouds' own addresses. It is never written to.
var special = concat(
	// Azure's is a public address, Oracle's and Alibaba's stand in wider blocks below.
	// The containers' credential services of AWS, Tencent's, and OpenStack's for IPv6 are as good as the one that all know.
	blocks(Metadata, "169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", "169.254.0.23/32", "168.63.129.16/32",
		"100.100.100.200/32", "192.0.0.192/32", "fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128", "fe80::a9fe:a9fe/128"),
	blocks(Unspecified, "0.0.0.0/8", "::/128"),
	blocks(Loopback, "127.0.0.0/8", "::1/128"),
	blocks(Private, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "fec0::/10"),
	blocks(LinkLocal, "169.254.0.0/16", "fe80::/10"),
	blocks(Shared, "100.64.0.0/10"),
	blocks(Multicast, "224.0.0.0/4", "ff00::/8"),
	blocks(Tunnel, "192.88.99.0/24", "2001::/32", "64:ff9b:1::/48"),
	blocks(Reserved, "192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		"2001::/23", "2001:db8::/32", "3fff::/20"),
)

// global is all that has been given out of IPv6; what is outside of it is not the public Internet either.
var global = netip.MustParsePrefix("2000::/3")

func concat(lists ...[]block) []block {
	var out []block
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

// Classify says where an address leads. An IPv6 address that a gateway or a tunnel turns into an IPv4 address is what that
// one is. An invalid address is Reserved.
func Classify(addr netip.Addr) Class {
	addr = addr.WithZone("").Unmap()
	if !addr.IsValid() {
		return Reserved
	}
	for _, b := range special {
		if b.prefix.Contains(addr) {
			return b.class
		}
	}
	if addr.Is4() {
		return Public
	}
	if inner, ok := embedded(addr); ok {
		return Classify(inner)
	}
	if !global.Contains(addr) {
		return Reserved
	}
	return Public
}

// embedded returns the IPv4 address inside of an IPv6 address that has one.
func embedded(addr netip.Addr) (netip.Addr, bool) {
	b := addr.As16()
	high := binary.BigEndian.Uint64(b[:8])
	mid := binary.BigEndian.Uint32(b[8:12])
	last := netip.AddrFrom4([4]byte(b[12:]))
	switch {
	case high == 0x0064ff9b_00000000 && mid == 0: // NAT64, RFC 6052
		return last, true
	case high>>48 == 0x2002: // 6to4, RFC 3056
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case high == 0 && mid == 0: // IPv4-compatible, RFC 4291
		return last, true
	case high == 0 && mid == 0xffff0000: // IPv4-translated, RFC 2765
		return last, true
	case mid&^0x02000000 == 0x00005efe: // ISATAP, RFC 5214
		return last, true
	}
	return netip.Addr{}, false
}
