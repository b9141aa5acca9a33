package authz

import (
	"cmp"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot/index"
)

// The outcomes of a grant in an explanation.
const (
	Matched        = "matched"
	ConditionFalse = "condition_false"
	ConditionError = "condition_error"
)

// Explanation says why a call is decided as it is.
type Explanation struct {
	Principal, Server, Item string
	Decision                Decision
	// Grants that reach the item: denies first, then by id.
	Grants []GrantOutcome
}

// GrantOutcome is what one grant contributed.
type GrantOutcome struct {
	ID   string
	Deny bool
	// Via are the nodes through which the grant reached the principal.
	Via []string
	// Outcome is Matched, ConditionFalse or ConditionError; Detail says what could not be evaluated.
	Outcome string
	Detail  string
	// Decided marks the grants that settled the decision.
	Decided bool
}

// Explain decides again and tells the part of every grant. It is slow and allocates.
func Explain(x *index.Index, p index.PrincipalID, s index.ServerID, item index.ItemID, r *Request) Explanation {
	v := x.View(p, s)
	out := Explanation{
		Principal: x.PrincipalName(p), Server: x.ServerName(s), Item: x.ItemName(s, item), Decision: Decide(&v, item, r),
	}
	at := map[string]int{}
	for rule := range x.Rules(&v, item) {
		i, ok := at[rule.Grant]
		if !ok {
			i = len(out.Grants)
			at[rule.Grant] = i
			out.Grants = append(out.Grants, outcomeOf(x, rule, r))
			out.Grants[i].Decided = decided(out.Decision, out.Grants[i], rule)
		}
		if g := &out.Grants[i]; !slices.Contains(g.Via, rule.Via) {
			g.Via = append(g.Via, rule.Via)
		}
	}
	slices.SortFunc(out.Grants, func(a, b GrantOutcome) int {
		if a.Deny != b.Deny {
			if a.Deny {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.ID, b.ID)
	})
	return out
}

func outcomeOf(x *index.Index, rule index.Rule, r *Request) GrantOutcome {
	g := GrantOutcome{ID: rule.Grant, Deny: rule.Deny, Outcome: Matched}
	if rule.Cond == 0 {
		return g
	}
	e := evaluator{now: r.NowMS, raw: r.Args, x: x}
	switch e.run(rule.Cond - 1) {
	case isFalse:
		g.Outcome = ConditionFalse
	case isError:
		g.Outcome, g.Detail = ConditionError, e.fault.String()
	}
	return g
}

// decided tells whether a grant is among those that settled a decision.
func decided(d Decision, g GrantOutcome, rule index.Rule) bool {
	switch d.Reason {
	case Allowed:
		return !g.Deny && g.Outcome == Matched
	case ExplicitDeny:
		return g.Deny && rule.Cond == 0
	case Condition, ArgumentType:
		return rule.Cond != 0 && (g.Deny && g.Outcome != ConditionFalse || !g.Deny && g.Outcome != Matched)
	}
	return false
}

// Rules lists the ids of the grants that settled a decision, sorted: the part of an explanation that a record keeps.
// For a denial because no allow's condition held, they are the allows that might have.
func Rules(v *index.View, item index.ItemID, r *Request, d Decision) []string {
	x := v.Index()
	if x == nil {
		return nil
	}
	var ids []string
	for rule := range x.Rules(v, item) {
		if decided(d, outcomeOf(x, rule, r), rule) {
			ids = append(ids, rule.Grant)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
