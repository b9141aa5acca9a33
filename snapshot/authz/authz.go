// Package authz decides. It is pure: no clock, no IO, no allocation on a decision; what it needs comes in the request.
//
// What no grant allows is denied, and deny overrides allow. A condition that cannot be evaluated, because an argument is
// absent, of another type, there twice or there under a name that differs in case only, does not allow where it stands
// in an allow and denies where it stands in a deny: the arguments are the caller's to choose, so an error must never help.
package authz

import (
	"math/bits"
	"net/netip"

	"github.com/mcpvault/mcpvault/kit/broken"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Request is what a decision may depend on besides who calls what.
type Request struct {
	// NowMS is the time of the decision in milliseconds since the epoch.
	NowMS int64
	// Args is the raw JSON object of the call's arguments; nil when the call has none.
	Args []byte
	// IP is the caller's address; the zero Addr when it is not known. An IPv4 address in IPv6 form is taken as IPv4.
	IP netip.Addr
	// Region is that of the cell, "" when it has none.
	Region string
	// Actor is who acts for the principal, "" when nobody does.
	Actor string
}

// Reason is why a decision came out as it did.
type Reason uint8

// The reasons.
const (
	// NoGrant: no allow reaches the item. The zero Decision says so.
	NoGrant Reason = iota
	Allowed
	// ExplicitDeny: a deny without condition.
	ExplicitDeny
	// Condition: an allow reaches the item, but no allow's condition is true or the condition of a deny is.
	Condition
	// ArgumentType: the same, because a condition could not be evaluated on these arguments.
	ArgumentType
	// Disabled: the principal is switched off.
	Disabled
)

// String is the stable word of the reason.
func (r Reason) String() string {
	switch r {
	case NoGrant:
		return "no_grant"
	case Allowed:
		return "allowed"
	case ExplicitDeny:
		return "explicit_deny"
	case Condition:
		return "condition"
	case ArgumentType:
		return "argument_type"
	case Disabled:
		return "disabled"
	}
	return "unknown"
}

// Decision is the outcome. Its rules are found with Rules while the index is at hand.
type Decision struct {
	Allow bool
	// Visible means that the caller may be told that the item exists: an allow reaches it and no plain deny does, so
	// that another argument or another time might be allowed. An allowed item is visible.
	Visible bool
	Reason  Reason
	// Program is the number of the deciding condition + 1; 0 when none decided.
	Program uint32
}

// Decide decides one call.
func Decide(v *index.View, item index.ItemID, r *Request) Decision {
	if v.Disabled() || v.Index() == nil {
		return Decision{Reason: Disabled}
	}
	if item < 64 {
		pg, bit := v.First(item)
		return decide(v, pg, item, bit, r)
	}
	var scratch index.Page
	pg, bit := v.Page(item, &scratch)
	return decide(v, pg, item, bit, r)
}

func decide(v *index.View, pg *index.Page, item index.ItemID, bit uint64, r *Request) Decision {
	switch {
	case pg.Deny&bit != 0:
		return Decision{Reason: ExplicitDeny}
	case (pg.Allow|pg.CondAllow)&bit == 0:
		return Decision{Reason: NoGrant}
	case (pg.CondDeny|pg.CondAllow&^pg.Allow)&bit == 0:
		return Decision{Allow: true, Visible: true, Reason: Allowed}
	}
	return conditions(v, pg, item, bit, r)
}

// conditions decides an item that an allow reaches and whose fate hangs on conditions.
func conditions(v *index.View, pg *index.Page, item index.ItemID, bit uint64, r *Request) Decision {
	var room [fewRead]arg
	e := evaluator{req: r, x: v.Index(), who: v.Principal(), args: args{room: room[:]}}
	d := e.decide(v, pg, item, bit)
	if e.args.fault == faultTooMany {
		return manyArgs(v, pg, item, bit, r)
	}
	return d
}

// manyArgs is conditions with more room for arguments.
func manyArgs(v *index.View, pg *index.Page, item index.ItemID, bit uint64, r *Request) Decision {
	var room [maxRead]arg
	e := evaluator{req: r, x: v.Index(), who: v.Principal(), args: args{room: room[:]}}
	return e.decide(v, pg, item, bit)
}

// decide comes to the same outcome whatever the order of the grants: a true deny is told before one in error, a true
// allow before any other.
func (e *evaluator) decide(v *index.View, pg *index.Page, item index.ItemID, bit uint64) Decision {
	d := Decision{Visible: true, Reason: Condition}
	if pg.CondDeny&bit != 0 {
		for k := range v.Ranges(pg) {
			rng := v.Range(pg, item, k)
			if e.any(rng.First, uint32(rng.Deny), bit, &d) {
				return Decision{Visible: true, Reason: Condition, Program: d.Program}
			}
		}
		if d.Reason == ArgumentType {
			return d
		}
		d.Program = 0
	}
	if pg.Allow&bit != 0 {
		return Decision{Allow: true, Visible: true, Reason: Allowed}
	}
	for k := range v.Ranges(pg) {
		rng := v.Range(pg, item, k)
		if e.any(rng.First+uint32(rng.Deny), uint32(rng.Allow), bit, &d) {
			return Decision{Allow: true, Visible: true, Reason: Allowed, Program: d.Program}
		}
	}
	return d
}

// any reports whether one of n conditions on an item is true, and leaves in d which it was; else it leaves the last in
// error, or one that is false.
func (e *evaluator) any(first, n uint32, bit uint64, d *Decision) bool {
	for i := first; i < first+n; i++ {
		mask, prog := e.x.Cond(i)
		if mask&bit == 0 {
			continue
		}
		switch e.run(prog) {
		case isTrue:
			d.Program = prog + 1
			return true
		case isError:
			if broken.Is("allow-on-error") {
				return true
			}
			d.Reason, d.Program = ArgumentType, prog+1
		case isFalse:
			if d.Program == 0 {
				d.Program = prog + 1
			}
		}
	}
	return false
}

// Visible reports whether an item belongs in a list: whether there are arguments with which a call would be allowed now. A
// condition on arguments may still come true; what a list knows as well as a call is judged. The request's own arguments
// are not looked at.
func Visible(v *index.View, item index.ItemID, r *Request) bool {
	if int(item) >= v.Items() {
		return false
	}
	page := int(item) / 64
	return VisibleMask(v, page, r)>>(item%64)&1 != 0
}

// VisibleMask answers Visible for a page of 64 items at once, a bit an item.
func VisibleMask(v *index.View, page int, r *Request) uint64 {
	shown, hidden := listed(v, page, r)
	return shown &^ hidden
}

// listed are the items of a page that some allow may let in, and those that some deny keeps out whatever the arguments.
func listed(v *index.View, page int, r *Request) (shown, hidden uint64) {
	if v.Disabled() || page < 0 || page >= v.Pages() {
		return 0, 0
	}
	var scratch index.Page
	item := index.ItemID(page * 64)
	pg, _ := v.Page(item, &scratch)
	shown, hidden = pg.Allow, pg.Deny
	if (pg.CondAllow|pg.CondDeny)&^pg.Deny == 0 {
		return shown, hidden
	}
	x := v.Index()
	e := evaluator{req: r, x: x, who: v.Principal()}
	for k := range v.Ranges(pg) {
		rng := v.Range(pg, item, k)
		for i := range uint32(rng.Deny) + uint32(rng.Allow) {
			mask, id := x.Cond(rng.First + i)
			mayTrue, mayFalse := possible(&e, id)
			switch {
			case i < uint32(rng.Deny) && !mayFalse:
				hidden |= mask
			case i >= uint32(rng.Deny) && mayTrue:
				shown |= mask
			}
		}
	}
	valid := pageMask(v, page)
	return shown & valid, hidden & valid
}

// possible is what a condition may come to when its arguments may be anything; what a list knows is judged.
func possible(e *evaluator, id uint32) (mayTrue, mayFalse bool) {
	p := e.x.Program(id)
	if p.Flags&index.ReadsKnown == 0 {
		return p.Flags&index.MayTrue != 0, p.Flags&index.MayFalse != 0
	}
	return p.Paths(func(in index.Instr) uint8 {
		if in.From == snapshot.FromArgs && index.ReadsOperand(in.Op) || in.Op == snapshot.OpForeign && p.Foreign(in.Operand).ReadsArgs() {
			return index.CanTrue | index.CanFalse
		}
		switch e.leaf(&p, in) {
		case isTrue:
			return index.CanTrue
		case isFalse:
			return index.CanFalse
		default:
			return 0
		}
	})
}

func pageMask(v *index.View, page int) uint64 {
	if rest := v.Items() - page*64; rest < 64 {
		return 1<<rest - 1
	}
	return ^uint64(0)
}

// VisibleItems yields the items of a view that belong in a list at that time, in the order of names.
func VisibleItems(v *index.View, r *Request) func(yield func(index.ItemID) bool) {
	return func(yield func(index.ItemID) bool) {
		for page := range v.Pages() {
			for mask := VisibleMask(v, page, r); mask != 0; mask &= mask - 1 {
				if !yield(index.ItemID(page*64 + bits.TrailingZeros64(mask))) {
					return
				}
			}
		}
	}
}
