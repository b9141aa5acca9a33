package judge

import (
	"fmt"
	"slices"
	"strings"
)

// Record is what matters here of one audit record.
type Record struct {
	// ID is the decision id.
	ID string
	// Intent says that the record was written before a call with effects; Outcome that it says what became of one, and then Of is that
	// one's id.
	Intent, Outcome bool
	Of              string
	// Refused says that the call was not made.
	Refused bool
	// Where it stands, for people: log and index.
	Where string
}

// Audited is what the comparison of answers and records found.
type Audited struct {
	// Answers that were given with a decision id, and records that were read.
	Answers, Records int
	// Lost answers have no record, or an intent without an outcome; Doubled ones have more than one record of a kind.
	Lost, Doubled int
	// Examples are some of the ids, with what is wrong.
	Examples []string
}

// maxExamples bounds the examples.
const maxExamples = 20

// Audit compares what was answered with what is on record: each answer must have exactly one record, and one with effects the record
// of its intent and one of its outcome. A call that was refused when its intent could not be made durable may have both.
func (j *Judge) Audit(records []Record) Audited {
	j.mu.Lock()
	defer j.mu.Unlock()
	type trace struct {
		own, refused, intents, outcomes int
		where                           []string
	}
	found := map[string]*trace{}
	of := func(id string) *trace {
		t := found[id]
		if t == nil {
			t = &trace{}
			found[id] = t
		}
		return t
	}
	for _, r := range records {
		if id := r.ID; !r.Outcome {
			of(id).where = append(of(id).where, r.Where)
		}
		switch {
		case r.Outcome:
			of(r.Of).outcomes++
		case r.Intent:
			of(r.ID).intents++
		default:
			of(r.ID).own++
			if r.Refused {
				of(r.ID).refused++
			}
		}
	}
	out := Audited{Answers: len(j.decisions), Records: len(records)}
	for id := range j.decisions {
		t := found[id]
		switch {
		case t != nil && t.intents == 1 && t.own == 1 && t.refused == 1 && t.outcomes <= 1:
			// An intent that could not be made durable in time, and the refusal that came of it.
		case t == nil:
			out.Lost++
			out.example("%s has no record", id)
		case t.own == 1 && t.intents == 1 && t.outcomes == 0 && j.refused[id]:
			// Its intent could not be made durable in time, and the call was refused for that: both are on record.
		case t.own+t.intents > 1 || t.outcomes > 1:
			out.Doubled++
			out.example("%s has %d records and %d outcomes: %s", id, t.own+t.intents, t.outcomes, strings.Join(t.where, "; "))
		case t.own+t.intents == 0 || t.intents == 1 && t.outcomes == 0:
			out.Lost++
			out.example("%s has %d records, %d of them an intent, and %d outcomes", id, t.own+t.intents, t.intents, t.outcomes)
		}
	}
	slices.Sort(out.Examples)
	return out
}

func (a *Audited) example(format string, args ...any) {
	if len(a.Examples) < maxExamples {
		a.Examples = append(a.Examples, fmt.Sprintf(format, args...))
	}
}
