package egress

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

func TestAPublicAddressOfThisHostIsClosedUnlessItIsNamed(t *testing.T) {
	t.Parallel()
	interfaces := func() ([]net.Addr, error) {
		var out []net.Addr
		for _, text := range []string{"127.0.0.1/8", "8.8.4.4/24", "2606:4700::9/64"} {
			ip, n, err := net.ParseCIDR(text)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, &net.IPNet{IP: ip, Mask: n.Mask})
		}
		return out, nil
	}
	for allow, want := range map[string]bool{"10.0.0.0/8:*": false, "8.8.4.4:443": true} {
		g, err := NewGuard([]string{allow})
		if err != nil {
			t.Fatal(err)
		}
		g.own.list = interfaces
		for to, open := range map[string]bool{
			"8.8.4.4:443": want, "[::ffff:8.8.4.4]:443": want, "8.8.4.4:80": false, "8.8.4.5:443": true, "[2606:4700::9]:1": false,
			"[2606:4700::8]:1": true,
		} {
			if err := g.Check(netip.MustParseAddrPort(to)); (err == nil) != open || (err != nil && !errors.Is(err, ErrBlocked)) {
				t.Errorf("%s with %s: %v", to, allow, err)
			}
		}
		// What was known is kept when the interfaces cannot be read.
		g.own.until, g.own.list = g.own.until.Add(-ownFor), func() ([]net.Addr, error) { return nil, errors.New("no") }
		if err := g.Check(netip.MustParseAddrPort("8.8.4.4:80")); err == nil {
			t.Error("it was forgotten")
		}
	}
}
