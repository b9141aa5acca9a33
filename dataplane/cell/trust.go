package cell

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/mcpvault/mcpvault/dataplane/feed"
	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// openTrust starts from the newest roots that this node has verified before, else from the file that the operator gave.
func (n *Node) openTrust(context.Context) error {
	given, err := os.ReadFile(n.cfg.Roots)
	if err != nil && n.store.Roots() == nil {
		return fmt.Errorf("read roots: %w", err)
	}
	env := n.store.Roots()
	if env == nil {
		env = given
	}
	digest, err := seal.RootsDigest(env)
	if err != nil {
		return fmt.Errorf("roots: %w", err)
	}
	trust, err := seal.OpenRoots(env, digest)
	if err != nil {
		return fmt.Errorf("roots: %w", err)
	}
	n.trust = feed.NewTrust(env, trust, n.store.PutRoots)
	if n.store.Roots() == nil {
		// The floor may remember newer roots that the disk has lost: these serve until somebody sends those again.
		if err := n.store.PutRoots(env); err != nil && !errors.Is(err, store.ErrRollback) {
			return fmt.Errorf("keep roots: %w", err)
		}
	} else if len(given) > 0 {
		if err := n.trust.Renew(given); err != nil && !errors.Is(err, seal.ErrRollback) {
			n.log.Warn("the roots file does not follow from the roots that this node believes", "file", n.cfg.Roots, "err", err)
		}
	}
	return nil
}

// verifier judges what the log carries, by the roots that were applied before.
type verifier struct{ n *Node }

func (v verifier) VerifyUpdate(u *cellv1.Update) error {
	if roots := u.GetRoots(); len(roots) > 0 {
		if err := v.n.trust.Renew(roots); err != nil && !errors.Is(err, seal.ErrRollback) {
			return fmt.Errorf("roots: %w", err)
		}
	}
	trust := v.n.trust.Current()
	if _, err := trust.OpenManifest(u.GetManifest(), v.n.cfg.Cell); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	for _, env := range u.GetHeads() {
		if _, err := trust.OpenHead(env); err != nil {
			return fmt.Errorf("head: %w", err)
		}
	}
	for _, d := range u.GetDeltas() {
		if _, err := trust.OpenDelta(d); err != nil {
			return fmt.Errorf("delta: %w", err)
		}
	}
	return nil
}

func (v verifier) VerifyDelta(d *snapshotv1.SignedDelta) error {
	_, err := v.n.trust.Current().OpenDelta(d)
	return err
}

func (v verifier) VerifyKill(env []byte) (string, error) {
	k, err := v.n.trust.Current().OpenKill(env)
	if err != nil {
		return "", err
	}
	return k.GetId(), nil
}
