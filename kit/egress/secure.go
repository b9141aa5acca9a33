package egress

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
)

// CheckSecure refuses an address for what must not come over a wire that somebody else writes to, such as keys: only https
// is taken, and http on this machine.
func CheckSecure(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" {
		return errors.New("not an address")
	}
	ip, err := netip.ParseAddr(u.Hostname())
	here := err == nil && ip.IsLoopback() || strings.EqualFold(u.Hostname(), "localhost")
	if u.Scheme != "https" && !(u.Scheme == "http" && here) {
		return errors.New("neither https nor on this machine")
	}
	return nil
}
