package cell

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const (
	usualGrace = 30 * time.Second
	// noticed is for how long a node that is being drained still serves who comes, without calls under way, so that balancers
	// see that it is not ready. It is shorter in development.
	noticed    = 5 * time.Second
	devNoticed = 500 * time.Millisecond
)

// errDraining is the cause of the end of a node that was drained.
var errDraining = errors.New("the node was drained")

// draining is a node's way out: not ready, leadership handed over, streams closed, calls finished, stopped.
type draining struct {
	on    atomic.Bool
	calls atomic.Int64 // under way, streams included
	stop  context.CancelCauseFunc
}

// counted counts what is under way, and while the node is drained has each client take its next call elsewhere.
func (n *Node) counted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.drain.calls.Add(1)
		defer n.drain.calls.Add(-1)
		if n.drain.on.Load() && r.ProtoMajor < 3 {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// drainProblem makes a node that is being drained not ready.
func (n *Node) drainProblem() error {
	if n.drain.on.Load() {
		return errors.New("this node is being drained: it finishes its calls and stops")
	}
	return nil
}

// startDrain answers an order to drain this node; what it begins goes on behind.
func (n *Node) startDrain(ctx context.Context, o *cellv1.NodeOrder) *cellv1.AnswerOrderRequest {
	a := &cellv1.AnswerOrderRequest{Id: o.GetId()}
	if o.GetNode() != n.cfg.Node {
		refuse(a, problem.Newf(problem.Invalid, "", "this is node %s", n.cfg.Node))
		return a
	}
	if !o.GetForce() {
		spare := n.obey(ctx, &cellv1.NodeOrder{Id: o.GetId(), Kind: cellv1.OrderKind_ORDER_KIND_SPARE, Node: n.cfg.Node, By: o.GetBy()})
		if spare.GetCode() != "" {
			if spare.Fix != "" {
				spare.Fix += "; "
			}
			spare.Fix += "or drain it all the same with --force"
			return spare
		}
	}
	n.log.WarnContext(ctx, "the node is drained", "by", o.GetBy())
	grace := time.Duration(o.GetGraceMs()) * time.Millisecond
	if grace <= 0 {
		grace = usualGrace
	}
	if !n.drain.on.Swap(true) {
		n.drainer <- grace
	}
	return a
}

// drainWhenTold carries the drain out, and ends the node.
func (n *Node) drainWhenTold(ctx context.Context) error {
	var grace time.Duration
	select {
	case <-ctx.Done():
		return nil
	case grace = <-n.drainer:
	}
	notice := noticed
	if n.cfg.Dev {
		notice = devNoticed
	}
	hctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	if err := n.consensus.TransferLeadership(hctx); err != nil {
		n.log.WarnContext(ctx, "leadership was not handed over", "err", err)
	}
	cancel()
	n.pep.Drain()
	idle(ctx, &n.drain.calls, notice, grace)
	n.log.InfoContext(ctx, "drained", "calls_cut", n.drain.calls.Load())
	n.drain.stop(errDraining)
	return nil
}

// idle returns when the notice is over and nothing is under way, or the grace is over, or ctx.
func idle(ctx context.Context, calls *atomic.Int64, notice, grace time.Duration) {
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for since := time.Duration(0); since < notice || calls.Load() > 0 && since < notice+grace; since = time.Since(began) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
