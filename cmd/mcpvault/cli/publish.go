package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// completionTime is how long a shell waits for names.
const completionTime = 2 * time.Second

// Waiting is how long a write waits until the cells serve it.
type Waiting struct {
	time time.Duration
	off  bool
}

// Publishes gives a command the flags of a write that changes what cells enforce.
func (a *App) Publishes(cmd *cobra.Command, w *Waiting) *cobra.Command {
	cmd.Flags().DurationVar(&w.time, "wait", 5*time.Second, "how long to wait until every connected node has applied it")
	cmd.Flags().BoolVar(&w.off, "no-wait", false, "return when it is written, before the nodes have it")
	return cmd
}

// Published waits until the nodes serve a revision and says so. The write has been made: whatever happens here is a
// warning.
func (a *App) Published(ctx context.Context, c *admin.Client, tenant string, revision uint64, w Waiting) {
	if w.off || w.time <= 0 || revision == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, w.time+time.Second)
	defer cancel()
	resp, err := c.Snapshots.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Tenant: tenant, Revision: revision, Timeout: durationpb.New(w.time)})
	if err != nil {
		a.Warnf("written as revision %d, but whether the nodes have it is not known: %s", revision, admin.Wait(err, c.URL))
		return
	}
	applied := 0
	for _, ack := range resp.GetAcks() {
		switch {
		case ack.GetStatus() == "rejected":
			a.Warnf("node %s/%s refused generation %d: %s", ack.GetCell(), ack.GetNode(), ack.GetGeneration(), ack.GetReason())
		case ack.GetStatus() == "applied" && ack.GetGeneration() >= resp.GetGeneration():
			applied++
		}
	}
	switch {
	case resp.GetComplete() && len(resp.GetAcks()) == 0:
		a.Notef("published generation %d; no node is connected", resp.GetGeneration())
	case resp.GetComplete():
		a.Notef("published generation %d, applied by %d of %d nodes in %.0f ms", resp.GetGeneration(), applied, len(resp.GetAcks()), resp.GetElapsedMs())
	case resp.GetGeneration() == 0:
		a.Warnf("written as revision %d, but not published within %s; look with `mcpvault snapshot list`", revision, w.time)
	default:
		a.Warnf("published generation %d, applied by %d of %d nodes within %s; look with `mcpvault cell status`",
			resp.GetGeneration(), applied, len(resp.GetAcks()), w.time)
	}
}
