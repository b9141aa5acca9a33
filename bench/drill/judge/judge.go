// Package judge says whether a gateway's answers were right. It holds a model of its own: what each person may do after each
// policy change that was acknowledged, how often each call was executed, and what must be on record. It uses nothing of the
// product, so that a mistake there is not made here as well.
//
// What it promises: an answer is called wrong only if no order of the changes that were under way while it was given explains
// it. A node that has acknowledged a change must answer by it from then on; a change that nobody has acknowledged yet may or
// may not be in force.
package judge

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Right is that a person may use a tool.
type Right struct{ Person, Tool string }

// Kinds of what may be wrong.
const (
	WrongAllow = "wrong allow" // more was allowed or shown than any policy in force
	WrongDeny  = "wrong deny"  // less than every policy in force
	Doubled    = "executed twice"
	Stray      = "executed though refused"
	Invented   = "answered without being executed"
	Rollback   = "older generation than before"
)

// Wrong is one wrong decision.
type Wrong struct {
	At   time.Time `json:"at"`
	Kind string    `json:"kind"`
	What string    `json:"what"`
}

// maxWrong bounds how many wrongs are kept; all are counted.
const maxWrong = 50

// Judge collects what happened. Its methods may be called from any goroutine.
type Judge struct {
	mu     sync.Mutex // Guards what is below.
	rights map[Right]*history
	tools  []string
	// generations are, for each node, the generations it was seen to serve, ascending, with the time by which an answer said so.
	generations map[string][]seen
	calls       map[string]Outcome // of calls that reach a server, by their ids
	decisions   map[string]bool    // answered decisions, by the id that the answer showed; true for a call with effects
	refused     map[string]bool    // those that were refused for another reason than policy
	wrong       []Wrong
	count       int
}

type seen struct {
	version Version
	by      time.Time
}

// Version is what an answer says of the policy that it was made by.
type Version struct{ Epoch, Generation uint64 }

func (v Version) less(w Version) bool {
	return v.Epoch < w.Epoch || v.Epoch == w.Epoch && v.Generation < w.Generation
}

// history is a right's past: how it began and each change of it, in order.
type history struct {
	initial bool
	changes []*Change
}

// Change is one change of a right.
type Change struct {
	judge     *Judge
	right     Right
	allowed   bool
	submitted time.Time
	void      bool                 // certainly not made
	acked     map[string]time.Time // by node
}

// New makes a judge of a server with the tools. What a person may use from the beginning is in rights; everything else is
// forbidden.
func New(tools []string, rights ...Right) *Judge {
	j := &Judge{
		rights: map[Right]*history{}, tools: slices.Clone(tools), generations: map[string][]seen{},
		calls: map[string]Outcome{}, decisions: map[string]bool{}, refused: map[string]bool{},
	}
	for _, r := range rights {
		j.rights[r] = &history{initial: true}
	}
	return j
}

// Submit notes that a change is asked for. It must be called before the request is sent.
func (j *Judge) Submit(r Right, allowed bool) *Change {
	j.mu.Lock()
	defer j.mu.Unlock()
	h := j.rights[r]
	if h == nil {
		h = &history{}
		j.rights[r] = h
	}
	c := &Change{judge: j, right: r, allowed: allowed, submitted: time.Now(), acked: map[string]time.Time{}}
	h.changes = append(h.changes, c)
	return c
}

// Acked notes that a node has said that the change is in force there.
func (c *Change) Acked(node string) {
	c.judge.mu.Lock()
	defer c.judge.mu.Unlock()
	if _, ok := c.acked[node]; !ok {
		c.acked[node] = time.Now()
	}
}

// Nodes are those that have acknowledged the change.
func (c *Change) Nodes() []string {
	c.judge.mu.Lock()
	defer c.judge.mu.Unlock()
	return slices.Sorted(maps.Keys(c.acked))
}

// Void notes that the change was certainly not made: the request was never sent, or was refused.
func (c *Change) Void() {
	c.judge.mu.Lock()
	defer c.judge.mu.Unlock()
	c.void = true
}

// may returns what a node may answer about a right to a request that began at from and was answered at until. Callers hold mu.
func (j *Judge) may(r Right, node string, from, until time.Time) (yes, no bool) {
	h := j.rights[r]
	if h == nil {
		return false, true
	}
	value, rest := h.initial, h.changes
	for i, c := range slices.Backward(h.changes) {
		if at, ok := c.acked[node]; ok && at.Before(from) {
			value, rest = c.allowed, h.changes[i+1:]
			break
		}
	}
	yes, no = value, !value
	for _, c := range rest {
		if !c.void && !c.submitted.After(until) {
			yes, no = yes || c.allowed, no || !c.allowed
		}
	}
	return yes, no
}

// Answer is where and when a request was answered, and by which policy as the answer says.
type Answer struct {
	Person, Node string
	// From is when it was begun, Until when it was answered.
	From, Until time.Time
	// Version is the zero value when the answer does not say.
	Version Version
	// Decision is the id under which it is on record; "" when the answer has none.
	Decision string
	// Effects says that a call is of a tool with effects: it has two records, before and after.
	Effects bool
}

// Listed judges an answer that shows these tools.
func (j *Judge) Listed(a Answer, shown []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.answered(a)
	for _, tool := range j.tools {
		j.judge(a, tool, slices.Contains(shown, tool), "is shown")
	}
	for _, tool := range shown {
		if !slices.Contains(j.tools, tool) {
			j.find(a.Until, WrongAllow, "%s is shown %s on %s, which is not a tool of the server", a.Person, tool, a.Node)
		}
	}
}

// Outcome is what the caller was told of a call.
type Outcome int

// Outcomes. A call that was refused must not reach its server; one whose outcome is unknown, because the connection broke after it
// was sent or no answer came, may have, once.
const (
	Allowed Outcome = iota
	Refused
	Unknown
)

// Called judges the answer to a call that was allowed or refused by policy. The id is what the server counts executions by.
func (j *Judge) Called(a Answer, id, tool string, outcome Outcome) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.calls[id] = outcome
	if outcome == Unknown {
		return
	}
	j.answered(a)
	j.judge(a, tool, outcome == Allowed, "may call")
}

// Closed notes a call that was refused for another reason than policy: the gateway fails closed. It must be on record and must not
// reach its server.
func (j *Judge) Closed(a Answer, id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if id != "" {
		j.calls[id] = Refused
		j.refused[a.Decision] = true
	}
	j.answered(a)
}

// judge holds one fact of an answer against the model. Callers hold mu.
func (j *Judge) judge(a Answer, tool string, allowed bool, words string) {
	yes, no := j.may(Right{a.Person, tool}, a.Node, a.From, a.Until)
	switch {
	case allowed && !yes:
		j.find(a.Until, WrongAllow, "%s %s %s on %s by %d.%d", a.Person, words, tool, a.Node, a.Version.Epoch, a.Version.Generation)
	case !allowed && !no:
		j.find(a.Until, WrongDeny, "not: %s %s %s on %s by %d.%d", a.Person, words, tool, a.Node, a.Version.Epoch, a.Version.Generation)
	}
}

// answered notes what every answer has. Callers hold mu.
func (j *Judge) answered(a Answer) {
	if a.Decision != "" {
		j.decisions[a.Decision] = a.Effects
	}
	if a.Version == (Version{}) {
		return
	}
	past := j.generations[a.Node]
	for _, s := range slices.Backward(past) {
		if s.by.Before(a.From) {
			if a.Version.less(s.version) {
				j.find(a.Until, Rollback, "%s answers by %d.%d, after %d.%d", a.Node, a.Version.Epoch, a.Version.Generation, s.version.Epoch, s.version.Generation)
			}
			break
		}
	}
	if len(past) == 0 || past[len(past)-1].version.less(a.Version) {
		j.generations[a.Node] = append(past, seen{a.Version, a.Until})
	}
}

// Executions holds what the server counted, by call id, against what the callers were told. It is called once, at the end.
func (j *Judge) Executions(counted map[string]int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	for id, n := range counted {
		outcome, known := j.calls[id]
		switch {
		case n > 1:
			j.find(now, Doubled, "call %s was executed %d times", id, n)
		case !known:
			j.find(now, Stray, "call %s was executed and never made", id)
		case outcome == Refused:
			j.find(now, Stray, "call %s was refused and executed", id)
		}
	}
	for id, outcome := range j.calls {
		if outcome == Allowed && counted[id] == 0 {
			j.find(now, Invented, "call %s was answered and never executed", id)
		}
	}
}

// find notes a wrong decision. Callers hold mu.
func (j *Judge) find(at time.Time, kind, format string, args ...any) {
	if j.count++; len(j.wrong) < maxWrong {
		j.wrong = append(j.wrong, Wrong{at, kind, fmt.Sprintf(format, args...)})
	}
}

// Wrong returns how many decisions were wrong so far, and the first of them.
func (j *Judge) Wrong() (int, []Wrong) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.count, slices.Clone(j.wrong)
}
