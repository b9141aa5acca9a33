package cellapi

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/protobuf/proto"

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
	// errOther is a node that answers what it was not asked.
	errOther = errors.New("the node answers another question")
)

// asking is a question that waits for one node's answer.
type asking struct {
	node   Node
	answer chan proto.Message
}

// AskSessions puts a question to one node, on its stream, and waits for the answer.
func (f *Fleet) AskSessions(ctx context.Context, n Node, q *cellv1.SessionQuery) (*cellv1.AnswerSessionsRequest, error) {
	return ask[*cellv1.AnswerSessionsRequest](ctx, f, n, func(id uint64) *cellv1.WatchResponse {
		q.Id = id
		return &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Sessions{Sessions: q}}
	})
}

// Order has one node do something, and waits for its answer.
func (f *Fleet) Order(ctx context.Context, n Node, o *cellv1.NodeOrder) (*cellv1.AnswerOrderRequest, error) {
	return ask[*cellv1.AnswerOrderRequest](ctx, f, n, func(id uint64) *cellv1.WatchResponse {
		o.Id = id
		return &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Order{Order: o}}
	})
}

// ask puts a question to a node and waits for an answer of its kind.
func ask[A proto.Message](ctx context.Context, f *Fleet, n Node, question func(id uint64) *cellv1.WatchResponse) (answer A, err error) {
	a := &asking{n, make(chan proto.Message, 1)}
	f.mu.Lock()
	s := f.streams[n]
	if s == nil || len(f.asking) >= maxAsking {
		defer f.mu.Unlock()
		if s == nil {
			return answer, errGone
		}
		return answer, errBusy
	}
	f.lastQuestion++
	id := f.lastQuestion
	f.asking[id] = a
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.asking, id)
	}()
	select {
	case s.asked <- question(id):
	case <-ctx.Done():
		return answer, ctx.Err()
	}
	select {
	case r := <-a.answer:
		if got, ok := r.(A); ok {
			return got, nil
		}
		return answer, errOther
	case <-ctx.Done():
		return answer, ctx.Err()
	}
}

// NodesOf are the nodes of a cell that hold a stream, by name.
func (f *Fleet) NodesOf(cell string) []Node {
	return slices.DeleteFunc(f.Connected(), func(n Node) bool { return n.Cell != cell })
}

// told hands an answer to whoever asked that node.
func (f *Fleet) told(n Node, id uint64, r proto.Message) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.asking[id]
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
	return &cellv1.AnswerSessionsResponse{}, s.answered(ctx, req.GetId(), req)
}

// AnswerOrder takes what became of an order that the node was given.
func (s *Service) AnswerOrder(ctx context.Context, req *cellv1.AnswerOrderRequest) (*cellv1.AnswerOrderResponse, error) {
	return &cellv1.AnswerOrderResponse{}, s.answered(ctx, req.GetId(), req)
}

func (s *Service) answered(ctx context.Context, id uint64, answer proto.Message) error {
	n := nodeFrom(ctx)
	if err := s.alive(n); err != nil {
		return err
	}
	if !s.cfg.Fleet.told(n, id, answer) {
		return problem.New(problem.Invalid, "nobody waits for this answer", "")
	}
	return nil
}
