package cell

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/peers"
	"github.com/mcpvault/mcpvault/kit/run"
)

// compareEvery is how often a node compares with its peers what they hold.
const compareEvery = 5 * time.Second

// compare looks whether the peers hold something else under the same numbers, until ctx ends. That is the sign of a control
// plane, or of whoever has its key, that shows different policies to different nodes.
func (n *Node) compare(ctx context.Context) error {
	return run.Every(ctx, compareEvery, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, compareEvery)
		defer cancel()
		n.compareOnce(ctx)
	})
}

func (n *Node) compareOnce(ctx context.Context) {
	var found []string
	own := n.nodeStatus()
	statuses := n.peers.Statuses(ctx, true)
	n.cells.heard(statuses)
	for _, r := range statuses {
		peer := r.GetStatus().GetNode()
		differ := peers.Contradictions(own, r.GetStatus())
		if len(differ) == 0 {
			continue
		}
		word := "as node " + peer + " says"
		if full, err := n.peers.Status(ctx, peer); err == nil && peers.Proven(n.trust.Current(), n.cfg.Cell, n.store.LastUpdate(), full.GetUpdate()) {
			word = "and the signatures prove it"
		}
		found = append(found, fmt.Sprintf("node %s holds something else as %s, %s", peer, strings.Join(differ, ", "), word))
	}
	n.setContradiction(ctx, strings.Join(found, "; "))
}

// setContradiction keeps what was found, and says it once.
func (n *Node) setContradiction(ctx context.Context, found string) {
	if found != "" {
		n.contradictions.Add(1)
	}
	if old := n.contradiction.Swap(&found); found == "" || old != nil && *old == found {
		return
	}
	n.log.ErrorContext(ctx, "EQUIVOCATION: nodes of this cell were shown different policies under one number", "found", found)
}

func (n *Node) contradictionProblem() error {
	if found := n.contradiction.Load(); found != nil && *found != "" {
		return fmt.Errorf("%s: nodes were shown different policies under one number; withdraw the control plane's head key with new roots, and look who has it", *found)
	}
	return nil
}
