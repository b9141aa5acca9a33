package cell

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestACellSaysWhatIsWrongWithWhereItIs(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		region  string
		proxies []string
		want    string // "" for nothing
	}{
		{"", nil, ""},
		{"eu-west", []string{"10.0.0.0/8", "192.0.2.7", "2001:db8::/32"}, ""},
		{"eu west", nil, "region"},
		{"eu\n", nil, "region"},
		{strings.Repeat("a", 65), nil, "region"},
		{"eu", []string{"proxy.internal"}, "trusted_proxies"},
		{"eu", []string{"0.0.0.0/0"}, "trusted_proxies"},
	} {
		c := Config{Region: tc.region, TrustedProxies: tc.proxies}
		about := func(p string) bool { return strings.HasPrefix(p, "region") || strings.HasPrefix(p, "trusted_proxies") }
		i := slices.IndexFunc(c.Problems(), about)
		if tc.want == "" && i >= 0 || tc.want != "" && (i < 0 || !strings.HasPrefix(c.Problems()[i], tc.want)) {
			t.Errorf("%q %q: %v", tc.region, tc.proxies, c.Problems())
		}
	}
}

func TestACellNamesTheFrontsThereAre(t *testing.T) {
	t.Parallel()
	for front, good := range map[string]bool{"": true, "fast": true, "nethttp": true, "Fast": false, "nginx": false} {
		c := Config{Listen: Listen{Front: front}}
		if bad := slices.ContainsFunc(c.Problems(), func(p string) bool { return strings.HasPrefix(p, "listen.front") }); bad == good {
			t.Errorf("%q: %v", front, c.Problems())
		}
	}
}

func TestTheSettingsOfACellsLogAreHeldToTheirBounds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		cfg  Config
		want string // "" for nothing
	}{
		{Config{RaftTransport: "quic", DiskHangLimit: time.Minute, RemoveDeadAfter: 72 * time.Hour}, ""},
		{Config{RaftTransport: "udp"}, "raft_transport"},
		{Config{DiskHangLimit: time.Second}, "disk_hang_limit"},
		{Config{RemoveDeadAfter: time.Second}, "remove_dead_after"},
		{Config{Members: make([]Member, 2)}, "members:"},
		{Config{Members: make([]Member, 4), Join: true}, ""},
	} {
		if tc.want != "members:" && !tc.cfg.Join {
			tc.cfg.Members = make([]Member, 3)
		}
		about := func(p string) bool {
			return slices.ContainsFunc([]string{"raft_transport", "disk_hang_limit", "remove_dead_after", "members:"}, func(s string) bool { return strings.HasPrefix(p, s) })
		}
		i := slices.IndexFunc(tc.cfg.Problems(), about)
		if tc.want == "" && i >= 0 || tc.want != "" && (i < 0 || !strings.HasPrefix(tc.cfg.Problems()[i], tc.want)) {
			t.Errorf("%+v: %v", tc.cfg, tc.cfg.Problems())
		}
	}
}
