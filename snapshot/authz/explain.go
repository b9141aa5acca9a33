package authz

import (
	"cmp"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// The outcomes of a grant in an explanation.
const (
	Matched        = "matched"
	ConditionFalse = "condition_false"
	ConditionError = "condition_error"
)

// UnknownFact is the detail of a condition on a circumstance that is not known: an address, a region, an actor.
const UnknownFact = "what it compares is not known of this caller"

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
		Grants: outcomes(&v, Reaching(&v, item), r, d),
	}
}

// ExplainResource is Explain for a resource by its URI.
func ExplainResource(x *index.Index, p index.PrincipalID, s index.ServerID, uri string, r *Request) Explanation {
	v := x.View(p, s)
	d := DecideResource(&v, uri, r)
	return Explanation{
		Principal: x.PrincipalName(p), Server: x.ServerName(s), Item: snapshot.ResourceItem(uri), Decision: d,
		Grants: outcomes(&v, ReachingResource(&v, uri), r, d),
	}
}

// outcomes evaluates every grant among rules. One that reaches what is asked in several ways has the outcome that does most.
func outcomes(v *index.View, rules []index.Rule, r *Request, d Decision) []GrantOutcome {
	var grants []GrantOutcome
	plain := map[string]bool{}
	at := map[string]int{}
	for _, rule := range rules {
		got := outcomeOf(v, rule, r)
		i, ok := at[rule.Grant]
		if !ok {
			i = len(grants)
			at[rule.Grant] = i
			grants = append(grants, got)
		}
		g := &grants[i]
		if weight(got.Outcome) > weight(g.Outcome) {
			g.Outcome, g.Detail = got.Outcome, got.Detail
		}
		plain[rule.Grant] = plain[rule.Grant] || rule.Cond == 0
		if !slices.Contains(g.Via, rule.Via) {
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

// weight orders outcomes by how much they do.
func weight(outcome string) int {
	return slices.Index([]string{ConditionFalse, ConditionError, Matched}, outcome)
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
