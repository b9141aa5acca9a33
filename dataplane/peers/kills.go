package peers

import (
	"context"
	"sync"

	"connectrpc.com/connect/v2"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// TellKills tells all peers at once of kills; whoever does not answer before ctx ends has not heard them.
func (s *Set) TellKills(ctx context.Context, kills [][]byte) {
	all, _ := s.all()
	var wg sync.WaitGroup
	for _, p := range all {
		wg.Go(func() { _, _ = p.client.TellKills(ctx, &cellv1.TellKillsRequest{Kills: kills}) })
	}
	wg.Wait()
}

// TellKills implements cellv1connect.PeerServiceHandler.
func (s *service) TellKills(ctx context.Context, r *cellv1.TellKillsRequest) (*cellv1.TellKillsResponse, error) {
	peer, ok := ctx.Value(peerKey{}).(string)
	if !ok {
		return nil, connect.NewError(connect.CodeUnauthenticated, "a node of this cell is needed")
	}
	s.node.HearKills(ctx, peer, r.GetKills())
	return &cellv1.TellKillsResponse{}, nil
}
