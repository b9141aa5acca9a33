package remote_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/remote"
)

func proxies(t testing.TB, list ...string) remote.Proxies {
	t.Helper()
	p, err := remote.ParseProxies(list)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTheAddressIsTheNearestThatIsNoTrustedProxy(t *testing.T) {
	t.Parallel()
	p := proxies(t, "10.0.0.0/8", "192.0.2.7", "2001:db8:ffff::/48")
	for _, tc := range []struct {
		name, conn string
		xff, fwd   []string
		want       string // "" for unknown
	}{
		{"nobody in between", "203.0.113.5:4711", nil, nil, "203.0.113.5"},
		{"a stranger's header is not looked at", "203.0.113.5:4711", []string{"10.0.0.1"}, []string{"for=10.0.0.1"}, "203.0.113.5"},
		{"one proxy", "10.0.0.1:1", []string{"203.0.113.5"}, nil, "203.0.113.5"},
		{"two proxies", "10.0.0.1:1", []string{"203.0.113.5, 192.0.2.7"}, nil, "203.0.113.5"},
		{"what the caller wrote is left of it", "10.0.0.1:1", []string{"10.9.9.9, 203.0.113.5"}, nil, "203.0.113.5"},
		{"lines count in their order", "10.0.0.1:1", []string{"198.51.100.1", "203.0.113.5,10.0.0.2"}, nil, "203.0.113.5"},
		{"all of them proxies", "10.0.0.1:1", []string{"10.0.0.9, 10.0.0.2"}, nil, "10.0.0.9"},
		{"the proxy itself", "10.0.0.1:1", nil, nil, "10.0.0.1"},
		{"with a port", "10.0.0.1:1", []string{"203.0.113.5:8080"}, nil, "203.0.113.5"},
		{"IPv6", "[2001:db8:ffff::1]:1", []string{"2001:db8::5"}, nil, "2001:db8::5"},
		{"IPv6 with a port", "10.0.0.1:1", []string{"[2001:db8::5]:80"}, nil, "2001:db8::5"},
		{"IPv6 in brackets", "10.0.0.1:1", []string{"[2001:db8::5]"}, nil, "2001:db8::5"},
		{"IPv4 in IPv6 form", "[::ffff:10.0.0.1]:1", []string{"::ffff:203.0.113.5"}, nil, "203.0.113.5"},
		{"a zone means nothing here", "[fe80::1%eth0]:1", nil, nil, "fe80::1"},
		{"garbage next to the proxy", "10.0.0.1:1", []string{"203.0.113.5, junk"}, nil, ""},
		{"an empty place", "10.0.0.1:1", []string{"203.0.113.5,"}, nil, ""},
		{"an empty header", "10.0.0.1:1", []string{""}, nil, ""},
		{"garbage beyond the address", "10.0.0.1:1", []string{"junk, 203.0.113.5"}, nil, "203.0.113.5"},
		{"Forwarded", "10.0.0.1:1", nil, []string{`for=203.0.113.5;proto=https;by=10.0.0.1`}, "203.0.113.5"},
		{"Forwarded, IPv6", "10.0.0.1:1", nil, []string{`For="[2001:db8::5]:4711"`}, "2001:db8::5"},
		{"Forwarded, several", "10.0.0.1:1", nil, []string{`for=198.51.100.1, for=203.0.113.5, for=10.0.0.2`}, "203.0.113.5"},
		{"Forwarded hides it", "10.0.0.1:1", nil, []string{"for=_secret"}, ""},
		{"Forwarded does not know", "10.0.0.1:1", nil, []string{"for=unknown"}, ""},
		{"Forwarded without for", "10.0.0.1:1", nil, []string{"proto=https"}, ""},
		{"Forwarded with two", "10.0.0.1:1", nil, []string{"for=203.0.113.5;for=198.51.100.1"}, ""},
		{"Forwarded with escapes", "10.0.0.1:1", nil, []string{`for="203.0.113\.5"`}, ""},
		{"Forwarded with a comma in quotes", "10.0.0.1:1", nil, []string{`for="a,for=198.51.100.1"`}, ""},
		{"both, of one mind", "10.0.0.1:1", []string{"203.0.113.5"}, []string{"for=203.0.113.5"}, "203.0.113.5"},
		{"both, of two minds", "10.0.0.1:1", []string{"203.0.113.5"}, []string{"for=198.51.100.1"}, ""},
		{"no address at all", "@", []string{"203.0.113.5"}, nil, ""},
	} {
		r := &http.Request{RemoteAddr: tc.conn, Header: http.Header{}}
		if tc.xff != nil {
			r.Header["X-Forwarded-For"] = tc.xff
		}
		if tc.fwd != nil {
			r.Header["Forwarded"] = tc.fwd
		}
		got := ""
		if a := p.Client(r); a.IsValid() {
			got = a.String()
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestAProxyIsANetworkAndNotTheWorld(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "10.0.0.0/33", "proxy.example", "0.0.0.0/0", "::/0", "10.0.0.1:80", "fe80::1%eth0"} {
		if _, err := remote.ParseProxies([]string{"10.0.0.1", bad}); err == nil || bad != "" && !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzClient: whatever the headers say, no caller becomes a trusted proxy's neighbour by text alone: the address found is
// written in the last line's own words, or is the connection's.
func FuzzClient(f *testing.F) {
	for _, s := range []string{"203.0.113.5", "a, 10.0.0.2", "[::1]:80", `for="[::1]"`, "for=_x;for=1.1.1.1", ",,,", `"`} {
		f.Add(s, s)
	}
	p, err := remote.ParseProxies([]string{"10.0.0.0/8"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, xff, fwd string) {
		for _, h := range []http.Header{
			{"X-Forwarded-For": {xff}},
			{"Forwarded": {fwd}},
			{"X-Forwarded-For": {xff}, "Forwarded": {fwd}},
			{"X-Forwarded-For": {xff, "198.51.100.9"}},
		} {
			a := p.Client(&http.Request{RemoteAddr: "10.0.0.1:1", Header: h})
			if a.IsValid() && (a.Is4In6() || a.Zone() != "") {
				t.Fatalf("%q: %s is not in plain form", h, a)
			}
			if len(h["X-Forwarded-For"]) == 2 && a != netip.MustParseAddr("198.51.100.9") {
				t.Fatalf("%q: %s: the caller moved the address that the proxy wrote", h, a)
			}
			if b := p.Client(&http.Request{RemoteAddr: "203.0.113.5:1", Header: h}); b.String() != "203.0.113.5" {
				t.Fatalf("%q moved a stranger to %s", h, b)
			}
		}
	})
}
