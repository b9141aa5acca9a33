package feed

import (
	"context"
	"time"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const killRetryMax = 5 * time.Second

// spread leaves a kill for the cell's log, from where it reaches nodes that do not hear the control plane. Whoever learned
// it hands it in, not the leader alone: the leader may be the one that does not hear. When too many wait, it is left to the
// other nodes, and to the control plane, which sends all of them on every connection.
func (f *Feed) spread(env []byte) {
	select {
	case f.kills <- env:
	default:
	}
}

// spreadKills hands kills to the cell's log until it has them; one that is not taken waits behind the others.
func (f *Feed) spreadKills(ctx context.Context) {
	wait := proposeRetry
	for {
		var env []byte
		select {
		case <-ctx.Done():
			return
		case env = <-f.kills:
		}
		err := f.cfg.Log.Propose(ctx, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Kill{Kill: env}})
		if err == nil {
			wait = proposeRetry
			continue
		}
		f.log.DebugContext(ctx, "a kill is in force here but not yet in the cell's log", "err", err)
		f.spread(env)
		pause(ctx, wait)
		wait = min(2*wait, killRetryMax)
	}
}
