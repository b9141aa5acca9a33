package cellapi

import (
	"context"
	"errors"
	"slices"

	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const (
	// maxAsked is how many questions may wait for one stream, maxAsking for the nodes' answers.
	maxAsked  = 8
	maxAsking = 256
)

var (
	errGone = errors.New("the node has no stream any more")
	errBusy = errors.New("too many questions wait for an answer")
)

// asking is a question that waits for one node's answer.
type asking struct {
	node   Node
	answer chan *cellv1.AnswerSessionsRequest
}

// AskSessions puts a question to one node, on its stream, and waits for the answer.
func (f *Fleet) AskSessions(ctx context.Context, n Node, q *cellv1.SessionQuery) (*cellv1.AnswerSessionsRequest, error) {
	a := &asking{n, make(chan *cellv1.AnswerSessionsRequest, 1)}
	f.mu.Lock()
	s := f.streams[n]
	if s == nil || len(f.asking) >= maxAsking {
		defer f.mu.Unlock()
		if s == nil {
			return nil, errGone
		}
		return nil, errBusy
	}
	f.lastQuestion++
	q.Id = f.lastQuestion
	f.asking[q.GetId()] = a
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.asking, q.GetId())
	}()
	select {
	case s.asked <- q:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case r := <-a.answer:
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// NodesOf are the nodes of a cell that hold a stream, by name.
func (f *Fleet) NodesOf(cell string) []Node {
	return slices.DeleteFunc(f.Connected(), func(n Node) bool { return n.Cell != cell })
}

// told hands an answer to whoever asked that node.
func (f *Fleet) told(n Node, r *cellv1.AnswerSessionsRequest) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.asking[r.GetId()]
	if a == nil || a.node != n {
		return false
	}
	select {
	case a.answer <- r:
	default: // it has answered already
	}
	return true
}

// AnswerSessions takes the answer to a question that the node was asked. Any other is refused.
func (s *Service) AnswerSessions(ctx context.Context, req *cellv1.AnswerSessionsRequest) (*cellv1.AnswerSessionsResponse, error) {
	n := nodeFrom(ctx)
	if err := s.alive(n); err != nil {
		return nil, err
	}
	if !s.cfg.Fleet.told(n, req) {
		return nil, problem.New(problem.Invalid, "nobody waits for this answer", "")
	}
	return &cellv1.AnswerSessionsResponse{}, nil
}
