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
	d := Decide(&v, item, r)
	return Explanation{
		Principal: x.PrincipalName(p), Server: x.ServerName(s), Item: x.ItemName(s, item), Decision: d,
		Grants: outcomes(&v, item, r, d),
	}
}

// Rules lists the ids of the grants that settled a decision, sorted: the part of an explanation that a record keeps. Of a
// denial because no allow's condition held, they are the allows that might have.
func Rules(v *index.View, item index.ItemID, r *Request, d Decision) []string {
	var ids []string
	for _, g := range outcomes(v, item, r, d) {
		if g.Decided {
			ids = append(ids, g.ID)
		}
	}
	return ids
}

// outcomes evaluates every grant that reaches an item, each once.
func outcomes(v *index.View, item index.ItemID, r *Request, d Decision) []GrantOutcome {
	x := v.Index()
	if x == nil {
		return nil
	}
	var grants []GrantOutcome
	plain := map[string]bool{}
	at := map[string]int{}
	for rule := range x.Rules(v, item) {
		i, ok := at[rule.Grant]
		if !ok {
			i = len(grants)
			at[rule.Grant] = i
			plain[rule.Grant] = rule.Cond == 0
			grants = append(grants, outcomeOf(v, rule, r))
		}
		if g := &grants[i]; !slices.Contains(g.Via, rule.Via) {
			g.Via = append(g.Via, rule.Via)
		}
	}
	denied := slices.ContainsFunc(grants, func(g GrantOutcome) bool { return g.Deny && g.Outcome != ConditionFalse })
	for i := range grants {
		grants[i].Decided = decided(d.Reason, grants[i], plain[grants[i].ID], denied)
	}
	slices.SortFunc(grants, func(a, b GrantOutcome) int {
		if a.Deny != b.Deny {
			if a.Deny {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.ID, b.ID)
	})
	return grants
}

// decided tells whether a grant is among those that settled a decision; denied says that some deny fired.
func decided(reason Reason, g GrantOutcome, plain, denied bool) bool {
	switch reason {
	case Allowed:
		return !g.Deny && g.Outcome == Matched
	case ExplicitDeny:
		return g.Deny && plain
	case Condition:
		return g.Deny == denied && (g.Outcome == Matched) == denied
	case ArgumentType:
		return g.Deny == denied && g.Outcome == ConditionError
	default:
		return false
	}
}

func outcomeOf(v *index.View, rule index.Rule, r *Request) GrantOutcome {
	g := GrantOutcome{ID: rule.Grant, Deny: rule.Deny, Outcome: Matched}
	if rule.Cond == 0 {
		return g
	}
	e := evaluator{req: r, x: v.Index(), who: v.Principal(), args: args{room: make([]arg, maxRead)}}
	switch e.run(rule.Cond - 1) {
	case isTrue:
	case isFalse:
		g.Outcome = ConditionFalse
	case isError:
		g.Outcome, g.Detail = ConditionError, e.fault.String()
	}
	return g
}
