package egress

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// ownFor is how long what the interfaces have is taken for known.
const ownFor = 10 * time.Second

// ownAddresses are those of this host's interfaces: what listens there trusts its neighbours more than the Internet.
type ownAddresses struct {
	// list is net.InterfaceAddrs, if nil.
	list func() ([]net.Addr, error)

	mu    sync.Mutex
	known map[netip.Addr]bool
	until time.Time
}

// has reports whether this host has an address. When the interfaces cannot be read, it goes by what was known last.
func (o *ownAddresses) has(addr netip.Addr) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); !now.Before(o.until) {
		o.until = now.Add(ownFor)
		o.read()
	}
	return o.known[addr]
}

func (o *ownAddresses) read() {
	list := o.list
	if list == nil {
		list = net.InterfaceAddrs
	}
	addrs, err := list()
	if err != nil {
		return
	}
	known := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			known[p.Addr().WithZone("").Unmap()] = true
		}
	}
	o.known = known
}
