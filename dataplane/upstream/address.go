package upstream

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// An address that fails so often in a row is left out for a while, which doubles with each time that it comes back and
// fails again.
const (
	ejectAfter = 3
	ejectFor   = 10 * time.Second
	ejectMost  = 5 * time.Minute
)

// address is what is known of one address of a host. It is shared by its connections. Failures are noted under the lock
// of its addresses.
type address struct {
	ip netip.Addr

	fails   atomic.Int32 // in a row
	ejects  atomic.Int32 // in a row
	outTill atomic.Int64 // in ns since 1970
}

func (a *address) ejected(now time.Time) bool {
	out := a.outTill.Load()
	return out != 0 && now.UnixNano() < out
}

// served notes that the address answered.
func (a *address) served() {
	if a.fails.Load() != 0 {
		a.fails.Store(0)
		a.ejects.Store(0)
	}
}

// failed notes a failure; eject says whether the address may be left out. It reports whether it is from now on.
func (a *address) failed(now time.Time, eject bool) bool {
	if a.fails.Add(1) < ejectAfter || !eject || a.ejected(now) {
		return false
	}
	a.outTill.Store(now.Add(min(ejectMost, ejectFor<<min(a.ejects.Add(1)-1, 8))).UnixNano())
	a.fails.Store(ejectAfter - 1) // when it comes back, its first failure counts
	return true
}

// addresses are those of one host, as they were resolved last.
type addresses struct {
	mu    sync.Mutex
	known []*address
}

// update takes a new answer of the resolver and returns the addresses in its order, those that are ejected last: when all
// others fail, they are better than nothing.
func (s *addresses) update(ips []netip.Addr, now time.Time) []*address {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.known
	s.known = make([]*address, 0, len(ips))
	for _, ip := range ips {
		s.known = append(s.known, find(old, ip))
	}
	order := make([]*address, 0, len(ips))
	var last []*address
	for _, a := range s.known {
		if a.ejected(now) {
			last = append(last, a)
		} else {
			order = append(order, a)
		}
	}
	return append(order, last...)
}

func find(known []*address, ip netip.Addr) *address {
	for _, a := range known {
		if a.ip == ip {
			return a
		}
	}
	return &address{ip: ip}
}

// failed notes a failure of one of the addresses. At least half of a host's addresses stay in use.
func (s *addresses) failed(a *address, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return a.failed(now, 2*(s.out(now)+1) <= len(s.known))
}

func (s *addresses) out(now time.Time) int {
	n := 0
	for _, a := range s.known {
		if a.ejected(now) {
			n++
		}
	}
	return n
}

// ejected counts those that are left out.
func (s *addresses) ejected(now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out(now)
}
