package cell

import (
	"context"
	"time"

	"github.com/mcpvault/mcpvault/kit/run"
)

const (
	// usualHang is for how long a write may hang before the process ends.
	usualHang = 20 * time.Second
	// exitDisk is EX_IOERR of sysexits.h: whoever restarts the process sees that it was the disk.
	exitDisk = 74
	diskLook = 250 * time.Millisecond
)

// watchDisk ends the process when the log's disk has not come back from a write for too long. Until then the node decides from
// memory: the log has another leader since half a second into it. What hangs in the kernel cannot be stopped in order, and the
// store's files are on the same disk: the end is that of a crash, which loses nothing that was acknowledged.
func (n *Node) watchDisk(ctx context.Context) error {
	return run.Every(ctx, diskLook, func(context.Context) { n.judgeDisk(n.consensus.Hung()) })
}

func (n *Node) judgeDisk(hung time.Duration) {
	limit := n.cfg.DiskHangLimit
	if limit == 0 {
		limit = usualHang
	}
	if hung <= limit {
		return
	}
	n.log.Error("the disk does not come back from a write: the process ends, to be started where the disk works", "hung", hung.Round(time.Millisecond), "limit", limit)
	n.exit(exitDisk)
}
