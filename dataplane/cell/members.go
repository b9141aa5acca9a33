package cell

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// startingPeers are the members that this node's own configuration names.
func (n *Node) startingPeers() []consensus.Peer {
	var all []consensus.Peer
	for _, m := range n.cfg.Members {
		all = append(all, consensus.Peer{Node: m.Node, Addr: m.Raft, Beside: m.Peer})
	}
	return all
}

// own is how the configuration has this node itself.
func (n *Node) own() Member {
	for _, m := range n.cfg.Members {
		if m.Node == n.cfg.Node {
			return m
		}
	}
	return Member{Node: n.cfg.Node, Raft: n.cfg.Listen.Raft, Peer: n.cfg.Listen.Peer}
}

// peerAddrs is where the other members answer: as this node's own configuration says, else as the cell agreed.
func (n *Node) peerAddrs() map[string]string {
	named := map[string]string{}
	for _, m := range n.cfg.Members {
		named[m.Node] = m.Peer
	}
	all := map[string]string{}
	if n.consensus.Removed() {
		return all
	}
	for _, m := range n.consensus.Members() {
		addr := named[m.Node]
		if addr == "" {
			addr = m.Peer
		}
		if m.Node != n.cfg.Node && addr != "" {
			all[m.Node] = addr
		}
	}
	return all
}

// membersChanged follows a new list of members.
func (n *Node) membersChanged() {
	n.peers.Update(n.peerAddrs())
	n.log.Info("the cell has a new list of members", "peers", len(n.peerAddrs()), "removed", len(n.store.Members().GetRemoved()))
}

// isMember lets in whoever belongs to the cell now.
func (n *Node) isMember(peer svid.ID) error {
	_, node, _ := svid.ParseNode(peer.String())
	if err := svid.CellMembers(n.cfg.TrustDomain, n.cfg.Cell, node)(peer); err != nil {
		return err
	}
	return n.consensus.IsMember(node)
}

// left reports whether a node is no member, or no more.
func (n *Node) left(node string) bool { return n.consensus != nil && n.consensus.IsMember(node) != nil }

// removedProblem is said by a node that was removed. What it has grows old, and nobody brings it anything new.
func (n *Node) removedProblem() error {
	if n.consensus != nil && n.consensus.Removed() {
		return fmt.Errorf("this node was removed from the cell and serves nobody: enrol the machine under a new name")
	}
	return nil
}

// whenMember keeps callers out of a node that was removed.
func (n *Node) whenMember(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := n.removedProblem(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// keyOverlap is how long ids are still opened that were sealed with a session key before the newest: as long as a session may
// live at most.
const keyOverlap = session.MaxMax

// retireKeys drops session keys that nothing living can be sealed with any more.
func (n *Node) retireKeys() {
	newest := newestKey(n.store.SessionKeys())
	if newest == nil || n.clock.Now().UnixMilli()-newest.GetCreatedMs() < keyOverlap.Milliseconds() {
		return
	}
	dropped, err := n.store.DropSessionKeys(newest.GetId())
	if err != nil {
		n.log.Error("drop old session keys", "err", err)
	}
	if dropped > 0 {
		n.log.Info("old session keys are dropped", "keys", dropped, "newest", newest.GetId())
		n.takeSessionKeys()
	}
}

func newestKey(keys []*cellv1.SessionKey) (newest *cellv1.SessionKey) {
	for _, k := range keys {
		if newest == nil || k.GetId() > newest.GetId() {
			newest = k
		}
	}
	return newest
}

// orderLimit bounds how long a node tries to have an order carried out.
const orderLimit = 15 * time.Second

// CarryOut does what the control plane, or a peer on its behalf, asks of whoever leads. It makes the node a peer of the others.
func (n *Node) CarryOut(ctx context.Context, o *cellv1.NodeOrder) *cellv1.AnswerOrderRequest {
	a := &cellv1.AnswerOrderRequest{Id: o.GetId()}
	if o.GetKind() != cellv1.OrderKind_ORDER_KIND_LIST {
		n.log.InfoContext(ctx, "an order", "kind", o.GetKind().String(), "node", o.GetNode(), "by", o.GetBy())
	}
	refuse(a, n.carryOut(ctx, o))
	n.describe(ctx, a, o.GetKind() == cellv1.OrderKind_ORDER_KIND_LIST)
	return a
}

func refuse(a *cellv1.AnswerOrderRequest, err error) {
	if err == nil {
		return
	}
	a.Code, a.What = string(problem.CodeOf(err)), err.Error()
	if p, ok := problem.As(err); ok {
		a.What, a.Fix = p.What, p.Fix
	}
}

func (n *Node) carryOut(ctx context.Context, o *cellv1.NodeOrder) error {
	switch o.GetKind() {
	case cellv1.OrderKind_ORDER_KIND_LIST:
		return nil
	case cellv1.OrderKind_ORDER_KIND_ADD:
		return n.consensus.AddMember(ctx, &cellv1.Member{Node: o.GetNode(), Raft: o.GetRaft(), Peer: o.GetPeer()})
	case cellv1.OrderKind_ORDER_KIND_REMOVE:
		return n.consensus.RemoveMember(ctx, o.GetNode())
	case cellv1.OrderKind_ORDER_KIND_SPARE:
		if !n.consensus.Leads() {
			return problem.Newf(problem.Unavailable, "ask the leader", "node %s does not lead", n.cfg.Node)
		}
		return n.consensus.QuorumDuring(o.GetNode())
	case cellv1.OrderKind_ORDER_KIND_STEP_DOWN:
		return n.stepDown(ctx)
	case cellv1.OrderKind_ORDER_KIND_UNSPECIFIED, cellv1.OrderKind_ORDER_KIND_DRAIN: // a drain is begun elsewhere
	}
	return problem.Newf(problem.Invalid, "upgrade this node", "node %s does not know this order", n.cfg.Node)
}

// stepDown lets another node lead and waits until it does.
func (n *Node) stepDown(ctx context.Context) error {
	switch {
	case !n.consensus.Leads():
		return problem.Newf(problem.Unavailable, "ask the leader", "node %s does not lead", n.cfg.Node)
	case len(n.consensus.Members()) == 1:
		return problem.New(problem.Conflict, "there is nobody else to lead", "add nodes first")
	}
	if err := n.consensus.TransferLeadership(ctx); err != nil {
		return err
	}
	for {
		if leader, ok := n.consensus.Leader(); ok && leader != n.cfg.Node {
			return nil
		}
		select {
		case <-ctx.Done():
			return problem.New(problem.Timeout, "this node leads no more, and nobody is known to lead yet", "wait for an election").Because(ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// describe adds who the members are; versions are asked of them only when they are wanted.
func (n *Node) describe(ctx context.Context, a *cellv1.AnswerOrderRequest, versions bool) {
	a.Leader, _ = n.consensus.Leader()
	a.Removed = n.store.Members().GetRemoved()
	version := map[string]string{}
	if versions {
		own := n.nodeStatus()
		version[own.GetNode()] = own.GetVersion()
		vctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		for _, r := range n.peers.Statuses(vctx, true) {
			version[r.GetStatus().GetNode()] = r.GetStatus().GetVersion()
		}
	}
	for _, m := range n.consensus.Members() {
		a.Members = append(a.Members, &cellv1.CellMember{
			Node: m.Node, Raft: m.Raft, Peer: m.Peer, Votes: m.Votes, Known: m.Known, HeardMs: m.Heard.Milliseconds(), Behind: m.Behind,
			Version: version[m.Node],
		})
	}
}

// obey has an order carried out by whoever leads, and follows the leadership where it goes meanwhile.
func (n *Node) obey(ctx context.Context, o *cellv1.NodeOrder) *cellv1.AnswerOrderRequest {
	ctx, cancel := context.WithTimeout(ctx, orderLimit)
	defer cancel()
	for {
		a := n.obeyOnce(ctx, o)
		if a.GetCode() != string(problem.Unavailable) || n.consensus.Removed() {
			return a
		}
		if o.GetKind() == cellv1.OrderKind_ORDER_KIND_REMOVE && a.GetLeader() == o.GetNode() {
			// Nobody removes itself: another one has to lead first.
			n.obeyOnce(ctx, &cellv1.NodeOrder{Kind: cellv1.OrderKind_ORDER_KIND_STEP_DOWN, By: o.GetBy()})
		}
		select {
		case <-ctx.Done():
			return a
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (n *Node) obeyOnce(ctx context.Context, o *cellv1.NodeOrder) *cellv1.AnswerOrderRequest {
	if n.consensus.Leads() {
		return n.CarryOut(ctx, o)
	}
	leader, ok := n.consensus.Leader()
	if !ok && !n.consensus.Removed() && o.GetKind() == cellv1.OrderKind_ORDER_KIND_LIST {
		return n.CarryOut(ctx, o) // better than nothing: who they are, and that nobody leads
	}
	a := &cellv1.AnswerOrderRequest{Id: o.GetId()}
	if n.consensus.Removed() {
		refuse(a, problem.Newf(problem.Unavailable, "ask another node", "node %s was removed", n.cfg.Node))
		return a
	}
	if !ok {
		refuse(a, problem.New(problem.Unavailable, "the cell has no leader", "it elects one by itself as soon as most of its nodes reach each other"))
		return a
	}
	got, err := n.peers.CarryOut(ctx, leader, o)
	if err != nil || got == nil {
		refuse(a, problem.Newf(problem.Unavailable, "try again in a moment", "node %s, which leads, does not answer", leader).Because(err))
		return a
	}
	got.Id = o.GetId()
	return got
}
