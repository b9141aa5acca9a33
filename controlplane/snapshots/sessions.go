package snapshots

import (
	"cmp"
	"context"
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const (
	usualSessions = 100
	// askLimit is how long one node may take to answer before another of its cell is asked.
	askLimit = 2 * time.Second
)

// ListSessions asks one node of each cell that hosts the tenant: all nodes of a cell know the same sessions.
func (s *Service) ListSessions(ctx context.Context, req *adminv1.ListSessionsRequest) (*adminv1.ListSessionsResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	id, err := hex.DecodeString(req.GetId())
	if err != nil {
		return nil, err // what the message's rules let through decodes
	}
	q := &cellv1.SessionQuery{
		TenantId: string(caller.TenantID), Principal: req.GetPrincipal(), Server: req.GetServer(), Session: id,
		Limit: cmp.Or(req.GetLimit(), usualSessions),
	}
	res := &adminv1.ListSessionsResponse{}
	var mu sync.Mutex // guards res
	var wg sync.WaitGroup
	for _, cell := range s.cfg.Publisher.Homes(caller.Tenant) {
		wg.Go(func() {
			answer := s.askCell(ctx, cell, q)
			mu.Lock()
			defer mu.Unlock()
			if answer == nil {
				res.Silent = append(res.Silent, cell)
				return
			}
			res.More = res.GetMore() || answer.GetMore()
			for _, info := range answer.GetSessions() {
				res.Sessions = append(res.Sessions, shownSession(cell, info))
			}
		})
	}
	wg.Wait()
	slices.Sort(res.GetSilent())
	slices.SortFunc(res.GetSessions(), func(a, b *adminv1.Session) int {
		return cmp.Or(cmp.Compare(b.GetUsedMs(), a.GetUsedMs()), cmp.Compare(a.GetId(), b.GetId()))
	})
	if n := int(q.GetLimit()); len(res.GetSessions()) > n {
		res.Sessions, res.More = res.GetSessions()[:n], true
	}
	return res, nil
}

// askCell asks the nodes of a cell one after the other until one answers; nil when none does.
func (s *Service) askCell(ctx context.Context, cell string, q *cellv1.SessionQuery) *cellv1.AnswerSessionsRequest {
	for _, n := range s.cfg.Fleet.NodesOf(cell) {
		actx, cancel := context.WithTimeout(ctx, askLimit)
		answer, err := s.cfg.Fleet.AskSessions(actx, n, proto.CloneOf(q))
		cancel()
		if err == nil {
			return answer
		}
	}
	return nil
}

func shownSession(cell string, i *cellv1.SessionInfo) *adminv1.Session {
	return &adminv1.Session{
		Id: hex.EncodeToString(i.GetSession()), Cell: cell, Node: i.GetNode(), Principal: i.GetPrincipal(), Server: i.GetServer(),
		Client: i.GetClient(), Revision: i.GetRevision(), CreatedMs: i.GetCreatedMs(), UsedMs: i.GetUsedMs(), Upstream: i.GetUpstream(),
	}
}
