// Package snapshottest helps to test whoever makes or uses snapshots: a slow, obvious twin of the decision, random
// policies and requests for it, a large policy for benchmarks, and an authority that seals with keys known to all.
package snapshottest

import (
	"math/big"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
)

// Twin decides straight from the rules, grant by grant. It is what the index must agree with.
type Twin struct{ Policy *snapshot.Policy }

// Decide decides one call; what does not exist is not granted. Program is never set.
func (t Twin) Decide(principal, server, item string, args []byte, nowMS int64) authz.Decision {
	user, ok := t.principal(principal)
	if ok && user.Disabled {
		return authz.Decision{Reason: authz.Disabled}
	}
	if !ok || !t.exists(server, item) {
		return authz.Decision{Reason: authz.NoGrant}
	}
	var seen struct{ allow, plainAllow, plainDeny, denyTrue, denyError, allowTrue, allowError bool }
	for _, g := range t.applicable(user, server, item) {
		result := yes
		if g.When != nil {
			result = eval(g.When, args, nowMS)
		}
		switch {
		case g.Deny && g.When == nil:
			seen.plainDeny = true
		case g.Deny:
			seen.denyTrue = seen.denyTrue || result == yes
			seen.denyError = seen.denyError || result == fail
		default:
			seen.allow = true
			seen.plainAllow = seen.plainAllow || g.When == nil
			seen.allowTrue = seen.allowTrue || result == yes
			seen.allowError = seen.allowError || result == fail
		}
	}
	switch {
	case seen.plainDeny:
		return authz.Decision{Reason: authz.ExplicitDeny}
	case !seen.allow:
		return authz.Decision{Reason: authz.NoGrant}
	case seen.denyTrue:
		return authz.Decision{Visible: true, Reason: authz.Condition}
	case seen.denyError:
		return authz.Decision{Visible: true, Reason: authz.ArgumentType}
	case seen.plainAllow || seen.allowTrue:
		return authz.Decision{Allow: true, Visible: true, Reason: authz.Allowed}
	case seen.allowError:
		return authz.Decision{Visible: true, Reason: authz.ArgumentType}
	}
	return authz.Decision{Visible: true, Reason: authz.Condition}
}

// Visible says whether an item belongs in a list.
func (t Twin) Visible(principal, server, item string, nowMS int64) bool {
	user, ok := t.principal(principal)
	if !ok || user.Disabled || !t.exists(server, item) {
		return false
	}
	shown := false
	for _, g := range t.applicable(user, server, item) {
		can := outcomes{yes: true}
		if g.When != nil {
			can = possible(g.When, nowMS)
		}
		if g.Deny && !can[no] {
			return false
		}
		if !g.Deny && can[yes] {
			shown = true
		}
	}
	return shown
}

func (t Twin) principal(name string) (snapshot.Principal, bool) {
	for _, p := range t.Policy.Principals {
		if p.Name == name {
			return p, true
		}
	}
	return snapshot.Principal{}, false
}

func (t Twin) exists(server, item string) bool {
	for _, s := range t.Policy.Servers {
		if s.Name != server {
			continue
		}
		for _, it := range s.Items {
			if it == item {
				return true
			}
		}
		return item == snapshot.ItemOther
	}
	return false
}

// applicable lists the grants whose subject the principal belongs to and whose scope the item is in.
func (t Twin) applicable(user snapshot.Principal, server, item string) []snapshot.Grant {
	var out []snapshot.Grant
	for _, g := range t.Policy.Grants {
		if g.Server != "*" && g.Server != server {
			continue
		}
		if g.Tool != "" && (g.Tool != item || strings.HasPrefix(item, "*")) {
			continue
		}
		if t.belongs(user, g.Subject) {
			out = append(out, g)
		}
	}
	return out
}

func (t Twin) belongs(user snapshot.Principal, subject snapshot.Ref) bool {
	todo := append([]snapshot.Ref{snapshot.Everyone, snapshot.Ref("user:" + user.Name)}, user.Nodes...)
	seen := map[snapshot.Ref]bool{}
	for len(todo) > 0 {
		r := todo[0]
		todo = todo[1:]
		if r == subject {
			return true
		}
		if seen[r] {
			continue
		}
		seen[r] = true
		for _, n := range t.Policy.Nodes {
			if n.Ref == r {
				todo = append(todo, n.Parents...)
			}
		}
	}
	return false
}

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

func eval(c *snapshot.Cond, args []byte, now int64) result {
	switch c.Op {
	case snapshot.OpTrue:
		return yes
	case snapshot.OpFalse:
		return no
	case snapshot.OpNot:
		switch eval(c.Kids[0], args, now) {
		case yes:
			return no
		case no:
			return yes
		default:
			return fail
		}
	case snapshot.OpAnd:
		for _, k := range c.Kids {
			if r := eval(k, args, now); r != yes {
				return r
			}
		}
		return yes
	case snapshot.OpOr:
		for _, k := range c.Kids {
			if r := eval(k, args, now); r != no {
				return r
			}
		}
		return no
	case snapshot.OpBefore:
		return of(now < c.Value.Int)
	case snapshot.OpAfter:
		return of(now >= c.Value.Int)
	default:
		return leaf(c, args)
	}
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
func possible(c *snapshot.Cond, now int64) outcomes {
	switch c.Op {
	case snapshot.OpTrue, snapshot.OpFalse, snapshot.OpBefore, snapshot.OpAfter:
		var out outcomes
		out[eval(c, nil, now)] = true
		return out
	case snapshot.OpNot:
		k := possible(c.Kids[0], now)
		return outcomes{no: k[yes], yes: k[no], fail: k[fail]}
	case snapshot.OpAnd:
		return chain(c.Kids, now, yes)
	case snapshot.OpOr:
		return chain(c.Kids, now, no)
	default:
		return outcomes{true, true, true}
	}
}

// chain goes on to the next kid while the kids may come to the given result.
func chain(kids []*snapshot.Cond, now int64, on result) outcomes {
	var out outcomes
	for _, k := range kids {
		p := possible(k, now)
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
