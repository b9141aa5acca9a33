package snapshottest

import (
	"net/netip"

	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
)

// What random policies and calls know besides arguments.
var (
	regions  = []string{"", "eu", "us"}
	actors   = []string{"", "u0", "robot"}
	zones    = []string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Apia"}
	networks = []string{"10.0.0.0/8", "10.1.2.3", "10.1.2.0/23", "0.0.0.0/0", "2001:db8::/33", "::/0", "2001:db8::1", "255.255.255.255/32"}
	surfaces = []string{
		snapshot.PromptItem("greet"), snapshot.PromptItem("t0"),
		snapshot.ResourceItem("file:///docs/*"), snapshot.ResourceItem("file:///docs/*.md"), snapshot.ResourceItem("*"),
	}
	uris = []string{"file:///docs/a.md", "file:///docs/b.txt", "file:///etc/passwd", "file:///docs/../etc/passwd", "mem:x"}
)

func addresses() []netip.Addr {
	all := []netip.Addr{{}}
	for _, s := range []string{"10.1.2.3", "10.1.3.255", "10.1.4.0", "255.255.255.255", "::ffff:10.1.2.3", "2001:db8::1", "2001:db8:8000::1", "::"} {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

// instants are on both sides of the changes of clocks, of years and of the table of a zone.
var instants = []int64{
	Now, Now + 1, Now - 1, Now + 86_400_000*3, 0, -1, -86_400_001, 946_684_799_999, 1_774_745_999_999, 1_774_746_000_000,
	1_793_494_799_999, 1_793_494_800_000, 1_325_239_199_999, 1_325_325_600_000, 1_709_164_800_000, 4_102_444_800_000,
}

func request(t *rapid.T) authz.Request {
	r := authz.Request{
		NowMS:  Now + rapid.Int64Range(-2, 2).Draw(t, "now"),
		IP:     rapid.SampledFrom(addresses()).Draw(t, "ip"),
		Region: rapid.SampledFrom(regions).Draw(t, "region"),
		Actor:  rapid.SampledFrom(actors).Draw(t, "actor"),
	}
	if rapid.IntRange(0, 3).Draw(t, "another day") == 0 {
		r.NowMS = rapid.SampledFrom(instants).Draw(t, "instant")
	}
	return r
}

// facts gives some items some attributes.
func facts(t *rapid.T, items []string) map[string]snapshot.Facts {
	if !rapid.Bool().Draw(t, "facts") {
		return nil
	}
	kinds := make([]snapshot.Facts, 3)
	for i := range kinds {
		f := snapshot.Facts{}
		if rapid.Bool().Draw(t, "annotated") {
			f["readOnlyHint"] = snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeBool, Bool: rapid.Bool().Draw(t, "read only")}}
		}
		if rapid.Bool().Draw(t, "classed") {
			f["class"] = snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeNumber, Int: int64(rapid.IntRange(0, 3).Draw(t, "class"))}}
		}
		if rapid.Bool().Draw(t, "placed") {
			f["regions"] = snapshot.Fact{
				Value: snapshot.Value{Type: snapshot.TypeSet},
				Set:   rapid.SampledFrom([][]string{{}, {"eu"}, {"eu", "us"}}).Draw(t, "regions"),
			}
		}
		if rapid.Bool().Draw(t, "labelled") {
			f["labels.env"] = snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeString, Str: rapid.SampledFrom([]string{"eu", "prod"}).Draw(t, "env")}}
		}
		kinds[i] = f
	}
	out := map[string]snapshot.Facts{}
	for i, it := range items {
		if i%4 != 3 {
			out[it] = kinds[i%3]
		}
	}
	return out
}

// knownCond asks something that lists know as well as calls.
func knownCond(t *rapid.T) *snapshot.Cond {
	text := func(name string, from snapshot.Source, values []string) *snapshot.Cond {
		c := &snapshot.Cond{From: from, Arg: name, Op: rapid.SampledFrom([]snapshot.Op{snapshot.OpHas, snapshot.OpEq, snapshot.OpNe, snapshot.OpIn}).Draw(t, "op")}
		v := snapshot.Value{Type: snapshot.TypeString, Str: rapid.SampledFrom(values).Draw(t, "text")}
		switch c.Op {
		case snapshot.OpHas:
		case snapshot.OpIn:
			c.Values = []snapshot.Value{v, {Type: snapshot.TypeString, Str: "eu"}}
		default:
			c.Value = v
		}
		return c
	}
	number := func(c *snapshot.Cond, most int) *snapshot.Cond {
		c.Op = rapid.SampledFrom([]snapshot.Op{snapshot.OpEq, snapshot.OpNe, snapshot.OpLt, snapshot.OpLe, snapshot.OpGt, snapshot.OpGe, snapshot.OpIn}).Draw(t, "op")
		v := snapshot.Value{Type: snapshot.TypeNumber, Int: int64(rapid.IntRange(0, most).Draw(t, "number"))}
		if c.Op == snapshot.OpIn {
			c.Values = []snapshot.Value{v, {Type: snapshot.TypeNumber, Int: 1}}
			return c
		}
		c.Value = v
		return c
	}
	switch rapid.IntRange(0, 6).Draw(t, "attribute") {
	case 0:
		return text("region", snapshot.FromContext, regions)
	case 1:
		return text("actor", snapshot.FromContext, actors)
	case 2:
		return text(rapid.SampledFrom([]string{"name", "kind", "region"}).Draw(t, "of the principal"), snapshot.FromPrincipal, []string{"u0", "person", "workload", "eu"})
	case 3:
		return number(&snapshot.Cond{From: snapshot.FromPrincipal, Arg: "clearance"}, 3)
	case 4:
		if rapid.IntRange(0, 5).Draw(t, "has") == 0 {
			return &snapshot.Cond{Op: snapshot.OpHas, From: snapshot.FromContext, Arg: "ip"}
		}
		return &snapshot.Cond{
			Op: snapshot.OpInRange, From: snapshot.FromContext, Arg: "ip",
			Value: snapshot.Value{Type: snapshot.TypeString, Str: rapid.SampledFrom(networks).Draw(t, "network")},
		}
	case 5:
		op := rapid.SampledFrom([]snapshot.Op{snapshot.OpEq, snapshot.OpNe}).Draw(t, "op")
		return &snapshot.Cond{
			Op: op, From: snapshot.FromPrincipal, Arg: rapid.SampledFrom([]string{"region", "name"}).Draw(t, "left"),
			With: &snapshot.Operand{From: snapshot.FromContext, Arg: rapid.SampledFrom([]string{"region", "actor"}).Draw(t, "right")},
		}
	default:
		field := rapid.SampledFrom(snapshot.ClockFields()).Draw(t, "field")
		c := &snapshot.Cond{From: snapshot.FromClock, Arg: field, Zone: rapid.SampledFrom(zones).Draw(t, "zone")}
		return number(c, map[string]int{"minute": 1439, "hour": 23, "weekday": 7, "day": 31, "month": 12, "year": 2100}[field])
	}
}

// attributeCond asks about the item.
func attributeCond(t *rapid.T) *snapshot.Cond {
	str := func(s string) snapshot.Value { return snapshot.Value{Type: snapshot.TypeString, Str: s} }
	name := rapid.SampledFrom([]string{"name", "kind", "server", "readOnlyHint", "class", "regions", "labels.env", "missing"}).Draw(t, "fact")
	c := &snapshot.Cond{From: snapshot.FromResource, Arg: name}
	equal := []snapshot.Op{snapshot.OpEq, snapshot.OpNe, snapshot.OpHas}
	order := []snapshot.Op{snapshot.OpLt, snapshot.OpLe, snapshot.OpGt, snapshot.OpGe, snapshot.OpEq, snapshot.OpNe}
	switch name {
	case "readOnlyHint":
		c.Op, c.Value = rapid.SampledFrom(equal).Draw(t, "op"), snapshot.Value{Type: snapshot.TypeBool, Bool: rapid.Bool().Draw(t, "bool")}
	case "class":
		c.Op, c.Value = rapid.SampledFrom(order).Draw(t, "op"), snapshot.Value{Type: snapshot.TypeNumber, Int: int64(rapid.IntRange(0, 3).Draw(t, "level"))}
		switch rapid.IntRange(0, 3).Draw(t, "with") {
		case 0:
			c.Value, c.With = snapshot.Value{}, &snapshot.Operand{From: snapshot.FromPrincipal, Arg: "clearance"}
		case 1:
			return &snapshot.Cond{Op: c.Op, From: snapshot.FromPrincipal, Arg: "clearance", With: &snapshot.Operand{From: snapshot.FromResource, Arg: "class"}}
		}
	case "regions":
		c.Op, c.Value = snapshot.OpContains, str("eu")
		if rapid.Bool().Draw(t, "with") {
			c.Value, c.With = snapshot.Value{}, &snapshot.Operand{
				From: rapid.SampledFrom([]snapshot.Source{snapshot.FromContext, snapshot.FromPrincipal}).Draw(t, "from"), Arg: "region",
			}
		}
	default:
		c.Op, c.Value = rapid.SampledFrom(append([]snapshot.Op{snapshot.OpIn}, equal...)).Draw(t, "op"),
			str(rapid.SampledFrom([]string{"eu", "prod", "tool", "prompt", "s0", "t0"}).Draw(t, "text"))
		if c.Op == snapshot.OpIn {
			c.Values, c.Value = []snapshot.Value{c.Value, str("t1")}, snapshot.Value{}
		} else if c.Op != snapshot.OpHas && rapid.IntRange(0, 3).Draw(t, "with") == 0 {
			c.Value, c.With = snapshot.Value{}, &snapshot.Operand{From: snapshot.FromContext, Arg: "region"}
		}
	}
	if c.Op == snapshot.OpHas {
		c.Value = snapshot.Value{}
	}
	return c
}
