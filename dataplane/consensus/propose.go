package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mcpvault/mcpvault/dataplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"google.golang.org/protobuf/proto"
)

// enqueueLimit bounds the wait for the leader's loop to take a command.
const enqueueLimit = 2 * time.Second

// Propose puts an entry into the log and returns its index when it is committed and this node, the leader, has taken it.
// The error is a problem: exhausted when the entry is over MaxEntry, denied when it does not verify, conflict when it is
// older than what the cell has, unavailable when this node does not lead (it names who does), timeout when ctx ended
// first. After unavailable or timeout the entry may still be committed; proposing it again does no harm.
func (n *Node) Propose(ctx context.Context, entry *cellv1.RaftEntry) (uint64, error) {
	future, err := n.propose(ctx, entry)
	if err != nil {
		return 0, err
	}
	if refusal, ok := future.Response().(error); ok && refusal != nil {
		return 0, asProblem(refusal)
	}
	return future.Index(), nil
}

// ProposeSessions is Propose for a change of leases. It returns what became of each opening in it.
func (n *Node) ProposeSessions(ctx context.Context, b *cellv1.SessionBatch) ([]cellv1.SessionVerdict, error) {
	future, err := n.propose(ctx, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Sessions{Sessions: b}})
	if err != nil {
		return nil, err
	}
	switch r := future.Response().(type) {
	case error:
		return nil, asProblem(r)
	case store.LeaseChange:
		return r.Verdicts, nil
	}
	return nil, problem.New(problem.Internal, "the cell's log gave no answer", "")
}

func (n *Node) propose(ctx context.Context, entry *cellv1.RaftEntry) (raft.ApplyFuture, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(entry)
	if err != nil {
		return nil, problem.New(problem.Invalid, "the entry cannot be encoded", "").Because(err)
	}
	if len(data) > MaxEntry {
		return nil, problem.Newf(problem.Exhausted, "propose fewer heads at a time",
			"an entry of %d bytes is over the log's limit of %d", len(data), MaxEntry)
	}
	if entry, err = decodeEntry(data); err == nil {
		err = n.verify(entry)
	}
	if err != nil {
		return nil, asProblem(err)
	}
	var future raft.ApplyFuture
	err = n.lead(ctx, func(r *raft.Raft) raft.Future {
		future = r.Apply(data, enqueueLimit)
		return future
	})
	if err != nil {
		return nil, err // the future may be written to still
	}
	return future, nil
}

// Barrier returns when this node, the leader, has applied all that was proposed before.
func (n *Node) Barrier(ctx context.Context) error {
	return n.lead(ctx, func(r *raft.Raft) raft.Future { return r.Barrier(enqueueLimit) })
}

// TransferLeadership hands leadership to the member that is furthest along. It is no error when this node does not lead.
func (n *Node) TransferLeadership(ctx context.Context) error {
	if !n.Leads() || n.votersBeside() == 0 {
		return nil
	}
	return n.lead(ctx, func(r *raft.Raft) raft.Future { return r.LeadershipTransfer() })
}

// Compact takes a snapshot now and shortens the log.
func (n *Node) Compact(ctx context.Context) error {
	r, leave := n.enter()
	if r == nil {
		return n.notLeader(nil)
	}
	err := wait(ctx, leave, func() raft.Future { return r.Snapshot() })
	if err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("take a snapshot of the log: %w", err)
	}
	return nil
}

// lead runs what only a leader can do.
func (n *Node) lead(ctx context.Context, do func(r *raft.Raft) raft.Future) error {
	r, leave := n.enter()
	if r == nil || r.State() != raft.Leader {
		leave()
		return n.notLeader(nil)
	}
	err := wait(ctx, leave, func() raft.Future { return do(r) })
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return problem.New(problem.Timeout, "the cell's log did not commit in time; the entry may still be committed",
			"propose it again, which does no harm").Because(context.Cause(ctx))
	}
	return n.notLeader(err)
}

// wait gives up on one of Raft's futures when ctx ends; leave is called when the future is done all the same.
func wait(ctx context.Context, leave func(), start func() raft.Future) error {
	done := make(chan error, 1)
	go func() {
		defer leave()
		done <- start().Error()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) notLeader(cause error) error {
	fix := "wait for an election"
	what := "the cell's log has no leader"
	if leader, ok := n.Leader(); ok && leader != n.cfg.Node {
		what, fix = fmt.Sprintf("node %s does not lead the cell's log", n.cfg.Node), "ask node "+leader
	} else if p := n.Problem(); p != nil && cause == nil {
		what, fix, cause = fmt.Sprintf("the cell's log is out of service on node %s", n.cfg.Node), "ask another node", p
	}
	p := problem.New(problem.Unavailable, what, fix)
	if cause != nil {
		return p.Because(cause)
	}
	return p
}

// errRefused is in the chain of every refusal by verification.
var errRefused = errors.New("the entry does not verify")

func asProblem(err error) error {
	code, fix := problem.Internal, ""
	switch {
	case errors.Is(err, errRefused):
		code, fix = problem.Denied, "propose what the control plane has signed"
	case errors.Is(err, store.ErrRollback), errors.Is(err, store.ErrEquivocation):
		code, fix = problem.Conflict, "propose the newest"
	case errors.Is(err, store.ErrInvalid), errors.Is(err, errEntry):
		code = problem.Invalid
	}
	return problem.New(code, "the cell's log refused the entry", fix).Because(err)
}
