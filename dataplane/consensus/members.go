package consensus

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// Member is a node of the cell as this node knows it.
type Member struct {
	Node string
	// Raft and Peer are its addresses as the cell agreed on them; empty where each node's configuration says.
	Raft, Peer string
	// Votes is false for a node that is only catching up, or has just been added.
	Votes bool
	// Heard is how long ago it answered, and Behind how many entries it lacks. Only the leader knows either: Known is false
	// elsewhere, and for a node that has not answered this leader yet.
	Heard  time.Duration
	Behind uint64
	Known  bool
}

// maxVoters is where more of them make the cell slower and no safer; further nodes follow without a vote.
const maxVoters = 5

// Members are the nodes of the cell, by name.
func (n *Node) Members() []Member {
	r := n.current()
	list := n.cfg.Store.Members()
	if list == nil {
		list = n.configured()
	}
	votes := map[string]bool{}
	if r != nil {
		for _, s := range r.GetConfiguration().Configuration().Servers {
			votes[string(s.ID)] = s.Suffrage == raft.Voter
		}
	}
	var all []Member
	for _, m := range list.GetMembers() {
		one := Member{Node: m.GetNode(), Raft: m.GetRaft(), Peer: m.GetPeer(), Votes: votes[m.GetNode()]}
		switch {
		case r == nil || r.State() != raft.Leader:
		case one.Node == n.cfg.Node:
			one.Known = true
		default:
			if f, ok := n.answers().of(one.Node); ok {
				one.Known, one.Heard, one.Behind = true, time.Since(f.at), behind(r, f)
			}
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b Member) int {
		if a.Node < b.Node {
			return -1
		}
		return 1
	})
	return all
}

func behind(r *raft.Raft, f answer) uint64 {
	last := r.LastIndex()
	return last - min(last, f.last)
}

// configured is the list as this node's own configuration has it, before the cell has agreed on one.
func (n *Node) configured() *cellv1.Members {
	list := &cellv1.Members{Version: 1}
	for _, p := range n.cfg.Peers {
		list.Members = append(list.Members, &cellv1.Member{Node: p.Node, Raft: p.Addr, Peer: p.Beside})
	}
	return list
}

// IsMember is an error when a node does not belong to the cell: it never did, or was removed.
func (n *Node) IsMember(node string) error {
	list := n.cfg.Store.Members()
	if slices.Contains(list.GetRemoved(), node) {
		return fmt.Errorf("node %q was removed from cell %s", node, n.cfg.Cell)
	}
	if list == nil {
		list = n.configured()
	}
	if memberOf(list, node) == nil {
		return fmt.Errorf("node %q is no member of cell %s", node, n.cfg.Cell)
	}
	return nil
}

// Removed reports whether this node itself was removed, as far as it has heard.
func (n *Node) Removed() bool {
	return slices.Contains(n.cfg.Store.Members().GetRemoved(), n.cfg.Node)
}

func memberOf(list *cellv1.Members, node string) *cellv1.Member {
	for _, m := range list.GetMembers() {
		if m.GetNode() == node {
			return m
		}
	}
	return nil
}

// addressOf is where a member's log is: as this node's own configuration says, else as the cell agreed.
func (n *Node) addressOf(node string) string {
	for _, p := range n.cfg.Peers {
		if p.Node == node && p.Addr != "" {
			return p.Addr
		}
	}
	return memberOf(n.cfg.Store.Members(), node).GetRaft()
}

// verifyMembers judges a list by what every node of the cell judges alike: the names are ones that an SVID can have.
func (n *Node) verifyMembers(list *cellv1.Members) error {
	for _, m := range list.GetMembers() {
		if _, err := svid.NodeID(n.cfg.TrustDomain, n.cfg.Cell, m.GetNode()); err != nil {
			return fmt.Errorf("member %q: %w", m.GetNode(), err)
		}
	}
	return nil
}

// AddMember makes a node a member; this node must lead. It returns when the leader sends the log to it: the node gets a vote
// later, when it has caught up and stayed so. A member whose addresses differ gets the new ones. The error is a problem.
func (n *Node) AddMember(ctx context.Context, m *cellv1.Member) error {
	if _, err := svid.NodeID(n.cfg.TrustDomain, n.cfg.Cell, m.GetNode()); err != nil {
		return problem.Newf(problem.Invalid, "use letters, digits, - and _", "%q is no name for a node", m.GetNode()).Because(err)
	}
	list, err := n.latestMembers(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(list.GetRemoved(), m.GetNode()) {
		return problem.Newf(problem.Conflict, "enrol the machine under a new name: who has the old key must stay out",
			"node %s was removed from cell %s", m.GetNode(), n.cfg.Cell)
	}
	list.Members = append(slices.DeleteFunc(list.GetMembers(), func(have *cellv1.Member) bool {
		return have.GetNode() == m.GetNode()
	}), m)
	if err := n.proposeMembers(ctx, list); err != nil {
		return err
	}
	return n.until(ctx, func(r *raft.Raft) bool { return inRaft(r, m.GetNode()) })
}

// RemoveMember takes a node out for good; this node must lead and be another one. It returns when the node has no part in the
// log any more, no member lets it in, and the cell has a new session key that it does not know. The error is a problem:
// conflict when too few of the others would be there to go on.
func (n *Node) RemoveMember(ctx context.Context, node string) error {
	list, err := n.latestMembers(ctx)
	if err != nil {
		return err
	}
	if slices.Contains(list.GetRemoved(), node) && n.settled() {
		return nil
	}
	if memberOf(list, node) == nil && !slices.Contains(list.GetRemoved(), node) {
		return problem.Newf(problem.NotFound, "`mcpvault cell members` lists them", "node %s is no member of cell %s", node, n.cfg.Cell)
	}
	if node == n.cfg.Node {
		return problem.Newf(problem.Unavailable, "let another node lead first: `mcpvault cell step-down`", "node %s leads the cell and cannot remove itself", node)
	}
	if memberOf(list, node) != nil {
		if err := n.QuorumWithout(node); err != nil {
			return err
		}
		list.Members = slices.DeleteFunc(list.GetMembers(), func(m *cellv1.Member) bool { return m.GetNode() == node })
		list.Removed = append(list.GetRemoved(), node)
		list.KeysFrom = n.newestKey() + 1
		if err := n.proposeMembers(ctx, list); err != nil {
			return err
		}
	}
	return n.until(ctx, func(r *raft.Raft) bool { return !inRaft(r, node) && n.settled() })
}

// heardWithin is how long ago a member may have answered to count as there.
func (n *Node) heardWithin() time.Duration { return max(2*time.Second, 4*n.cfg.Heartbeat) }

// present counts who votes beside a node, and who of those is heard.
func (n *Node) present(beside string) (rest, there int, silent string) {
	var names []string
	for _, m := range n.Members() {
		if !m.Votes || m.Node == beside {
			continue
		}
		rest++
		if m.Known && m.Heard < n.heardWithin() {
			there++
		} else {
			names = append(names, m.Node)
		}
	}
	if len(names) > 0 {
		silent = " (not " + strings.Join(names, ", ") + ")"
	}
	return rest, there, silent
}

// QuorumWithout is a problem, conflict, when the cell could not go on after the removal of a node. This node must lead: others
// do not know.
func (n *Node) QuorumWithout(node string) error {
	rest, there, silent := n.present(node)
	switch need := rest/2 + 1; {
	case rest == 0:
		return problem.Newf(problem.Conflict, "add a node first", "node %s is the only one of cell %s that votes", node, n.cfg.Cell)
	case there < need:
		return problem.Newf(problem.Conflict, "bring the silent nodes back first, or remove one of those",
			"without node %s the quorum would be lost: of the others that vote %d are heard%s, %d are needed", node, there, silent, need)
	}
	return nil
}

// QuorumDuring is a problem, conflict, when the cell could not go on while a node is down and still counts. This node must lead.
func (n *Node) QuorumDuring(node string) error {
	rest, there, silent := n.present(node)
	votes := slices.ContainsFunc(n.Members(), func(m Member) bool { return m.Votes && m.Node == node })
	if need := (rest+1)/2 + 1; votes && there < need {
		return problem.Newf(problem.Conflict, "bring the silent nodes back first",
			"while node %s is down the quorum would be lost: of the others that vote %d are heard%s, %d are needed", node, there, silent, need)
	}
	return nil
}

// latestMembers is a copy of the newest list, to be changed and proposed.
func (n *Node) latestMembers(ctx context.Context) (*cellv1.Members, error) {
	if err := n.Barrier(ctx); err != nil {
		return nil, err
	}
	if n.cfg.Store.Members() == nil {
		if err := n.firstMembers(ctx); err != nil {
			return nil, err
		}
	}
	have := n.cfg.Store.Members()
	return &cellv1.Members{
		Version: have.GetVersion() + 1, Members: slices.Clone(have.GetMembers()), Removed: slices.Clone(have.GetRemoved()),
		KeysFrom: have.GetKeysFrom(),
	}, nil
}

func (n *Node) proposeMembers(ctx context.Context, list *cellv1.Members) error {
	if _, err := n.Propose(ctx, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Members{Members: list}}); err != nil {
		return err
	}
	n.wake()
	return nil
}

// wake has the leader look after the members now.
func (n *Node) wake() {
	select {
	case n.tendNow <- struct{}{}:
	default:
	}
}

// until waits for what the leader's own loop brings about.
func (n *Node) until(ctx context.Context, done func(*raft.Raft) bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		r := n.current()
		if r == nil || r.State() != raft.Leader {
			return n.notLeader(nil)
		}
		if done(r) {
			return nil
		}
		select {
		case <-ctx.Done():
			return problem.New(problem.Timeout, "the change of members is agreed on and not carried out yet", "`mcpvault cell members` shows when it is").Because(ctx.Err())
		case <-tick.C:
		}
	}
}

func inRaft(r *raft.Raft, node string) bool {
	return slices.ContainsFunc(r.GetConfiguration().Configuration().Servers, func(s raft.Server) bool { return string(s.ID) == node })
}

// votersBeside is how many other nodes have a vote.
func (n *Node) votersBeside() int {
	others := 0
	for _, m := range n.Members() {
		if m.Votes && m.Node != n.cfg.Node {
			others++
		}
	}
	return others
}

func (n *Node) newestKey() uint32 {
	var newest uint32
	for _, k := range n.cfg.Store.SessionKeys() {
		newest = max(newest, k.GetId())
	}
	return newest
}

// settled reports whether the newest session key is one that no removed node knows.
func (n *Node) settled() bool {
	newest := n.newestKey()
	return newest > 0 && newest >= n.cfg.Store.Members().GetKeysFrom()
}

// tended is what the leader remembers between two looks at the members.
type tended struct {
	term  uint64
	since time.Time            // when this node was first seen to lead in the term
	well  map[string]time.Time // since when a node without a vote has been up to date
}

// tend makes Raft's list of members follow the cell's own, and sees to the session key. Only the leader does; each step may be
// done again, so that whoever leads next goes on where this one stopped.
func (n *Node) tend(ctx context.Context, r *raft.Raft, t *tended) {
	if term := r.CurrentTerm(); t.term != term {
		*t = tended{term: term, since: time.Now(), well: map[string]time.Time{}}
	}
	ctx, cancel := context.WithTimeout(ctx, enqueueLimit)
	defer cancel()
	for _, step := range []struct {
		what string
		do   func(context.Context, *raft.Raft, *tended) error
	}{{"agree on the members", n.agree}, {"follow the members", n.follow}, {"promote a member", n.promote}, {"look after dead members", n.bury}, {"make a session key", n.renewKey}} {
		if err := step.do(ctx, r, t); err != nil {
			if ctx.Err() == nil && r.State() == raft.Leader {
				n.log.Warn("the members of the cell are not looked after yet", "step", step.what, "error", err)
			}
			return
		}
	}
}

// agree writes the first list into the log: as Raft has it, with the addresses of this node's configuration.
func (n *Node) agree(ctx context.Context, _ *raft.Raft, _ *tended) error {
	if n.cfg.Store.Members() != nil {
		return nil
	}
	// An earlier leader's list may be committed and not applied here yet.
	if err := n.Barrier(ctx); err != nil || n.cfg.Store.Members() != nil {
		return err
	}
	return n.firstMembers(ctx)
}

func (n *Node) firstMembers(ctx context.Context) error {
	r := n.current()
	if r == nil {
		return n.notLeader(nil)
	}
	conf, list := n.configured(), &cellv1.Members{Version: 1}
	for _, s := range r.GetConfiguration().Configuration().Servers {
		m := memberOf(conf, string(s.ID))
		if m == nil {
			m = &cellv1.Member{Node: string(s.ID)}
		}
		list.Members = append(list.Members, m)
	}
	_, err := n.Propose(ctx, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Members{Members: list}})
	if problem.CodeOf(err) == problem.Conflict {
		return nil // there is one
	}
	return err
}

// follow takes nodes into Raft's list and out of it.
func (n *Node) follow(ctx context.Context, r *raft.Raft, _ *tended) error {
	list := n.cfg.Store.Members()
	for _, s := range r.GetConfiguration().Configuration().Servers {
		switch node := string(s.ID); {
		case memberOf(list, node) != nil:
		case node == n.cfg.Node:
			return n.TransferLeadership(ctx) // whoever leads next takes this node out
		default:
			n.log.Info("a node is taken out of the cell's log", "member", node)
			if err := n.lead(ctx, func(r *raft.Raft) raft.Future { return r.RemoveServer(s.ID, 0, enqueueLimit) }); err != nil {
				return err
			}
		}
	}
	for _, m := range list.GetMembers() {
		if inRaft(r, m.GetNode()) {
			continue
		}
		n.log.Info("a node is taken into the cell's log, without a vote at first", "member", m.GetNode())
		id := m.GetNode()
		if err := n.lead(ctx, func(r *raft.Raft) raft.Future {
			return r.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), 0, enqueueLimit)
		}); err != nil {
			return err
		}
	}
	return nil
}

// nearlyThere is how many entries a member may lack and count as up to date.
const nearlyThere = 128

// promote gives a vote to one node that has been up to date for a while.
func (n *Node) promote(ctx context.Context, r *raft.Raft, t *tended) error {
	servers := r.GetConfiguration().Configuration().Servers
	voters := 0
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			continue
		}
		node := string(s.ID)
		f, ok := n.answers().of(node)
		if !ok || time.Since(f.at) > n.heardWithin() || behind(r, f) > nearlyThere {
			delete(t.well, node)
			continue
		}
		if t.well[node].IsZero() {
			t.well[node] = time.Now()
		}
		if time.Since(t.well[node]) < n.cfg.PromoteAfter || voters >= maxVoters {
			continue
		}
		n.log.Info("a node has caught up and gets a vote", "member", node)
		return n.lead(ctx, func(r *raft.Raft) raft.Future { return r.AddVoter(s.ID, s.Address, 0, enqueueLimit) })
	}
	return nil
}

// bury removes one node that has been silent for too long, where that is wanted and the others can go on without it.
func (n *Node) bury(ctx context.Context, _ *raft.Raft, t *tended) error {
	if n.cfg.DeadAfter <= 0 || time.Since(t.since) < n.cfg.DeadAfter {
		return nil
	}
	for _, m := range n.Members() {
		if m.Node == n.cfg.Node || m.Known && m.Heard < n.cfg.DeadAfter {
			continue
		}
		if err := n.QuorumWithout(m.Node); err != nil {
			n.log.Warn("a node is silent and stays a member", "member", m.Node, "silent_for", m.Heard, "error", err)
			continue
		}
		list, err := n.latestMembers(ctx)
		if err != nil {
			return err
		}
		if memberOf(list, m.Node) == nil {
			continue
		}
		n.log.Error("a node was silent for too long and is removed: enrol the machine under a new name", "member", m.Node, "limit", n.cfg.DeadAfter)
		list.Members = slices.DeleteFunc(list.GetMembers(), func(have *cellv1.Member) bool { return have.GetNode() == m.Node })
		list.Removed = append(list.GetRemoved(), m.Node)
		list.KeysFrom = n.newestKey() + 1
		return n.proposeMembers(ctx, list)
	}
	return nil
}

// renewKey makes the first session key, and another when a node was removed that knows those before.
func (n *Node) renewKey(ctx context.Context, _ *raft.Raft, _ *tended) error {
	if n.settled() {
		return nil
	}
	// An earlier leader's key may be committed and not applied here yet.
	if err := n.Barrier(ctx); err != nil || n.settled() {
		return err
	}
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	_, err := n.Propose(ctx, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_SessionKey{SessionKey: &cellv1.SessionKey{
		Id: max(1, n.newestKey()+1, n.cfg.Store.Members().GetKeysFrom()), Key: key, CreatedMs: time.Now().UnixMilli(),
	}}})
	return err
}
