package snapshots

import (
	"cmp"
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/cellapi"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const (
	// listLimit and changeLimit are how long one node may take before another of its cell is asked: a node hands what it cannot
	// do itself to the leader.
	listLimit   = 4 * time.Second
	changeLimit = 18 * time.Second
)

// ListMembers asks the nodes of a cell, until one answers.
func (s *Service) ListMembers(ctx context.Context, req *adminv1.ListMembersRequest) (*adminv1.ListMembersResponse, error) {
	a, err := s.order(ctx, req.GetCell(), listLimit, &cellv1.NodeOrder{Kind: cellv1.OrderKind_ORDER_KIND_LIST})
	if err != nil {
		return nil, err
	}
	return &adminv1.ListMembersResponse{Leader: a.GetLeader(), Members: a.GetMembers(), Removed: a.GetRemoved()}, nil
}

// AddMember takes a node in, where it says that it is or where the caller says.
func (s *Service) AddMember(ctx context.Context, req *adminv1.AddMemberRequest) (*adminv1.AddMemberResponse, error) {
	o := &cellv1.NodeOrder{Kind: cellv1.OrderKind_ORDER_KIND_ADD, Node: req.GetNode(), Raft: req.GetRaft(), Peer: req.GetPeer()}
	told, err := s.told(ctx, req.GetCell(), req.GetNode())
	if err != nil {
		return nil, err
	}
	o.Raft, o.Peer = cmp.Or(o.GetRaft(), told.GetRaftAddr()), cmp.Or(o.GetPeer(), told.GetPeerAddr())
	if o.GetRaft() == "" || o.GetPeer() == "" {
		return nil, problem.Newf(problem.Invalid, "start it first, or give --raft and --peer", "node %s/%s has not said where it is", req.GetCell(), req.GetNode())
	}
	if err := s.noteOrder(ctx, "cell.add", req.GetCell(), o); err != nil {
		return nil, err
	}
	_, err = s.order(ctx, req.GetCell(), changeLimit, o)
	return &adminv1.AddMemberResponse{}, err
}

// RemoveMember takes a node out for good.
func (s *Service) RemoveMember(ctx context.Context, req *adminv1.RemoveMemberRequest) (*adminv1.RemoveMemberResponse, error) {
	o := &cellv1.NodeOrder{Kind: cellv1.OrderKind_ORDER_KIND_REMOVE, Node: req.GetNode()}
	if err := s.noteOrder(ctx, "cell.remove", req.GetCell(), o); err != nil {
		return nil, err
	}
	_, err := s.order(ctx, req.GetCell(), changeLimit, o)
	return &adminv1.RemoveMemberResponse{}, err
}

// StepDown lets another node lead.
func (s *Service) StepDown(ctx context.Context, req *adminv1.StepDownRequest) (*adminv1.StepDownResponse, error) {
	o := &cellv1.NodeOrder{Kind: cellv1.OrderKind_ORDER_KIND_STEP_DOWN}
	if err := s.noteOrder(ctx, "cell.step-down", req.GetCell(), o); err != nil {
		return nil, err
	}
	a, err := s.order(ctx, req.GetCell(), changeLimit, o)
	return &adminv1.StepDownResponse{Leader: a.GetLeader()}, err
}

// DrainNode has one node stop in order. It is asked itself: nobody else can do it.
func (s *Service) DrainNode(ctx context.Context, req *adminv1.DrainNodeRequest) (*adminv1.DrainNodeResponse, error) {
	o := &cellv1.NodeOrder{
		Kind: cellv1.OrderKind_ORDER_KIND_DRAIN, Node: req.GetNode(), GraceMs: req.GetGraceMs(), Force: req.GetForce(),
	}
	if err := s.noteOrder(ctx, "cell.drain", req.GetCell(), o); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	a, err := s.cfg.Fleet.Order(ctx, cellapi.Node{Cell: req.GetCell(), Name: req.GetNode()}, o)
	if err != nil {
		return nil, problem.Newf(problem.Unavailable, "on its machine SIGTERM does the same; `mcpvault cell status` shows who is connected",
			"node %s/%s cannot be asked", req.GetCell(), req.GetNode()).Because(err)
	}
	return &adminv1.DrainNodeResponse{}, verdict(a)
}

// order asks the nodes of a cell one after the other until one answers that has a leader.
func (s *Service) order(ctx context.Context, cell string, limit time.Duration, o *cellv1.NodeOrder) (*cellv1.AnswerOrderRequest, error) {
	o.By = controlplane.CallerFrom(ctx).Actor()
	var last *cellv1.AnswerOrderRequest
	for _, n := range s.cfg.Fleet.NodesOf(cell) {
		if o.GetKind() == cellv1.OrderKind_ORDER_KIND_REMOVE && n.Name == o.GetNode() {
			continue // it may be the one that cannot be trusted
		}
		octx, cancel := context.WithTimeout(ctx, limit)
		a, err := s.cfg.Fleet.Order(octx, n, proto.CloneOf(o))
		cancel()
		switch {
		case err == nil && a.GetCode() != string(problem.Unavailable) && a.GetLeader() != "":
			return a, verdict(a)
		case err == nil && (last == nil || last.GetCode() != ""):
			last = a
		}
		if ctx.Err() != nil {
			break
		}
	}
	if last != nil {
		return last, verdict(last)
	}
	return nil, problem.Newf(problem.Unavailable, "`mcpvault cell status` shows who is connected", "no node of cell %s answers", cell)
}

// verdict is what stood in an order's way.
func verdict(a *cellv1.AnswerOrderRequest) error {
	if a.GetCode() == "" {
		return nil
	}
	return problem.New(problem.Code(a.GetCode()), a.GetWhat(), a.GetFix())
}

// noteOrder writes into the ledger who wants what, before anything is done.
func (s *Service) noteOrder(ctx context.Context, action, cell string, o *cellv1.NodeOrder) error {
	c := controlplane.CallerFrom(ctx)
	o.By = c.Actor()
	object := "cell:" + cell
	if o.GetNode() != "" {
		object = "node:" + cell + "/" + o.GetNode()
	}
	_, err := s.cfg.Store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		return tx.Change(ctx, action, object, map[string]any{"raft": o.GetRaft(), "peer": o.GetPeer(), "force": o.GetForce()})
	})
	return err
}

// told is what a node has last said of itself; empty when it never has.
func (s *Service) told(ctx context.Context, cell, node string) (*cellv1.NodeStatus, error) {
	var statuses []store.NodeStatus
	err := s.cfg.Store.Platform(ctx, func(tx *store.Tx) (err error) {
		statuses, err = tx.NodeStatuses(ctx)
		return err
	})
	for _, n := range nodesOf(cell, statuses, nil) {
		if n.GetStatus().GetNode() == node {
			return n.GetStatus(), err
		}
	}
	return nil, err
}
