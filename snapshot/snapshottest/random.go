package snapshottest

import (
	"fmt"
	"strconv"
	"strings"

	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
)

// Call is a random request.
type Call struct {
	Principal, Server, Item string
	// URI is one that a pattern of the server may match.
	URI     string
	Request authz.Request
}

// Now is around which the times of random policies and calls lie.
const Now = 1_800_000_000_000

// argTypes are the arguments that random conditions speak of.
func argTypes() map[string]snapshot.Type {
	return map[string]snapshot.Type{
		"amount": snapshot.TypeNumber, "count": snapshot.TypeNumber, "region": snapshot.TypeString,
		"dry_run": snapshot.TypeBool, "Straße": snapshot.TypeString, "kind": snapshot.TypeString,
	}
}

var argNames = []string{"amount", "count", "region", "dry_run", "Straße", "kind"}

var texts = []string{"", "eu", "us", "a\"b\\c", "naïve", "😀", "EU"}

var ints = []int64{0, 1, -1, 99, 100, 101, 500, 1 << 53, 1<<63 - 1, -1 << 63}

// Policies makes random policies in which grants of all shapes are likely to meet.
func Policies() *rapid.Generator[*snapshot.Policy] {
	return rapid.Custom(func(t *rapid.T) *snapshot.Policy {
		p := &snapshot.Policy{Tenant: "0198c0de-0000-7000-8000-000000000001"}
		refs := []snapshot.Ref{snapshot.Everyone}
		for i := range rapid.IntRange(0, 9).Draw(t, "nodes") {
			ref := snapshot.Ref(fmt.Sprintf("team:%d", i))
			p.Nodes = append(p.Nodes, snapshot.Node{Ref: ref, Parents: some(t, refs[1:], 3)})
			refs = append(refs, ref)
		}
		if len(p.Nodes) > 0 && rapid.Bool().Draw(t, "everyone has parents") {
			p.Nodes = append(p.Nodes, snapshot.Node{Ref: snapshot.Everyone, Parents: refs[1:2]})
		}
		nodes := refs
		for i := range rapid.IntRange(1, 4).Draw(t, "users") {
			name := fmt.Sprintf("u%d", i)
			p.Principals = append(p.Principals, snapshot.Principal{
				Name: name, Disabled: rapid.IntRange(0, 9).Draw(t, "disabled") == 0, Nodes: some(t, nodes, 9),
				Kind:      rapid.SampledFrom([]snapshot.PrincipalKind{snapshot.KindPerson, snapshot.KindServiceAccount, snapshot.KindWorkload}).Draw(t, "kind"),
				Clearance: uint8(rapid.IntRange(0, 3).Draw(t, "clearance")),
				Region:    rapid.SampledFrom(regions).Draw(t, "home"),
			})
			refs = append(refs, snapshot.Ref("user:"+name))
		}
		var tools []string
		for i := range rapid.IntRange(1, 3).Draw(t, "servers") {
			s := snapshot.Server{Name: fmt.Sprintf("s%d", i)}
			n := rapid.SampledFrom([]int{0, 1, 2, 3, 63, 64, 65, 130}).Draw(t, "items")
			for j := range n {
				s.Items = append(s.Items, fmt.Sprintf("t%d", j))
			}
			if rapid.Bool().Draw(t, "surfaces") {
				s.Items = append(s.Items, surfaces...)
			}
			tools = append(tools, s.Items...)
			s.Facts = facts(t, s.Items)
			p.Servers = append(p.Servers, s)
		}
		servers := []string{"*", "s0", "s0", "s1", "s2"}
		for i := range rapid.IntRange(0, 16).Draw(t, "grants") {
			g := snapshot.Grant{
				ID: fmt.Sprintf("g%02d", i), Deny: rapid.IntRange(0, 3).Draw(t, "deny") == 0,
				Subject: rapid.SampledFrom(refs).Draw(t, "subject"), Server: rapid.SampledFrom(servers).Draw(t, "server"),
			}
			if len(tools) > 0 && rapid.Bool().Draw(t, "one tool") {
				g.Tool = rapid.SampledFrom(tools).Draw(t, "tool")
			}
			if rapid.IntRange(0, 2).Draw(t, "conditional") > 0 {
				g.When = condsOver(3, refs).Draw(t, "when")
			}
			p.Grants = append(p.Grants, g)
		}
		return p
	})
}

func some(t *rapid.T, from []snapshot.Ref, most int) []snapshot.Ref {
	if len(from) == 0 {
		return nil
	}
	return rapid.SliceOfNDistinct(rapid.SampledFrom(from), 0, min(most, len(from)), rapid.ID).Draw(t, "refs")
}

// Conds makes random conditions of a depth, over the arguments of Calls and time.
func Conds(depth int) *rapid.Generator[*snapshot.Cond] { return conds(depth, leafCond) }

// condsOver makes random conditions over everything that one may read.
func condsOver(depth int, refs []snapshot.Ref) *rapid.Generator[*snapshot.Cond] {
	return conds(depth, func(t *rapid.T) *snapshot.Cond {
		switch rapid.IntRange(0, 5).Draw(t, "source") {
		case 0, 1, 2:
			return leafCond(t)
		case 3:
			if rapid.Bool().Draw(t, "member") {
				return &snapshot.Cond{Op: snapshot.OpMember, Arg: string(rapid.SampledFrom(refs).Draw(t, "ref"))}
			}
			return knownCond(t)
		default:
			return attributeCond(t)
		}
	})
}

func conds(depth int, leaf func(*rapid.T) *snapshot.Cond) *rapid.Generator[*snapshot.Cond] {
	return rapid.Custom(func(t *rapid.T) *snapshot.Cond {
		if depth > 0 && rapid.Bool().Draw(t, "inner") {
			op := rapid.SampledFrom([]snapshot.Op{snapshot.OpAnd, snapshot.OpOr, snapshot.OpNot}).Draw(t, "op")
			n := 1
			if op != snapshot.OpNot {
				n = rapid.IntRange(1, 3).Draw(t, "kids")
			}
			c := &snapshot.Cond{Op: op}
			for range n {
				c.Kids = append(c.Kids, conds(depth-1, leaf).Draw(t, "kid"))
			}
			return c
		}
		return leaf(t)
	})
}

func leafCond(t *rapid.T) *snapshot.Cond {
	c := &snapshot.Cond{Arg: rapid.SampledFrom(argNames).Draw(t, "arg")}
	typ := argTypes()[c.Arg]
	ops := []snapshot.Op{
		snapshot.OpHas, snapshot.OpEq, snapshot.OpEq, snapshot.OpNe, snapshot.OpIn,
		snapshot.OpBefore, snapshot.OpAfter, snapshot.OpTrue, snapshot.OpFalse,
	}
	if typ == snapshot.TypeNumber {
		ops = append(ops, snapshot.OpLt, snapshot.OpLe, snapshot.OpGt, snapshot.OpGe)
	}
	c.Op = rapid.SampledFrom(ops).Draw(t, "op")
	switch c.Op {
	case snapshot.OpTrue, snapshot.OpFalse:
		c.Arg = ""
	case snapshot.OpBefore, snapshot.OpAfter:
		c.Arg = ""
		c.Value = snapshot.Value{Type: snapshot.TypeNumber, Int: Now + rapid.Int64Range(-1, 2).Draw(t, "time")}
	case snapshot.OpIn:
		for range rapid.IntRange(1, 3).Draw(t, "members") {
			c.Values = append(c.Values, constant(t, typ))
		}
	case snapshot.OpHas:
	default:
		c.Value = constant(t, typ)
	}
	return c
}

func constant(t *rapid.T, typ snapshot.Type) snapshot.Value {
	v := snapshot.Value{Type: typ}
	switch typ {
	case snapshot.TypeNumber:
		v.Int = rapid.SampledFrom(ints).Draw(t, "int")
	case snapshot.TypeBool:
		v.Bool = rapid.Bool().Draw(t, "bool")
	default:
		v.Str = rapid.SampledFrom(texts).Draw(t, "text")
	}
	return v
}

// Calls makes random calls on a policy. Hostile ones send arguments of the wrong type, in odd writing, twice, in another
// case, or cut off; the others send what a schema would allow, integers only.
func Calls(p *snapshot.Policy, hostile bool) *rapid.Generator[Call] {
	return rapid.Custom(func(t *rapid.T) Call {
		s := rapid.SampledFrom(p.Servers).Draw(t, "server")
		items := append([]string{snapshot.ItemOther}, s.Items...)
		if len(items) > 8 {
			items = append([]string{items[1], items[len(items)-1], items[len(items)/2]}, items...)
		}
		c := Call{
			Principal: rapid.SampledFrom(p.Principals).Draw(t, "principal").Name, Server: s.Name,
			Item: rapid.SampledFrom(items).Draw(t, "item"), URI: rapid.SampledFrom(uris).Draw(t, "uri"),
			Request: request(t),
		}
		if rapid.IntRange(0, 9).Draw(t, "absent") > 0 {
			c.Request.Args = arguments(t, hostile)
		}
		return c
	})
}

func arguments(t *rapid.T, hostile bool) []byte {
	var b strings.Builder
	b.WriteString("{")
	names := rapid.SliceOfNDistinct(rapid.SampledFrom(append([]string{"other", "x"}, argNames...)), 0, 8, rapid.ID).Draw(t, "names")
	for i, n := range names {
		if i > 0 {
			b.WriteString(",")
		}
		writing := n
		if hostile {
			writing = rapid.SampledFrom(writings(n)).Draw(t, "writing")
		}
		fmt.Fprintf(&b, `"%s":%s`, writing, value(t, n, hostile))
	}
	b.WriteString("}")
	out := b.String()
	if hostile && rapid.IntRange(0, 19).Draw(t, "broken") == 0 {
		out = rapid.SampledFrom([]string{"", "null", "[]", out + ",", out + "}", out[:len(out)-1], "{,}", " \n" + out + "\t"}).Draw(t, "break")
	}
	return []byte(out)
}

// writings are ways to write a name, honest ones most often.
func writings(n string) []string {
	return []string{
		n, n, n, n, n, n, n, n, fmt.Sprintf(`\u%04x%s`, n[0], n[1:]), strings.ToUpper(n), strings.ToTitle(n[:1]) + n[1:],
		n + `":1,"` + n, n + `":1,"` + strings.ToUpper(n), strings.ReplaceAll(n, "k", "\u212a"), strings.ReplaceAll(n, "s", "ſ"),
	}
}

func value(t *rapid.T, name string, hostile bool) string {
	if hostile && rapid.IntRange(0, 3).Draw(t, "odd") == 0 {
		return rapid.SampledFrom([]string{
			"null", "[]", "{}", `{"amount":{"amount":[1,"}"]}}`, `"100"`, "true", "100", "1e2", "100.0", "99.5", "-0", "0.0",
			"1E+2", "1000e-1", "1e400", "-1e400", "1e-400", "9223372036854775808", "-9223372036854775809",
			"0.1e1", "100.000000000000000000000000000000000001", "01", "1.", ".5", "+1", "NaN", `"\ud800"`, `"\ud83d\ude00"`,
			`"e\u0075"`, "\"\xff\"", `"a\"b\\c"`, `"na\u00efve"`, strings.Repeat("[", 63) + strings.Repeat("]", 63),
			strings.Repeat("[", 64) + strings.Repeat("]", 64), `"\x"`, `"eu`, `{]`, `tru`,
		}).Draw(t, "oddity")
	}
	switch argTypes()[name] {
	case snapshot.TypeNumber:
		return strconv.FormatInt(rapid.SampledFrom(ints).Draw(t, "int"), 10)
	case snapshot.TypeBool:
		return strconv.FormatBool(rapid.Bool().Draw(t, "bool"))
	default:
		return jsonText(rapid.SampledFrom(texts).Draw(t, "text"))
	}
}

func jsonText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
