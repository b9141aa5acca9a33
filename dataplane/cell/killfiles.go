package cell

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/kit/run"
	"github.com/mcpvault/mcpvault/snapshot/breakglass"
)

// The directory in which a node looks for files of kills, below its data directory, and the ends of their names: as they are
// put there, and what becomes of them.
const (
	killDir     = "kills"
	killSuffix  = ".kills"
	killTaken   = ".taken"
	killRefused = ".refused"
	killLook    = 200 * time.Millisecond
)

// watchKillFiles takes the kills out of files that somebody has carried here: a cell that hears nobody can be told all the same. A
// file is looked at when it has stayed the same between two looks, so that one is not read while it is being copied.
func (n *Node) watchKillFiles(ctx context.Context) error {
	dir := filepath.Join(n.cfg.DataDir, killDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		n.log.ErrorContext(ctx, "kills cannot be brought as files", "dir", dir, "err", err)
		return nil
	}
	seen := map[string]string{}
	return run.Every(ctx, killLook, func(ctx context.Context) { n.lookForKills(ctx, dir, seen) })
}

func (n *Node) lookForKills(ctx context.Context, dir string, seen map[string]string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // there at the start: somebody took it away
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !strings.HasSuffix(e.Name(), killSuffix) {
			continue
		}
		now := fmt.Sprint(info.Size(), info.ModTime().UnixNano(), info.Mode())
		if seen[e.Name()] != now {
			seen[e.Name()] = now
			continue
		}
		delete(seen, e.Name())
		path := filepath.Join(dir, e.Name())
		end := killTaken
		took, err := n.takeKillFile(path)
		if err != nil {
			end = killRefused
			n.log.ErrorContext(ctx, "a file of kills is refused", "file", path, "in_force", took, "err", err)
		} else {
			n.log.WarnContext(ctx, "kills out of a file are in force", "file", path, "kills", took)
		}
		if err := os.Rename(path, path+end); err != nil {
			seen[e.Name()] = now // not to be done over and over
			n.log.ErrorContext(ctx, "rename a file of kills", "file", path, "err", err)
		}
	}
}

// takeKillFile puts the kills of a file into force. It is refused whole when one of them does not verify.
func (n *Node) takeKillFile(path string) (took int, err error) {
	info, err := os.Lstat(path)
	switch {
	case err != nil:
		return 0, err
	case !info.Mode().IsRegular():
		return 0, errors.New("it is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, breakglass.MaxFile+1))
	if err != nil {
		return 0, err
	}
	kills, err := breakglass.Read(bytes.NewReader(raw), n.trust.Current())
	if err != nil {
		return 0, err
	}
	for _, k := range kills {
		if err := n.feed.TakeKill(k.Envelope); err != nil {
			return took, err
		}
		took++
	}
	return took, nil
}

const (
	// killCommit is how long a kill waits for the cell's log before the peers are told directly.
	killCommit = time.Second
	tellLimit  = 2 * time.Second
)

// tellKills tells every peer what kills this node knows: the way of a kill where the log has no leader, or a leader that does not
// answer. Each peer verifies them itself.
func (n *Node) tellKills(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	n.peers.TellKills(ctx, newestKills(n.store.Kills()))
}

// HearKills makes the node a peer of the others.
func (n *Node) HearKills(ctx context.Context, peer string, kills [][]byte) {
	n.takeKills(ctx, peer, kills)
}
