package replay

import (
	"fmt"
	"slices"
	"strings"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// What a record holds at most: of a decision with more grants the first are named, and what has a longer name is not named,
// which makes the decision one that cannot be made again.
const (
	MaxGrants = 16
	MaxItem   = 4096
)

// Forget takes out of a record what an earlier decision of the same request has left.
func Forget(rec *auditv1.Record) {
	rec.Item, rec.Program, rec.DecisionMs = "", 0, 0
	rec.Grants, rec.Conditions = rec.Grants[:0], rec.Conditions[:0]
}

// Note writes a decision about an item into its record. rules are those that reach the item, authz.Reaching. The record's
// principal, actor, region, address and state hash are the caller's to fill in, from what the decision was made on.
func Note(rec *auditv1.Record, v *index.View, item index.ItemID, name string, r *authz.Request, d authz.Decision, rules []index.Rule) {
	var steps []authz.Step
	if slices.ContainsFunc(rules, conditional) {
		steps = authz.Trace(v, item, r)
	}
	note(rec, name, r, d, rules, steps)
}

// NoteResource writes a decision about an address into its record.
func NoteResource(rec *auditv1.Record, v *index.View, uri string, r *authz.Request, d authz.Decision) {
	note(rec, snapshot.ResourceItem(uri), r, d, authz.ReachingResource(v, uri), authz.TraceResource(v, uri, r))
}

func conditional(r index.Rule) bool { return r.Cond != 0 }

func note(rec *auditv1.Record, name string, r *authz.Request, d authz.Decision, rules []index.Rule, steps []authz.Step) {
	rec.DecisionMs, rec.Program, rec.Item = r.NowMS, d.Program, name
	if len(name) > MaxItem {
		rec.Item = ""
	}
	noteSteps(rec, steps)
	rec.Grants = bounded(authz.Deciding(rules, steps, d))
}

func noteSteps(rec *auditv1.Record, steps []authz.Step) {
	rec.Conditions = rec.Conditions[:0]
	for _, s := range steps {
		rec.Conditions = append(rec.Conditions, &auditv1.ConditionOutcome{
			Program: s.Program, Outcome: auditv1.ConditionOutcome_OUTCOME_FALSE + auditv1.ConditionOutcome_Outcome(s.Outcome),
		})
	}
}

func stepsOf(rec *auditv1.Record) []authz.Step {
	var steps []authz.Step
	for _, c := range rec.GetConditions() {
		// An outcome that there is not fits no condition.
		out := authz.Outcome(255)
		if o := c.GetOutcome(); o >= auditv1.ConditionOutcome_OUTCOME_FALSE && o <= auditv1.ConditionOutcome_OUTCOME_ERROR {
			out = authz.Outcome(o - auditv1.ConditionOutcome_OUTCOME_FALSE)
		}
		steps = append(steps, authz.Step{Program: c.GetProgram(), Outcome: out})
	}
	return steps
}

// outcomes are the conditions of a record as people read them.
func outcomes(rec *auditv1.Record) string {
	var parts []string
	for _, c := range rec.GetConditions() {
		word := strings.ToLower(strings.TrimPrefix(c.GetOutcome().String(), "OUTCOME_"))
		parts = append(parts, fmt.Sprintf("%d %s", c.GetProgram(), word))
	}
	return strings.Join(parts, ", ")
}

func bounded(ids []string) []string { return ids[:min(len(ids), MaxGrants)] }
