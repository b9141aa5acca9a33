package index_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func open(t testing.TB, p *snapshot.Policy) *index.Index {
	t.Helper()
	b, err := builder.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestNamesAreFoundAndAgainNamed(t *testing.T) {
	t.Parallel()
	p := snapshottest.Large(300)
	// The same tool on every server, and a server with more than two pages.
	for i := range p.Servers {
		p.Servers[i].Items = append(p.Servers[i].Items, "shared")
	}
	for i := range 200 {
		p.Servers[1].Items = append(p.Servers[1].Items, fmt.Sprintf("more%03d", i))
	}
	x := open(t, p)
	if x.Tenant() != p.Tenant || x.Principals() != 300 || x.Servers() != len(p.Servers) {
		t.Fatalf("%s: %d principals, %d servers", x.Tenant(), x.Principals(), x.Servers())
	}
	for _, u := range p.Principals {
		if id, ok := x.Principal(u.Name); !ok || x.PrincipalName(id) != u.Name {
			t.Errorf("principal %q", u.Name)
		}
	}
	for _, s := range p.Servers {
		id, ok := x.Server(s.Name)
		if !ok || x.ServerName(id) != s.Name || x.ItemCount(id) != len(s.Items)+1 {
			t.Fatalf("server %q", s.Name)
		}
		want := append([]string{snapshot.ItemOther}, s.Items...)
		slices.Sort(want)
		var got []string
		for i, name := range x.Items(id) {
			if at, ok := x.Item(id, name); !ok || at != i || x.ItemName(id, i) != name {
				t.Errorf("item %q of %q", name, s.Name)
			}
			got = append(got, name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("server %q has %v", s.Name, got)
		}
	}
	for _, name := range []string{"", "nobody", "user000001@example.co", strings.Repeat("x", 5000)} {
		if _, ok := x.Principal(name); ok {
			t.Errorf("principal %q found", name)
		}
		if _, ok := x.Server(name); ok {
			t.Errorf("server %q found", name)
		}
		if _, ok := x.Item(0, name); ok {
			t.Errorf("item %q found", name)
		}
	}
	if _, ok := x.Item(0, "more001"); ok {
		t.Error("another server's tool found")
	}
	if _, ok := x.Item(index.ServerID(x.Servers()), "shared"); ok {
		t.Error("item of no server found")
	}
	if x.PrincipalName(1<<31) != "" || x.ServerName(1<<31) != "" || x.ItemName(0, 1<<31) != "" || !x.Disabled(1<<31) {
		t.Error("an id that is not there has a name")
	}
}

func TestPrincipalWithManyNodes(t *testing.T) {
	t.Parallel()
	p := &snapshot.Policy{Tenant: "t", Principals: []snapshot.Principal{{Name: "alice"}}}
	for i := range 40 {
		r := snapshot.Ref(fmt.Sprintf("role:%d", i))
		name := fmt.Sprintf("s%d", i)
		p.Nodes = append(p.Nodes, snapshot.Node{Ref: r})
		p.Principals[0].Nodes = append(p.Principals[0].Nodes, r)
		p.Servers = append(p.Servers, snapshot.Server{Name: name, Items: []string{"a"}})
		p.Grants = append(p.Grants,
			snapshot.Grant{ID: "g" + name, Subject: r, Server: name, When: &snapshot.Cond{Op: snapshot.OpTrue}},
			// Twenty conditions and more meet on one server.
			snapshot.Grant{ID: "h" + name, Subject: r, Server: "s0", When: &snapshot.Cond{
				Op: snapshot.OpEq, Arg: "n", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: int64(i)},
			}})
	}
	p.Grants = p.Grants[1:]
	x := open(t, p)
	for s := range x.Servers() {
		v := x.View(0, index.ServerID(s))
		item, _ := x.Item(v.Server(), "a")
		if d := authz.Decide(&v, item, &authz.Request{Args: []byte(`{"n":39}`)}); !d.Allow {
			t.Errorf("server %s: %+v", x.ServerName(v.Server()), d)
		}
	}
	s0, _ := x.Server("s0")
	v := x.View(0, s0)
	if d := authz.Decide(&v, 1, &authz.Request{Args: []byte(`{"n":40}`)}); d.Allow {
		t.Errorf("%+v", d)
	}
}

func TestGrantOnWhatIsNotPublishedReachesNothing(t *testing.T) {
	t.Parallel()
	x := open(t, &snapshot.Policy{
		Tenant: "t", Principals: []snapshot.Principal{{Name: "alice"}}, Servers: []snapshot.Server{{Name: "s", Items: []string{"x"}}},
		Grants: []snapshot.Grant{
			{ID: "a", Subject: snapshot.Everyone, Server: "later"},
			{ID: "b", Subject: snapshot.Everyone, Server: "s", Tool: "gone"},
		},
	})
	v := x.View(0, 0)
	if authz.VisibleMask(&v, 0, &authz.Request{NowMS: 0}) != 0 {
		t.Error("something is shown")
	}
}

func small(t testing.TB) []byte {
	b, err := builder.Build(&snapshot.Policy{
		Tenant: "t", Principals: []snapshot.Principal{{Name: "alice", Region: "eu", Nodes: []snapshot.Ref{"team:a"}}}, Nodes: []snapshot.Node{{Ref: "team:a", Parents: []snapshot.Ref{snapshot.Everyone}}},
		Servers: []snapshot.Server{{Name: "s", Items: []string{"x", "y"}}},
		Grants: []snapshot.Grant{
			{ID: "g", Subject: "team:a", Server: "s"},
			{ID: "w", Subject: snapshot.Everyone, Server: "*", When: &snapshot.Cond{
				Op: snapshot.OpIn, Arg: "r", Values: []snapshot.Value{{Type: snapshot.TypeString, Str: "eu"}, {Type: snapshot.TypeString, Str: "us"}},
			}},
			{ID: "x", Subject: snapshot.Everyone, Server: "*", Deny: true, When: &snapshot.Cond{Op: snapshot.OpOr, Kids: []*snapshot.Cond{
				{Op: snapshot.OpMember, Arg: "team:a"},
				{Op: snapshot.OpInRange, From: snapshot.FromContext, Arg: "ip", Value: snapshot.Value{Type: snapshot.TypeString, Str: "10.0.0.0/8"}},
				{Op: snapshot.OpGe, From: snapshot.FromClock, Arg: "minute", Zone: "Europe/Berlin", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: 540}},
				{
					Op: snapshot.OpEq, From: snapshot.FromPrincipal, Arg: "region",
					With: &snapshot.Operand{From: snapshot.FromContext, Arg: "region"},
				},
			}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpenRefusesEveryLength(t *testing.T) {
	t.Parallel()
	b := small(t)
	for n := range b {
		if _, err := index.Open(b[:n]); err == nil {
			t.Fatalf("%d of %d bytes accepted", n, len(b))
		}
	}
	if _, err := index.Open(append(slices.Clone(b), make([]byte, 4096)...)); err == nil {
		t.Error("a trailing page accepted")
	}
}

var le = binary.LittleEndian

// The header without its table, and an entry of the table.
const headerFixed, entry = 128, 24

// exercise reads everything that an opened index offers.
func exercise(x *index.Index) {
	for p := range x.Principals() + 1 {
		_, _ = x.Principal(x.PrincipalName(index.PrincipalID(p)))
		for s := range x.Servers() + 1 {
			v := x.View(index.PrincipalID(p), index.ServerID(s))
			for i := range x.ItemCount(index.ServerID(s)) + 1 {
				item := index.ItemID(i)
				r := &authz.Request{NowMS: 5, Args: []byte(`{"r":"eu","amount":5}`), IP: netip.MustParseAddr("10.0.0.1"), Region: "eu"}
				_ = authz.Decide(&v, item, r)
				_ = authz.Visible(&v, item, r)
				_ = authz.Explain(x, index.PrincipalID(p), index.ServerID(s), item, r)
			}
		}
	}
}

// places are the bytes of the header with its table and of all records: all but the padding.
func places(b []byte) []int {
	var out []int
	for i := range headerFixed + entry*int(le.Uint32(b[12:])) {
		out = append(out, i)
	}
	for i := range le.Uint32(b[12:]) {
		e := b[headerFixed+i*entry:]
		for k := range uint64(le.Uint32(e[4:])) * le.Uint64(e[16:]) {
			out = append(out, int(le.Uint64(e[8:])+k))
		}
	}
	return out
}

func TestOpenSurvivesEveryFlippedByte(t *testing.T) {
	t.Parallel()
	b := small(t)
	opened := 0
	for _, i := range places(b) {
		for _, change := range []byte{0x01, 0xff} {
			c := slices.Clone(b)
			c[i] ^= change
			if x, err := index.Open(c); err == nil {
				opened++
				exercise(x)
			}
		}
	}
	if opened == 0 {
		t.Error("nothing opened: the test tests nothing")
	}
}

func TestOpenSkipsUnknownSectionsAndRefusesUnknownMajor(t *testing.T) {
	t.Parallel()
	b := small(t)
	n := le.Uint32(b[12:])
	more := append(slices.Clone(b), make([]byte, 64)...)
	e := more[headerFixed+n*entry:]
	le.PutUint32(e, 1000)
	le.PutUint32(e[4:], 16)
	le.PutUint64(e[8:], uint64(len(b)))
	le.PutUint64(e[16:], 3)
	le.PutUint32(more[12:], n+1)
	le.PutUint16(more[10:], 7)
	le.PutUint64(more[16:], uint64(len(more)))
	copy(more[len(b):], "of the future")
	if _, err := index.Open(more); err != nil {
		t.Errorf("a section of a newer minor version: %v", err)
	}
	le.PutUint16(b[8:], 3)
	if _, err := index.Open(b); !errors.Is(err, index.ErrVersion) {
		t.Errorf("another major version: %v", err)
	}
}

// FuzzOpen opens the input as it is, and takes it for changes to an honest block: place, place, value.
func FuzzOpen(f *testing.F) {
	b := small(f)
	at := places(b)
	f.Add(b)
	f.Add([]byte("MCPVIDX\x00"))
	f.Add([]byte{0, 1, 0xff, 0x10, 0x10, 0x80})
	for i := range le.Uint32(b[12:]) {
		sec := slices.Index(at, int(le.Uint64(b[headerFixed+i*entry+8:])))
		f.Add([]byte{byte(sec), byte(sec >> 8), 3, byte(sec + 4), byte((sec + 4) >> 8), 0xff})
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if x, err := index.Open(in); err == nil {
			exercise(x)
		}
		c := slices.Clone(b)
		for ; len(in) >= 3; in = in[3:] {
			c[at[int(le.Uint16(in))%len(at)]] = in[2]
		}
		if x, err := index.Open(c); err == nil {
			exercise(x)
		}
	})
}
