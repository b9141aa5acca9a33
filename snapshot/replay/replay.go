// Package replay makes decisions repeatable. A cell writes into the record of a decision what it depended on, and with that
// and the index of the generation that the record names, anybody decides again.
//
// The arguments of a call are not recorded; what each condition came to is, and from that the same decision follows. Who has
// the arguments can have the conditions evaluated on them as well.
package replay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Difference is one fact that came out otherwise.
type Difference struct{ Field, Recorded, Replayed string }

// Result is what a decision made again came to.
type Result struct {
	Decision authz.Decision
	// Reason is the word that a record has for it.
	Reason string
	Grants []string
	// Overruled is the recorded reason for which a call that policy allows was refused all the same: staleness, a kill.
	Overruled string
	// Evaluated: the conditions were evaluated on arguments.
	Evaluated   bool
	Differences []Difference
}

// ErrNoDecision means that the record is not of a decision about one item, or its name was too long to be kept.
var ErrNoDecision = errors.New("the record holds no decision about a tool, a prompt or a resource")

// Decide makes the decision of a record again, on the index of the generation that the record names. args are the call's
// arguments; nil takes from the record what the conditions on them came to.
func Decide(x *index.Index, rec *auditv1.Record, args []byte) (*Result, error) {
	if rec.GetItem() == "" || rec.GetServer() == "" {
		return nil, ErrNoDecision
	}
	a := again{x: x, rec: rec, steps: stepsOf(rec), res: &Result{Evaluated: args != nil}}
	a.req = authz.Request{NowMS: rec.GetDecisionMs(), Args: args, Region: rec.GetRegion(), Actor: rec.GetActor().GetName()}
	a.req.IP, _ = netip.ParseAddr(rec.GetClient().GetAddress())
	if state := x.StateHash(); !slices.Equal(rec.GetStateHash(), state[:]) {
		a.differ("state_hash", fmt.Sprintf("%x", rec.GetStateHash()), fmt.Sprintf("%x", state[:]))
	}
	a.decide()
	a.compare()
	return a.res, nil
}

// again is one decision on its way.
type again struct {
	x     *index.Index
	rec   *auditv1.Record
	req   authz.Request
	steps []authz.Step
	res   *Result
}

// unknownPrincipal is the reason for somebody whom the policy does not know.
const unknownPrincipal = "unknown_principal"

func (a *again) decide() {
	p, known := a.x.Principal(a.rec.GetPrincipal().GetName())
	srv, published := a.x.Server(a.rec.GetServer())
	switch {
	case !published:
		a.differ("server", a.rec.GetServer(), "")
		return
	case !known:
		a.res.Decision, a.res.Reason = authz.Decision{Reason: authz.Disabled}, unknownPrincipal
		return
	}
	v := a.x.View(p, srv)
	var rules []index.Rule
	var err error
	if kind, uri := snapshot.KindOf(a.rec.GetItem()); kind == snapshot.ItemResource {
		if a.res.Evaluated {
			a.trace(authz.TraceResource(&v, uri, &a.req))
		}
		a.res.Decision, err = authz.ReplayResource(&v, uri, &a.req, a.steps)
		rules = authz.ReachingResource(&v, uri)
	} else {
		item, found := a.x.Item(srv, a.rec.GetItem())
		if !found {
			a.differ("item", a.rec.GetItem(), "")
			return
		}
		if a.res.Evaluated {
			a.trace(authz.Trace(&v, item, &a.req))
		}
		a.res.Decision, err = authz.Replay(&v, item, &a.req, a.steps)
		rules = authz.Reaching(&v, item)
	}
	if err != nil {
		a.differ("conditions", outcomes(a.rec), err.Error())
	}
	a.res.Reason = a.res.Decision.Reason.String()
	a.res.Grants = bounded(authz.Deciding(rules, a.steps, a.res.Decision))
}

// trace takes what the conditions come to on arguments in place of what was recorded.
func (a *again) trace(steps []authz.Step) {
	if !slices.Equal(steps, a.steps) {
		again := &auditv1.Record{}
		noteSteps(again, steps)
		a.differ("conditions", outcomes(a.rec), outcomes(again))
	}
	a.steps = steps
}

// compare holds the decision against the record.
func (a *again) compare() {
	d, rec := a.res.Decision, a.rec
	recorded := rec.GetDecision() == auditv1.Decision_DECISION_ALLOW
	if !recorded && !policyReason(rec.GetReason()) {
		// What overrules a policy does so only where the policy allows.
		recorded, a.res.Overruled = true, rec.GetReason()
	} else {
		a.differ("reason", rec.GetReason(), a.res.Reason)
	}
	a.differ("effect", effect(recorded), effect(d.Allow))
	a.differ("program", strconv.FormatUint(uint64(rec.GetProgram()), 10), strconv.FormatUint(uint64(d.Program), 10))
	a.differ("grants", strings.Join(rec.GetGrants(), " "), strings.Join(a.res.Grants, " "))
}

func (a *again) differ(field, recorded, replayed string) {
	if recorded != replayed {
		a.res.Differences = append(a.res.Differences, Difference{field, recorded, replayed})
	}
}

// policyReason reports whether a word is one that a decision by itself has.
func policyReason(word string) bool {
	if word == unknownPrincipal {
		return true
	}
	for r := authz.NoGrant; r <= authz.Disabled; r++ {
		if r.String() == word {
			return true
		}
	}
	return false
}

func effect(allow bool) string {
	if allow {
		return "allow"
	}
	return "deny"
}
