package authz

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot/index"
)

// ErrReplay means that what was recorded of a decision cannot have led to it on this index.
var ErrReplay = errors.New("the record does not fit the generation")

// Outcome is what a condition came to.
type Outcome uint8

// The outcomes of a condition.
const (
	OutcomeFalse = Outcome(isFalse)
	OutcomeTrue  = Outcome(isTrue)
	OutcomeError = Outcome(isError)
)

// Step is what one condition came to in a decision. Arguments are not kept in records; with the steps, a decision can be
// made again without them.
type Step struct {
	// Program is its number in the index.
	Program uint32
	Outcome Outcome
}

// Trace evaluates every condition on an item, in the order of their programs: what a record keeps beside the decision.
func Trace(v *index.View, item index.ItemID, r *Request) []Step { return trace(v, setOf(item), r) }

// TraceResource is Trace for a resource by its URI.
func TraceResource(v *index.View, uri string, r *Request) []Step {
	return trace(v, resourceSets(v, uri), r)
}

// Replay decides again with what the conditions came to. Conditions that read no arguments, and all of them when the
// arguments are at hand, are evaluated anew: an outcome that differs, or is missing, is an error that wraps ErrReplay.
func Replay(v *index.View, item index.ItemID, r *Request, steps []Step) (Decision, error) {
	return replay(v, setOf(item), r, steps)
}

// ReplayResource is Replay for a resource by its URI.
func ReplayResource(v *index.View, uri string, r *Request, steps []Step) (Decision, error) {
	return replay(v, resourceSets(v, uri), r, steps)
}

func trace(v *index.View, all []sets, r *Request) []Step {
	programs := programsOf(v, all)
	if len(programs) == 0 {
		return nil
	}
	e := evaluator{req: r, x: v.Index(), who: v.Principal(), args: args{room: make([]arg, maxRead)}}
	steps := make([]Step, 0, len(programs))
	for _, id := range programs {
		steps = append(steps, Step{id, Outcome(e.run(id))})
	}
	return steps
}

// programsOf lists the conditions on items, each once.
func programsOf(v *index.View, all []sets) []uint32 {
	if v.Disabled() || v.Index() == nil {
		return nil
	}
	var out []uint32
	for _, s := range all {
		var scratch index.Page
		item := index.ItemID(s.page * 64)
		pg, _ := v.Page(item, &scratch)
		for k := range v.Ranges(pg) {
			rng := v.Range(pg, item, k)
			for i := range uint32(rng.Deny) + uint32(rng.Allow) {
				mask, id := v.Index().Cond(rng.First + i)
				if i < uint32(rng.Deny) && mask&s.deny != 0 || i >= uint32(rng.Deny) && mask&s.allow != 0 {
					out = append(out, id)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// script answers for conditions whose arguments are not at hand.
type script struct {
	outcomes map[uint32]Outcome
	err      error
}

func (s *script) run(e *evaluator, id uint32) outcome {
	want, ok := s.outcomes[id]
	if !ok || want > OutcomeError {
		s.err = fmt.Errorf("condition %d: no outcome is recorded: %w", id, ErrReplay)
		return isError
	}
	p := e.x.Program(id)
	if p.Flags&index.ReadsArgs != 0 && e.req.Args == nil {
		return outcome(want)
	}
	if got := e.evaluate(id); got != outcome(want) {
		s.err = fmt.Errorf("condition %d: came to another outcome: %w", id, ErrReplay)
	}
	return outcome(want)
}

func replay(v *index.View, all []sets, r *Request, steps []Step) (Decision, error) {
	if v.Disabled() || v.Index() == nil {
		return Decision{Reason: Disabled}, nil
	}
	s := &script{outcomes: make(map[uint32]Outcome, len(steps))}
	for _, st := range steps {
		if int(st.Program) >= v.Index().Programs() {
			return Decision{}, fmt.Errorf("there is no condition %d: %w", st.Program, ErrReplay)
		}
		s.outcomes[st.Program] = st.Outcome
	}
	e := evaluator{req: r, x: v.Index(), who: v.Principal(), args: args{room: make([]arg, maxRead)}, script: s}
	d := e.decideSets(v, all)
	return d, s.err
}
