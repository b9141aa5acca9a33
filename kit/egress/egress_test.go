package egress_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEverySpellingOfAnInsideAddressIsKnown(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]egress.Class{
		"8.8.8.8": egress.Public, "1.1.1.1": egress.Public, "2606:4700:4700::1111": egress.Public, "100.63.255.255": egress.Public,
		"100.128.0.0": egress.Public, "172.15.255.255": egress.Public, "172.32.0.0": egress.Public, "11.0.0.0": egress.Public,
		"223.255.255.255": egress.Public, "2001:200::1": egress.Public,

		"127.0.0.1": egress.Loopback, "127.255.255.255": egress.Loopback, "::1": egress.Loopback,
		"::ffff:127.0.0.1": egress.Loopback, "64:ff9b::7f00:1": egress.Loopback, "2002:7f00:1::": egress.Loopback,
		"::7f00:1": egress.Loopback, "::ffff:0:7f00:1": egress.Loopback, "2600::5efe:7f00:1": egress.Loopback,
		"2600::200:5efe:7f00:1": egress.Loopback,

		"0.0.0.0": egress.Unspecified, "0.1.2.3": egress.Unspecified, "::": egress.Unspecified, "::ffff:0.0.0.0": egress.Unspecified,
		"64:ff9b::": egress.Unspecified,

		"10.0.0.1": egress.Private, "172.16.0.1": egress.Private, "172.31.255.255": egress.Private, "192.168.1.1": egress.Private,
		"fc00::1": egress.Private, "fd12::1": egress.Private, "fec0::1": egress.Private, "64:ff9b::a00:1": egress.Private,
		"2002:a00:1::1": egress.Private, "::ffff:192.168.1.1": egress.Private,

		"169.254.1.1": egress.LinkLocal, "fe80::1": egress.LinkLocal, "fe80::1%eth0": egress.LinkLocal,
		"100.64.0.1": egress.Shared, "100.127.255.255": egress.Shared,

		"169.254.169.254": egress.Metadata, "::ffff:169.254.169.254": egress.Metadata, "64:ff9b::a9fe:a9fe": egress.Metadata,
		"2002:a9fe:a9fe::": egress.Metadata, "fd00:ec2::254": egress.Metadata, "168.63.129.16": egress.Metadata,
		"100.100.100.200": egress.Metadata, "169.254.170.23": egress.Metadata, "169.254.0.23": egress.Metadata, "fe80::a9fe:a9fe": egress.Metadata,
		"fe80::a9fe:a9fe%eth0": egress.Metadata, "fd00:ec2::23": egress.Metadata, "::ffff:0:a9fe:a9fe": egress.Metadata,
		"::a9fe:a9fe": egress.Metadata, "2600::5efe:a9fe:a9fe": egress.Metadata, "64:ff9b::a83f:8110": egress.Metadata,

		"224.0.0.1": egress.Multicast, "239.255.255.255": egress.Multicast, "ff02::1": egress.Multicast,
		"2001::1": egress.Tunnel, "64:ff9b:1::1": egress.Tunnel,
		"255.255.255.255": egress.Reserved, "240.0.0.1": egress.Reserved, "192.0.2.1": egress.Reserved, "198.18.0.1": egress.Reserved,
		"2001:db8::1": egress.Reserved, "100::1": egress.Reserved, "4000::1": egress.Reserved, "5f00::1": egress.Reserved,

		"64:ff9b::808:808": egress.Public, "2002:808:808::": egress.Public, "::ffff:8.8.8.8": egress.Public,
	} {
		if got := egress.Classify(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is %s, not %s", text, got, want)
		}
	}
	if got := egress.Classify(netip.Addr{}); got != egress.Reserved {
		t.Errorf("no address is %s", got)
	}
}

func TestTheAllowListOpensWhatItNames(t *testing.T) {
	t.Parallel()
	g, err := egress.NewGuard([]string{
		"10.1.0.0/16:443", "127.0.0.0/8:*", "[fd00::/8]:8443", "fd01::/16:1", "[::1]:80", "192.168.1.1:22", "0.0.0.0/0:99", "::/0:99",
		"169.254.169.254/32:80",
	})
	if err != nil {
		t.Fatal(err)
	}
	for to, open := range map[string]bool{
		"8.8.8.8:1": true, "10.1.2.3:443": true, "10.1.2.3:80": false, "10.2.0.1:443": false, "127.9.9.9:5": true,
		"[::ffff:127.0.0.1]:5": true, "[fd12::1]:8443": true, "[fd12::1]:1": false, "[fd01::2]:1": true, "[::1]:80": true,
		"[::1]:81": false, "192.168.1.1:22": true, "192.168.1.2:22": false, "172.16.0.1:99": true,
		// A broad entry opens neither this host by its other name, nor multicast, nor the metadata service.
		"0.0.0.0:99": false, "[::]:99": false, "224.0.0.1:99": false, "169.254.169.254:99": false, "[fd00:ec2::254]:99": false,
		"169.254.169.254:80": true,
		// What an entry names is the address that is connected to, not one that is hidden in it.
		"[64:ff9b::7f00:1]:5": false, "[2002:7f00:1::]:5": false,
	} {
		err := g.Check(netip.MustParseAddrPort(to))
		if (err == nil) != open || (err != nil && !errors.Is(err, egress.ErrBlocked)) {
			t.Errorf("%s: %v", to, err)
		}
	}
}

func TestEveryEntryThatCannotBeReadIsTold(t *testing.T) {
	t.Parallel()
	wrong := []string{
		"10.0.0.0/8", "10.0.0.0/8:", "10.0.0.0/8:0", "10.0.0.0/8:65536", "10.0.0.0/8:http", "10.0.0.0/8:-1", "10.0.0.0/33:1",
		"10.0.0.1/8:1", "localhost:1", "::1:80", "[::1:80", "[fe80::1%eth0]:1", "[::ffff:10.0.0.0/104]:1", ":*", "", "*:*",
	}
	_, err := egress.NewGuard(append([]string{"10.0.0.0/8:1"}, wrong...))
	p, ok := problem.As(err)
	if !ok || p.Code != problem.Invalid {
		t.Fatalf("got %v", err)
	}
	if got := strings.Count(p.What, ";") + 1; got != len(wrong) {
		t.Fatalf("%d of %d told: %s", got, len(wrong), p.What)
	}
}

// canary is a server on loopback that counts who reached it.
func canary(t *testing.T) (addr netip.AddrPort, hits *atomic.Int64) {
	t.Helper()
	hits = new(atomic.Int64)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, "http://192.0.2.1/?secret=1", http.StatusFound)
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			hits.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return netip.MustParseAddrPort(srv.Listener.Addr().String()), hits
}

func client(t *testing.T, allow ...string) *http.Client {
	t.Helper()
	tr, err := egress.NewTransport(allow)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: egress.CheckRedirect}
}

func get(t *testing.T, c *http.Client, url string) error {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

func TestABlockedConnectionNeverReachesItsHost(t *testing.T) {
	t.Parallel()
	addr, hits := canary(t)
	_, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, "10.0.0.0/8:*", "127.0.0.0/8:1")
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]", "127.1.2.3"} {
		if err := get(t, c, "http://"+host+":"+port); !errors.Is(err, egress.ErrBlocked) {
			t.Errorf("%s: %v", host, err)
		}
	}
	// Spellings that only some resolvers take: refused one way or the other.
	for _, host := range []string{"0x7f.1", "2130706433", "127.1"} {
		if err := get(t, c, "http://"+host+":"+port); err == nil {
			t.Errorf("%s was reached", host)
		}
	}
	if hits.Load() != 0 {
		t.Fatalf("the canary saw %d connections", hits.Load())
	}
}

func TestAnAllowedDestinationIsReachedButItsRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	addr, _ := canary(t)
	c := client(t, "127.0.0.0/8:*")
	if err := get(t, c, "http://"+addr.String()); err != nil {
		t.Fatal(err)
	}
	err := get(t, c, "http://"+addr.String()+"/redirect")
	if !errors.Is(err, egress.ErrRedirect) {
		t.Fatalf("got %v", err)
	}
}

// Not parallel: it changes the process's environment.
func TestNoProxyOfTheEnvironmentIsUsed(t *testing.T) {
	addr, hits := canary(t)
	proxy := "http://" + addr.String()
	for _, k := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"} {
		t.Setenv(k, proxy)
	}
	c := client(t, "127.0.0.0/8:*")
	if err := get(t, c, "http://0.0.0.0:9"); !errors.Is(err, egress.ErrBlocked) {
		t.Fatalf("got %v", err)
	}
	if hits.Load() != 0 {
		t.Fatal("the proxy was used")
	}
}

func TestOtherNetworksAreRefused(t *testing.T) {
	t.Parallel()
	g, err := egress.NewGuard([]string{"127.0.0.0/8:*"})
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"unix", "unixgram", "ip", "ip4:icmp", ""} {
		if _, err := g.DialContext(t.Context(), network, "127.0.0.1:1"); !errors.Is(err, egress.ErrBlocked) {
			t.Errorf("%q: %v", network, err)
		}
	}
}

func FuzzClassify(f *testing.F) {
	for _, s := range []string{"127.0.0.1", "8.8.8.8", "169.254.169.254", "::1", "2600::5efe:a00:1", "fe80::1"} {
		a := netip.MustParseAddr(s).As16()
		f.Add(a[:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		addr, ok := netip.AddrFromSlice(b)
		if !ok {
			return
		}
		class := egress.Classify(addr)
		plain := addr.Unmap()
		inside := plain.IsLoopback() || plain.IsPrivate() || plain.IsLinkLocalUnicast() || plain.IsMulticast() || plain.IsUnspecified()
		if inside && class == egress.Public {
			t.Fatalf("%s is public", addr)
		}
		if !plain.Is4() {
			return
		}
		v4 := plain.As4()
		for name, hidden := range map[string][16]byte{
			"mapped":     {10: 0xff, 11: 0xff, 12: v4[0], 13: v4[1], 14: v4[2], 15: v4[3]},
			"NAT64":      {0: 0, 1: 0x64, 2: 0xff, 3: 0x9b, 12: v4[0], 13: v4[1], 14: v4[2], 15: v4[3]},
			"6to4":       {0: 0x20, 1: 0x02, 2: v4[0], 3: v4[1], 4: v4[2], 5: v4[3], 15: 1},
			"translated": {8: 0xff, 9: 0xff, 12: v4[0], 13: v4[1], 14: v4[2], 15: v4[3]},
		} {
			if got := egress.Classify(netip.AddrFrom16(hidden)); got != class {
				t.Errorf("%s is %s, its %s form %s", plain, class, name, got)
			}
		}
	})
}

func FuzzNewGuard(f *testing.F) {
	for _, s := range []string{"127.0.0.0/8:*", "[fd00::/8]:1", "::/0:99", "[::1]:80", ":", "[]:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g, err := egress.NewGuard([]string{s})
		if err != nil {
			return
		}
		if err := g.Check(netip.MustParseAddrPort("0.0.0.0:80")); err == nil {
			t.Fatalf("%q opens 0.0.0.0", s)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	g, err := egress.NewGuard([]string{"127.0.0.0/8:*"})
	if err != nil {
		b.Fatal(err)
	}
	to := netip.MustParseAddrPort("127.0.0.1:80")
	b.ReportAllocs()
	for b.Loop() {
		if err := g.Check(to); err != nil {
			b.Fatal(err)
		}
	}
}
