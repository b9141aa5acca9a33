package peers

import (
	"context"
	"time"

	"connectrpc.com/connect/v2"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// orderLimit bounds what a leader does for another node.
const orderLimit = 20 * time.Second

// CarryOut hands an order to the node that leads and returns its answer.
func (s *Set) CarryOut(ctx context.Context, leader string, o *cellv1.NodeOrder) (*cellv1.AnswerOrderRequest, error) {
	c, err := s.client(leader)
	if err != nil {
		return nil, err
	}
	r, err := c.CarryOut(ctx, &cellv1.CarryOutRequest{Order: o})
	return r.GetAnswer(), err
}

// CarryOut implements cellv1connect.PeerServiceHandler.
func (s *service) CarryOut(ctx context.Context, r *cellv1.CarryOutRequest) (*cellv1.CarryOutResponse, error) {
	if r.GetOrder() == nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, "an order is needed")
	}
	ctx, cancel := context.WithTimeout(ctx, orderLimit)
	defer cancel()
	return &cellv1.CarryOutResponse{Answer: s.node.CarryOut(ctx, r.GetOrder())}, nil
}
