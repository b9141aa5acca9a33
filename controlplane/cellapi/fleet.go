package cellapi

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// keepAnswers is how many answers of a node about a tenant are remembered.
const keepAnswers = 32

// errReplaced ends a stream whose node has opened another: a node has one.
var errReplaced = errors.New("replaced by a newer stream")

// Fleet knows which nodes hold a stream to this control plane, and what they answered. It is safe for concurrent use.
type Fleet struct {
	mu      sync.Mutex // guards all below
	streams map[Node]*stream
	answers map[Node]map[controlplane.TenantID][]Answer
	changed chan struct{}
	// asking are the questions that wait for an answer, by number.
	asking       map[uint64]*asking
	lastQuestion uint64
}

type stream struct {
	cancel context.CancelCauseFunc
	asked  chan *cellv1.WatchResponse
}

// Answer is what a node did with a generation.
type Answer struct {
	Version  snapshot.Version
	Rejected bool
	Reason   string
	At       time.Time
}

// NewFleet makes an empty one.
func NewFleet() *Fleet {
	return &Fleet{streams: map[Node]*stream{}, answers: map[Node]map[controlplane.TenantID][]Answer{}, changed: make(chan struct{}), asking: map[uint64]*asking{}}
}

// join notes a stream and what its node says it serves. It returns what the node is asked, and what ends it.
func (f *Fleet) join(n Node, applied map[controlplane.TenantID]snapshot.Version, at time.Time, cancel context.CancelCauseFunc) (asked <-chan *cellv1.WatchResponse, leave func()) {
	s := &stream{cancel, make(chan *cellv1.WatchResponse, maxAsked)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.streams[n]; old != nil {
		old.cancel(errReplaced)
	}
	f.streams[n] = s
	// A node that was restored from older data serves less than it once answered: what it says now counts.
	f.answers[n] = map[controlplane.TenantID][]Answer{}
	for tenant, v := range applied {
		f.answers[n][tenant] = []Answer{{Version: v, At: at}}
	}
	f.wake()
	return s.asked, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.streams[n] == s {
			delete(f.streams, n)
			f.wake()
		}
	}
}

func (f *Fleet) answered(n Node, tenant controlplane.TenantID, a Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answers[n] == nil {
		f.answers[n] = map[controlplane.TenantID][]Answer{}
	}
	list := f.answers[n][tenant]
	list = append(list, a)
	f.answers[n][tenant] = list[max(0, len(list)-keepAnswers):]
	f.wake()
}

// wake tells whoever waits. f.mu is held.
func (f *Fleet) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// Changed is closed when a node comes, goes or answers.
func (f *Fleet) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// Connected lists the nodes that hold a stream, by cell and name.
func (f *Fleet) Connected() []Node {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]Node, 0, len(f.streams))
	for n := range f.streams {
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b Node) int { return cmp.Or(cmp.Compare(a.Cell, b.Cell), cmp.Compare(a.Name, b.Name)) })
	return out
}

// AnswerTo is a node's first answer to a version of a tenant or a later one; an application counts before a rejection.
func (f *Fleet) AnswerTo(n Node, tenant controlplane.TenantID, v snapshot.Version) (Answer, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var rejected *Answer
	for i, a := range f.answers[n][tenant] {
		if v.Newer(a.Version) {
			continue
		}
		if !a.Rejected {
			return a, true
		}
		if rejected == nil {
			rejected = &f.answers[n][tenant][i]
		}
	}
	if rejected != nil {
		return *rejected, true
	}
	return Answer{}, false
}
