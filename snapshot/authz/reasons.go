package authz

import (
	"slices"

	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Reaching lists the rules that reach an item of a view, whatever their conditions say; one that comes through several nodes
// is there once for each.
func Reaching(v *index.View, item index.ItemID) []index.Rule { return reaching(v, setOf(item)) }

// ReachingResource is Reaching for a resource by its URI.
func ReachingResource(v *index.View, uri string) []index.Rule {
	return reaching(v, resourceSets(v, uri))
}

func reaching(v *index.View, all []sets) []index.Rule {
	var out []index.Rule
	if v.Index() == nil {
		return nil
	}
	for _, s := range all {
		for mask, rule := range v.Index().PageRules(v, s.page) {
			if rule.Deny && mask&s.deny != 0 || !rule.Deny && mask&s.allow != 0 {
				out = append(out, rule)
			}
		}
	}
	return out
}

// Deciding lists the ids of the rules that settled a decision, sorted: of all that reach what was decided, those that its
// reason and the outcomes of the conditions leave. It is the part of an explanation that a record keeps. Of a denial because
// no allow's condition held, they are the allows that might have.
func Deciding(rules []index.Rule, steps []Step, d Decision) []string {
	came := func(r index.Rule) string {
		for _, s := range steps {
			switch {
			case r.Cond == 0 || s.Program != r.Cond-1:
			case s.Outcome == OutcomeError:
				return ConditionError
			case s.Outcome == OutcomeFalse:
				return ConditionFalse
			}
		}
		return Matched
	}
	denied := slices.ContainsFunc(rules, func(r index.Rule) bool { return r.Deny && came(r) != ConditionFalse })
	var ids []string
	for _, r := range rules {
		if decided(d.Reason, GrantOutcome{Deny: r.Deny, Outcome: came(r)}, r.Cond == 0, denied) {
			ids = append(ids, r.Grant)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
