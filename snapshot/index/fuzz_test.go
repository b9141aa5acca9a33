package index_test

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// two are a policy and what became of it, with every kind of record between them.
func two(t testing.TB) (old, next *index.Index) {
	t.Helper()
	number := func(n int64) snapshot.Value { return snapshot.Value{Type: snapshot.TypeNumber, Int: n} }
	text := func(s string) snapshot.Value { return snapshot.Value{Type: snapshot.TypeString, Str: s} }
	p := &snapshot.Policy{
		Tenant:     "t",
		Principals: []snapshot.Principal{{Name: "alice", Nodes: []snapshot.Ref{"team:a"}}, {Name: "bob"}},
		Nodes:      []snapshot.Node{{Ref: "team:a"}, {Ref: "role:r"}},
		Servers:    []snapshot.Server{{Name: "s", Items: []string{"x", "y"}}},
		Grants: []snapshot.Grant{
			{ID: "g", Subject: "team:a", Server: "s"},
			{ID: "h", Subject: "role:r", Server: "s", Tool: "x", When: &snapshot.Cond{Op: snapshot.OpLt, Arg: "n", Value: number(5)}},
		},
	}
	old = open(t, p)
	p.Principals = []snapshot.Principal{
		{Name: "alice", Region: "eu", Clearance: 2, Nodes: []snapshot.Ref{"role:r"}},
		{Name: "carol", Nodes: []snapshot.Ref{"team:a", "role:r", "team:b", "team:c", "team:d", "team:e", "team:f"}},
	}
	p.Nodes = []snapshot.Node{
		{Ref: "team:a", Parents: []snapshot.Ref{"role:r"}},
		{Ref: "role:r"},
		{Ref: "team:b"},
		{Ref: "team:c"},
		{Ref: "team:d"},
		{Ref: "team:e"},
		{Ref: "team:f"},
	}
	p.Grants = []snapshot.Grant{
		{ID: "h", Subject: "role:r", Server: "s", When: &snapshot.Cond{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{
			{Op: snapshot.OpIn, Arg: "m", Values: []snapshot.Value{text("a"), text("b")}},
			{Op: snapshot.OpMember, Arg: "role:r"},
			{Op: snapshot.OpGe, From: snapshot.FromClock, Zone: "Europe/Berlin", Arg: "minute", Value: number(540)},
			{Op: snapshot.OpInRange, From: snapshot.FromContext, Arg: "ip", Value: text("10.0.0.0/8")},
			{Op: snapshot.OpEq, From: snapshot.FromContext, Arg: "region", Value: text("eu")},
			{Op: snapshot.OpEq, From: snapshot.FromContext, Arg: "region", With: &snapshot.Operand{From: snapshot.FromPrincipal, Arg: "region"}},
		}}},
		{ID: "z", Subject: snapshot.Everyone, Server: "*", Deny: true, When: &snapshot.Cond{Op: snapshot.OpHas, Arg: "q"}},
	}
	return old, open(t, p)
}

// readAll reads everything that an index offers.
func readAll(x *index.Index) {
	for p := range x.Principals() + 1 {
		id := index.PrincipalID(p)
		_, _ = x.Principal(x.PrincipalName(id))
		_ = x.Person(id)
		for s := range x.Servers() + 1 {
			v := x.View(id, index.ServerID(s))
			for i := range x.ItemCount(index.ServerID(s)) {
				for range x.Rules(&v, index.ItemID(i)) {
					continue
				}
			}
		}
	}
	for i := range x.Programs() {
		p := x.Program(uint32(i))
		for pc := range p.Len() {
			if in := p.Instr(pc); in.Op == snapshot.OpMember {
				_ = p.Belongs(in.Operand, 0)
			} else if in.From == snapshot.FromClock && index.ReadsZone(in.Op) {
				_ = p.Clock(in.Zone, in.Arg, 0)
			}
		}
	}
	x.Sum()
}

func TestApplyKnowsEveryRecord(t *testing.T) {
	t.Parallel()
	old, next := two(t)
	d, err := index.Diff(old, next)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.GetPrograms()) == 0 || len(d.GetNodes()) == 0 || len(d.GetGrants()) == 0 || len(d.GetCells()) == 0 || len(d.GetUsers()) != 3 {
		t.Errorf("the delta lacks something: %v", d)
	}
	got, err := index.Apply(old, d)
	if err != nil || got.StateHash() != next.StateHash() || got.Sum() != next.StateHash() {
		t.Fatalf("%v: sum %v, whole %v, want %v", err, got.StateHash(), got.Sum(), next.StateHash())
	}
	if old.Sum() != old.StateHash() {
		t.Error("the old index has changed")
	}
	back, err := index.Diff(got, old)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := index.Apply(got, back); err != nil || again.StateHash() != old.StateHash() {
		t.Errorf("there and back: %v", err)
	}
}

// Deltas that are applied to one index do not see each other.
func TestDeltasOnOneIndexAreApart(t *testing.T) {
	t.Parallel()
	old, next := two(t)
	d, err := index.Diff(old, next)
	if err != nil {
		t.Fatal(err)
	}
	a, err := index.Apply(old, d)
	if err != nil {
		t.Fatal(err)
	}
	state := a.Sum()
	for range 3 {
		other := proto.CloneOf(d)
		other.Users[1].Name = "mallory" + other.GetUsers()[1].GetName()
		other.Users[1].Region = "us"
		if _, err := index.ApplyAny(old, other); err != nil {
			t.Fatal(err)
		}
		back, err := index.Diff(a, old)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := index.Apply(a, back); err != nil {
			t.Fatal(err)
		}
	}
	if a.Sum() != state {
		t.Error("one delta wrote into another's index")
	}
}

// FuzzApply takes the input for a delta, and for changes to the bytes of an honest one: place, place, value. Whatever is
// applied must be readable, and its running state that of its records.
func FuzzApply(f *testing.F) {
	old, next := two(f)
	d, err := index.Diff(old, next)
	if err != nil {
		f.Fatal(err)
	}
	honest, err := proto.Marshal(d)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(honest)
	f.Add([]byte{0, 0, 1})
	f.Add([]byte{40, 0, 0xff, 90, 0, 7})
	f.Fuzz(func(t *testing.T, in []byte) {
		changed := bytes.Clone(honest)
		for rest := in; len(rest) >= 3 && len(in) < 60; rest = rest[3:] {
			changed[(int(rest[0])|int(rest[1])<<8)%len(changed)] = rest[2]
		}
		for _, raw := range [][]byte{in, changed} {
			delta := &snapshotv1.Delta{}
			if proto.Unmarshal(raw, delta) != nil {
				continue
			}
			x, err := index.ApplyAny(old, delta)
			if err != nil {
				continue
			}
			readAll(x)
			if whole := x.Sum(); whole != x.StateHash() {
				t.Fatalf("running state %v, records have %v: %v", x.StateHash(), whole, delta)
			}
		}
	})
}
