package snapshottest

import (
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/residual"
)

type result int

const (
	no result = iota
	yes
	fail
)

type outcomes [3]bool

func of(b bool) result {
	if b {
		return yes
	}
	return no
}

// env is everything that a condition may read.
type env struct {
	twin   Twin
	user   snapshot.Principal
	server string
	item   string
	facts  snapshot.Facts
	req    *authz.Request
}

func (t Twin) env(user snapshot.Principal, server, item string, r *authz.Request) env {
	e := env{twin: t, user: user, server: server, item: item, req: r}
	for _, s := range t.Policy.Servers {
		if s.Name == server {
			e.facts = s.Facts[item]
		}
	}
	return e
}

func (e env) fact(name string) (snapshot.Fact, bool) {
	kind, shown := snapshot.KindOf(e.item)
	texts := map[string]string{"name": shown, "server": e.server, "kind": kind.String()}
	if s, ok := texts[name]; ok {
		return snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeString, Str: s}}, true
	}
	f, ok := e.facts[name]
	return f, ok
}

// What a condition comes to whoever asks, and whenever.
type certainty int

const (
	open certainty = iota
	certainYes
	certainNo
	certainFail
)

// fixed says what the item's facts alone make of a condition, reading from the left: behind something open, nothing is
// certain any more.
func (e env) fixed(c *snapshot.Cond) certainty {
	if c == nil {
		return certainYes
	}
	switch c.Op {
	case snapshot.OpTrue:
		return certainYes
	case snapshot.OpFalse:
		return certainNo
	case snapshot.OpFail:
		return certainFail
	case snapshot.OpNot:
		return [...]certainty{open: open, certainYes: certainNo, certainNo: certainYes, certainFail: certainFail}[e.fixed(c.Kids[0])]
	case snapshot.OpAnd, snapshot.OpOr:
		on := certainYes
		if c.Op == snapshot.OpOr {
			on = certainNo
		}
		for _, k := range c.Kids {
			if f := e.fixed(k); f != on {
				return f
			}
		}
		return on
	case snapshot.OpForeign, snapshot.OpMember, snapshot.OpBefore, snapshot.OpAfter:
		return open
	default:
		return e.comparison(c)
	}
}

// comparison is fixed for an operator that compares.
func (e env) comparison(c *snapshot.Cond) certainty {
	right := c.With != nil && c.With.From != snapshot.FromResource
	if c.From == snapshot.FromResource && !right {
		return [...]certainty{no: certainNo, yes: certainYes, fail: certainFail}[e.eval(c)]
	}
	if c.From != snapshot.FromResource && !(c.With != nil && c.With.From == snapshot.FromResource) {
		return open
	}
	// One side is a fact, the other is not. A fact that cannot be compared is an error whatever the other side is.
	name, other := c.Arg, snapshot.Operand{From: c.From, Arg: c.Arg}
	if c.From == snapshot.FromResource {
		other = *c.With
	} else {
		name = c.With.Arg
	}
	f, ok := e.fact(name)
	want := snapshot.AttrType(other.From, other.Arg)
	if c.Op == snapshot.OpContains {
		want = snapshot.TypeSet
	}
	if !ok || f.Type != want {
		return certainFail
	}
	return open
}

func (e env) eval(c *snapshot.Cond) result {
	switch c.Op {
	case snapshot.OpTrue:
		return yes
	case snapshot.OpFalse:
		return no
	case snapshot.OpFail:
		return fail
	case snapshot.OpNot:
		switch e.eval(c.Kids[0]) {
		case yes:
			return no
		case no:
			return yes
		default:
			return fail
		}
	case snapshot.OpAnd:
		for _, k := range c.Kids {
			if r := e.eval(k); r != yes {
				return r
			}
		}
		return yes
	case snapshot.OpOr:
		for _, k := range c.Kids {
			if r := e.eval(k); r != no {
				return r
			}
		}
		return no
	case snapshot.OpBefore:
		return of(e.req.NowMS < c.Value.Int)
	case snapshot.OpAfter:
		return of(e.req.NowMS >= c.Value.Int)
	case snapshot.OpMember:
		return of(e.twin.belongs(e.user, snapshot.Ref(c.Arg)))
	case snapshot.OpForeign:
		return e.foreign(c)
	default:
		if c.From == snapshot.FromArgs {
			return leaf(c, e.req.Args)
		}
		return e.attribute(c)
	}
}

// foreign asks Cedar, which is the only one to know.
func (e env) foreign(c *snapshot.Cond) result {
	text, err := residual.Fold(c.Value.Str, e.fact)
	if err != nil {
		return fail
	}
	expr, err := residual.Parse(text)
	if err != nil {
		return fail
	}
	ok, err := expr.Eval(&residual.Env{
		NowMS: e.req.NowMS, Args: e.req.Args, IP: e.req.IP.Unmap(), Region: e.req.Region, Actor: e.req.Actor,
		Principal: residual.Principal{Name: e.user.Name, Kind: e.user.Kind, Clearance: e.user.Clearance, Region: e.user.Region},
	})
	if err != nil {
		return fail
	}
	return of(ok)
}

// read is the value of an attribute; false when there is none.
func (e env) read(from snapshot.Source, name, zone string) (snapshot.Fact, bool) {
	text := func(s string) (snapshot.Fact, bool) {
		return snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeString, Str: s}}, s != ""
	}
	number := func(n int) (snapshot.Fact, bool) {
		return snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeNumber, Int: int64(n)}}, true
	}
	switch from {
	case snapshot.FromContext:
		switch name {
		case "region":
			return text(e.req.Region)
		case "actor":
			return text(e.req.Actor)
		}
	case snapshot.FromPrincipal:
		switch name {
		case "name":
			return text(e.user.Name)
		case "kind":
			return text(e.user.Kind.String())
		case "region":
			return text(e.user.Region)
		}
		return number(int(e.user.Clearance))
	case snapshot.FromResource:
		return e.fact(name)
	case snapshot.FromClock:
		loc, err := time.LoadLocation(zone)
		if err != nil {
			panic(err)
		}
		t := time.UnixMilli(e.req.NowMS).In(loc)
		return number(map[string]int{
			"minute": t.Hour()*60 + t.Minute(), "hour": t.Hour(), "weekday": (int(t.Weekday())+6)%7 + 1,
			"day": t.Day(), "month": int(t.Month()), "year": t.Year(),
		}[name])
	case snapshot.FromArgs:
	}
	return snapshot.Fact{}, false
}

// attribute evaluates a comparison of anything but arguments.
func (e env) attribute(c *snapshot.Cond) result {
	if c.Arg == "ip" && c.From == snapshot.FromContext {
		return e.address(c)
	}
	got, ok := e.read(c.From, c.Arg, c.Zone)
	if c.Op == snapshot.OpHas {
		return of(ok)
	}
	if !ok {
		return fail
	}
	values := c.Values
	if c.Op != snapshot.OpIn {
		values = []snapshot.Value{c.Value}
	}
	if c.With != nil {
		other, ok := e.read(c.With.From, c.With.Arg, "")
		if !ok || other.Type == snapshot.TypeSet {
			return fail
		}
		values = []snapshot.Value{other.Value}
	}
	if c.Op == snapshot.OpContains {
		if got.Type != snapshot.TypeSet {
			return fail
		}
		return of(slices.Contains(got.Set, values[0].Str))
	}
	in := no
	for _, v := range values {
		if v.Type != got.Type {
			return fail
		}
		if v == got.Value {
			in = yes
			break
		}
	}
	switch a, b := got.Int, values[0].Int; c.Op {
	case snapshot.OpEq, snapshot.OpIn:
		return in
	case snapshot.OpNe:
		return of(in == no)
	default:
		if got.Type != snapshot.TypeNumber {
			return fail
		}
		return of(map[snapshot.Op]bool{snapshot.OpLt: a < b, snapshot.OpLe: a <= b, snapshot.OpGt: a > b, snapshot.OpGe: a >= b}[c.Op])
	}
}

func (e env) address(c *snapshot.Cond) result {
	ip := e.req.IP.Unmap()
	if c.Op == snapshot.OpHas {
		return of(ip.IsValid())
	}
	if !ip.IsValid() {
		return fail
	}
	if net, err := netip.ParsePrefix(c.Value.Str); err == nil {
		return of(net.Contains(ip))
	}
	return of(netip.MustParseAddr(c.Value.Str) == ip)
}

func leaf(c *snapshot.Cond, args []byte) result {
	val, present, ok := find(c.Arg, args)
	if !ok {
		return fail
	}
	if c.Op == snapshot.OpHas {
		return of(present)
	}
	if !present {
		return fail
	}
	if c.Op == snapshot.OpIn {
		in := no
		for _, v := range c.Values {
			switch compare(val, v) {
			case 0:
				in = yes
			case wrongType:
				return fail
			}
		}
		return in
	}
	cmp := compare(val, c.Value)
	if cmp == wrongType {
		return fail
	}
	switch c.Op {
	case snapshot.OpEq:
		return of(cmp == 0)
	case snapshot.OpNe:
		return of(cmp != 0)
	case snapshot.OpLt:
		return of(cmp < 0)
	case snapshot.OpLe:
		return of(cmp <= 0)
	case snapshot.OpGt:
		return of(cmp > 0)
	default:
		return of(cmp >= 0)
	}
}

// find reads the object with a strict decoder. It is not ok when the object is not one, when a name that equals the
// argument's but for case is there, when the argument is there twice or when it is null.
func find(name string, args []byte) (val jsontext.Value, present, ok bool) {
	if args == nil {
		return nil, false, true
	}
	if depth(args) > authz.MaxDepth {
		return nil, false, false
	}
	dec := jsontext.NewDecoder(strings.NewReader(string(args)), jsontext.AllowDuplicateNames(true))
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '{' {
		return nil, false, false
	}
	ok = true
	for dec.PeekKind() == '"' {
		key, err := dec.ReadToken()
		if err != nil {
			return nil, false, false
		}
		got := key.String()
		v, err := dec.ReadValue()
		if err != nil {
			return nil, false, false
		}
		if strings.EqualFold(got, name) {
			ok = ok && got == name && !present && v.Kind() != 'n'
			val, present = v.Clone(), true
		}
	}
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != '}' {
		return nil, false, false
	}
	if _, err := dec.ReadToken(); err == nil || err.Error() != "EOF" {
		return nil, false, false
	}
	return val, present, ok
}

func depth(b []byte) int {
	dec := jsontext.NewDecoder(strings.NewReader(string(b)), jsontext.AllowDuplicateNames(true))
	deepest := 0
	for {
		if _, err := dec.ReadToken(); err != nil {
			return deepest
		}
		deepest = max(deepest, dec.StackDepth())
	}
}

const wrongType = 9

func compare(val jsontext.Value, want snapshot.Value) int {
	switch {
	case val.Kind() == '"' && want.Type == snapshot.TypeString:
		s, err := jsontext.AppendUnquote(nil, val)
		if err != nil {
			return wrongType
		}
		return strings.Compare(string(s), want.Str)
	case (val.Kind() == 't' || val.Kind() == 'f') && want.Type == snapshot.TypeBool:
		if (val.Kind() == 't') == want.Bool {
			return 0
		}
		return 1
	case val.Kind() == '0' && want.Type == snapshot.TypeNumber:
		r, ok := new(big.Rat).SetString(string(val))
		if !ok {
			return wrongType
		}
		return r.Cmp(new(big.Rat).SetInt64(want.Int))
	}
	return wrongType
}

// possible lists what a condition may come to when the arguments are not known.
func (e env) possible(c *snapshot.Cond) outcomes {
	switch c.Op {
	case snapshot.OpNot:
		k := e.possible(c.Kids[0])
		return outcomes{no: k[yes], yes: k[no], fail: k[fail]}
	case snapshot.OpAnd:
		return e.chain(c.Kids, yes)
	case snapshot.OpOr:
		return e.chain(c.Kids, no)
	case snapshot.OpForeign:
		if text, err := residual.Fold(c.Value.Str, e.fact); err == nil {
			if expr, err := residual.Parse(text); err == nil && expr.ReadsArgs() {
				return outcomes{true, true, true}
			}
		}
	case snapshot.OpTrue, snapshot.OpFalse, snapshot.OpFail, snapshot.OpBefore, snapshot.OpAfter, snapshot.OpMember:
	default:
		if c.From == snapshot.FromArgs {
			return outcomes{true, true, true}
		}
	}
	var out outcomes
	out[e.eval(c)] = true
	return out
}

// chain goes on to the next kid while the kids may come to the given result.
func (e env) chain(kids []*snapshot.Cond, on result) outcomes {
	var out outcomes
	for _, k := range kids {
		p := e.possible(k)
		for _, r := range []result{no, yes, fail} {
			if r != on {
				out[r] = out[r] || p[r]
			}
		}
		if !p[on] {
			return out
		}
	}
	out[on] = true
	return out
}
