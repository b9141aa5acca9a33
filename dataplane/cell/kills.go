package cell

import (
	"context"
	"sync"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// loggedKills are the kills that the cell's log has brought, by the digest of the envelope: the same kill under a newer
// signature is to be handed in again. Every node hands in what it hears; once is enough.
type loggedKills struct {
	mu   sync.Mutex
	seen map[snapshot.Digest]struct{} // guarded by mu
}

func (l *loggedKills) add(env []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen == nil {
		l.seen = map[snapshot.Digest]struct{}{}
	}
	l.seen[snapshot.DigestOf(env)] = struct{}{}
}

func (l *loggedKills) has(env []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.seen[snapshot.DigestOf(env)]
	return ok
}

// inLog reports whether an entry is a kill that the log has.
func (n *Node) inLog(e *cellv1.RaftEntry) bool {
	env := e.GetKill()
	return env != nil && n.logged.has(env)
}

// killsBytes bounds the kills that one node tells another.
const killsBytes = 1 << 20

// newestKills are the last of all, in their order, as far as they fit.
func newestKills(all [][]byte) [][]byte {
	size, from := 0, len(all)
	for from > 0 && size+len(all[from-1]) <= killsBytes {
		from--
		size += len(all[from])
	}
	return all[from:]
}

// takeKills puts into force what a peer knows of kills, and reports whether those are all that it knows.
func (n *Node) takeKills(ctx context.Context, peer string, kills [][]byte) (all bool) {
	size := 0
	all = true
	for _, env := range kills {
		size += len(env)
		if err := n.feed.TakeKill(env); err != nil {
			n.log.WarnContext(ctx, "a peer's kill was not taken", "peer", peer, "err", err)
			all = false
		}
	}
	// Above half of the bound there may be older ones that did not fit.
	return all && size <= killsBytes/2
}
