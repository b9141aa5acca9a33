// Package residual evaluates what native programs cannot say: one Cedar expression, kept as Cedar and run by cedar-go, for
// the items whose bit matches only. With controlplane/policy it is the door to cedar-go.
//
// An expression is an isolated piece of a condition. It may read the arguments of a call, the context of the decision and
// four attributes of the principal; everything about the resource is folded into it before (Fold), and membership never
// reaches it. It is true, false or an error, and what an error means is the caller's: in a deny it denies.
//
// Arguments are read by this package and not by cedar-go, so that hostile JSON is an error for whoever reads it and never
// a wrong value: see args.go.
package residual

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/mcpvault/mcpvault/snapshot"
)

// The bounds of one expression.
const (
	MaxText  = 64 << 10 // bytes of its JSON form, what is folded in included
	MaxDepth = 64       // levels of nesting
)

// Expr is a compiled expression. It is never written to, so many may evaluate it at once.
type Expr struct {
	policies *cedar.PolicySet
	reads    reads
}

// Env is what an expression may ask about. What is not known is left at its zero value and is then absent: reading it is
// an error, asking with `has` says no.
type Env struct {
	NowMS int64
	// Args is the raw JSON object of the call's arguments; nil when there are none.
	Args          []byte
	IP            netip.Addr
	Region, Actor string
	Principal     Principal
}

// Principal is who asks.
type Principal struct {
	Name      string
	Kind      snapshot.PrincipalKind
	Clearance uint8
	Region    string
}

// reads is what an expression reads, settled when it is parsed.
type reads struct {
	// values and has are the arguments that are read, and those whose presence is asked for, by their paths.
	values, has []path
	// tops are the arguments that these are in.
	tops []string
	// kinds are what values must be, by their paths; pairs are values that must be of one kind.
	kinds     map[string]kind
	pairs     []pair
	principal bool
	context   map[string]bool
}

// Parse compiles an expression in Cedar's JSON form, as it stands in the body of a when clause. It refuses what cannot run
// in a cell: the resource and the action, entities, records as a whole, and comparisons of two types, which
// Cedar finds unequal and we find wrong.
func Parse(est string) (*Expr, error) {
	n, err := Unmarshal(est)
	if err != nil {
		return nil, err
	}
	p := &parser{reads: reads{context: map[string]bool{}, kinds: map[string]kind{}}}
	if n, err = p.expr(n, 0); err != nil {
		return nil, err
	}
	for _, at := range slices.Concat(p.reads.values, p.reads.has) {
		if !slices.Contains(p.reads.tops, at.names[0]) {
			p.reads.tops = append(p.reads.tops, at.names[0])
		}
	}
	set := cedar.NewPolicySet()
	set.Add("", policyOf(n))
	return &Expr{policies: set, reads: p.reads}, nil
}

// ReadsArgs reports whether the expression depends on the arguments of the call.
func (e *Expr) ReadsArgs() bool { return len(e.reads.values)+len(e.reads.has) > 0 }

// Eval evaluates the expression. An error is Cedar's (an absent value, another type, an overflow) or says what is wrong
// with an argument.
func (e *Expr) Eval(env *Env) (bool, error) {
	ctx := types.RecordMap{}
	var faults faults
	if e.ReadsArgs() {
		faults = e.reads.arguments(env.Args, ctx)
	}
	e.reads.surroundings(env, ctx)
	d, diag := cedar.Authorize(e.policies, nil, cedar.Request{Context: types.NewRecord(ctx)})
	if len(diag.Errors) > 0 {
		return false, faults.explain(diag.Errors[0].Message)
	}
	return d == cedar.Allow, nil
}

func (r *reads) surroundings(env *Env, ctx types.RecordMap) {
	if r.context["time"] {
		ctx["time"] = types.NewDatetimeFromMillis(env.NowMS)
	}
	if r.context["ip"] && env.IP.IsValid() {
		a := env.IP.Unmap().WithZone("")
		ctx["ip"] = types.IPAddr(netip.PrefixFrom(a, a.BitLen()))
	}
	for name, v := range map[string]string{"region": env.Region, "actor": env.Actor} {
		if r.context[name] && v != "" {
			ctx[types.String(name)] = types.String(v)
		}
	}
	if !r.principal {
		return
	}
	who := types.RecordMap{
		"name": types.String(env.Principal.Name), "kind": types.String(env.Principal.Kind.String()),
		"clearance": types.Long(env.Principal.Clearance),
	}
	if env.Principal.Region != "" {
		who["region"] = types.String(env.Principal.Region)
	}
	ctx[principalKey] = types.NewRecord(who)
}

// faults says what is wrong with arguments, by their paths.
type faults map[string]error

func (f faults) explain(message string) error {
	for at, err := range f {
		if strings.Contains(message, "`"+at+"`") {
			return fmt.Errorf("%s: %w", at, err)
		}
	}
	return errors.New(message)
}
