package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

func badSnapshot() *rehearse.Drill {
	return &rehearse.Drill{
		Name: "bad-snapshot",
		Breaks: "flips a bit in every snapshot file of one node and in every snapshot that the control plane's database holds, and restarts both; " +
			"mends the database at the end",
		Blast: "callers of that node go to the others while it starts; its policy must come from its peers",
		Lost:  "snapshots of the control plane and of one node, altered", Works: "everything; what does not verify is refused and fetched elsewhere", Until: "no limit",
		Recovers: "the node answers rightly, from its start",
		Needs:    []rehearse.Need{rehearse.Disks, rehearse.ThreeNodes},
		Limits:   rehearse.Limits{RTO: 2 * bootLimit, Unknown: inFlight, Changes: rehearse.Any},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			n, err := follower(ctx, r)
			if err != nil {
				return err
			}
			if err := r.Site.Kill(ctx, n.ID(), rehearse.ControlPlane); err != nil {
				return err
			}
			files, err := flip(filepath.Join(r.Site.Dir(n), "blobs"))
			if err != nil {
				return err
			}
			r.Fact("files_altered", float64(files))
			r.Step("a bit is flipped in each of %d files of %s", files, n.ID())
			r.Keep("altered", true)
			if _, err := r.Site.SQL(ctx, "", alter); err != nil {
				return err
			}
			if err := r.Site.Start(ctx, rehearse.ControlPlane); err != nil {
				r.Step("the control plane does not start on that: %v", err)
			}
			return nil
		},
		Observe: func(ctx context.Context, r *rehearse.Run) error { return boot(ctx, r, ids(r)...) },
		Mend: func(ctx context.Context, r *rehearse.Run) error {
			err := r.Site.Kill(ctx, rehearse.ControlPlane)
			if r.Kept("altered") != nil {
				_, e := r.Site.SQL(ctx, "", restore)
				err = errors.Join(err, e)
			}
			if err = errors.Join(err, r.Site.Wake(ctx)); err != nil {
				return err
			}
			return inOffice(ctx, r)
		},
	}
}

// alter flips a bit in the middle of every snapshot in the control plane's database, and keeps what was there; restore puts it back.
const (
	alter = `BEGIN;
CREATE TABLE drill_blobs AS SELECT sha256, bytes FROM blobs;
CREATE TABLE drill_generations AS SELECT tenant_id, epoch, generation, envelope FROM generations WHERE length(envelope) > 0;
UPDATE blobs SET bytes = set_byte(bytes, length(bytes) / 2, get_byte(bytes, length(bytes) / 2) # 1) WHERE length(bytes) > 0;
UPDATE generations SET envelope = set_byte(envelope, length(envelope) / 2, get_byte(envelope, length(envelope) / 2) # 1) WHERE length(envelope) > 0;
COMMIT`
	restore = `BEGIN;
UPDATE blobs b SET bytes = d.bytes FROM drill_blobs d WHERE d.sha256 = b.sha256;
UPDATE generations g SET envelope = d.envelope FROM drill_generations d
 WHERE d.tenant_id = g.tenant_id AND d.epoch = g.epoch AND d.generation = g.generation;
DROP TABLE drill_blobs, drill_generations;
COMMIT`
)

// flip flips a bit in the middle of each file below a directory, and returns how many there are.
func flip(dir string) (files int, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path) //nolint:gosec // The directory is a node's own, and the node is dead.
		if err != nil || len(b) == 0 {
			return err
		}
		b[len(b)/2] ^= 1
		files++
		return os.WriteFile(path, b, 0o600) //nolint:gosec // See above.
	})
	if err == nil && files == 0 {
		err = fmt.Errorf("there is no file below %s", dir)
	}
	return files, err
}

func rollbackAttack() *rehearse.Drill {
	return &rehearse.Drill{
		Name: "rollback-attack",
		Breaks: "keeps a copy of one node's disk and of the control plane's database, lets policy change, then puts both copies in their place; " +
			"puts the newer database back at the end",
		Blast: "administrators: what they change meanwhile is refused by the cells; callers of the node go to the others while it starts",
		Lost:  "newer policy: a node's disk and the database are older copies", Works: "everything, by the newest policy that any node has; the older one is refused and named", Until: leases,
		Recovers: "the node answers by the newest policy, from its start",
		Needs:    []rehearse.Need{rehearse.Disks, rehearse.ThreeNodes},
		Limits:   rehearse.Limits{RTO: bootLimit, Unknown: 2 * inFlight, Changes: rehearse.Any},
		// A node that has learnt of newer policy than it can open yet holds calls with effects back.
		Tolerates: []string{"stale"},
		Break:     rollBack,
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			if err := boot(ctx, r, ids(r)...); err != nil {
				return err
			}
			return r.Until(ctx, 20*time.Second, "a node says that the control plane is behind", func(ctx context.Context) bool {
				for _, n := range r.Nodes {
					problems, err := r.Site.Problems(ctx, n)
					if err == nil && slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, "is behind this cell") }) {
						r.Step("%s says that the control plane is behind", n.ID())
						return true
					}
				}
				return false
			})
		},
		Mend: func(ctx context.Context, r *rehearse.Run) error {
			err := r.Site.Kill(ctx, rehearse.ControlPlane)
			if r.Kept("swapped") != nil {
				_, e := r.Site.SQL(ctx, "template1", "ALTER DATABASE postgres RENAME TO drill_old")
				_, e2 := r.Site.SQL(ctx, "template1", "ALTER DATABASE drill_new RENAME TO postgres")
				err = errors.Join(err, e, e2)
			}
			if r.Kept("copied") != nil {
				_, e := r.Site.SQL(ctx, "template1", "DROP DATABASE drill_old WITH (FORCE)")
				err = errors.Join(err, e)
			}
			if dir, ok := r.Kept("dir").(string); ok {
				err = errors.Join(err, os.RemoveAll(dir))
			}
			r.Astray(false)
			if err = errors.Join(err, r.Site.Wake(ctx)); err != nil {
				return err
			}
			return inOffice(ctx, r)
		},
	}
}

// rollBack takes the copies, lets policy change, and puts them in place. The node is left dead.
func rollBack(ctx context.Context, r *rehearse.Run) error {
	n, err := follower(ctx, r)
	if err != nil {
		return err
	}
	old, err := os.MkdirTemp("", "mcpvault-drill-")
	if err != nil {
		return err
	}
	r.Keep("dir", old)
	dir := r.Site.Dir(n)
	if err := r.Site.Kill(ctx, n.ID(), rehearse.ControlPlane); err != nil {
		return err
	}
	if err := copyPolicy(old, dir); err != nil {
		return err
	}
	if _, err := r.Site.SQL(ctx, "template1", "CREATE DATABASE drill_old TEMPLATE postgres"); err != nil {
		return err
	}
	r.Keep("copied", true)
	if err := r.Site.Start(ctx, rehearse.ControlPlane, n.ID()); err != nil {
		return err
	}
	r.Step("copies of the disk of %s and of the database are kept", n.ID())
	for range 3 {
		if err := inOffice(ctx, r); err != nil {
			return err
		}
	}
	if err := r.Site.Kill(ctx, n.ID(), rehearse.ControlPlane); err != nil {
		return err
	}
	r.Astray(true)
	if err := copyPolicy(dir, old); err != nil {
		return err
	}
	for _, rename := range []string{"ALTER DATABASE postgres RENAME TO drill_new", "ALTER DATABASE drill_old RENAME TO postgres"} {
		if _, err := r.Site.SQL(ctx, "template1", rename); err != nil {
			return err
		}
		r.Keep("swapped", true)
	}
	r.Step("policy has changed, and the older copies are in place")
	return r.Site.Start(ctx, rehearse.ControlPlane)
}

// copyPolicy replaces what a node's disk holds, but not its audit log: that is for another drill.
func copyPolicy(to, from string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "audit" {
			continue
		}
		target := filepath.Join(to, e.Name())
		if err := os.RemoveAll(target); err != nil {
			return err
		}
		if e.IsDir() {
			err = os.CopyFS(target, os.DirFS(filepath.Join(from, e.Name())))
		} else {
			var b []byte
			if b, err = os.ReadFile(filepath.Join(from, e.Name())); err == nil {
				err = os.WriteFile(target, b, 0o600) //nolint:gosec // Both directories are the drill's.
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
