package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlLastChange   = `SELECT sequence, hash FROM changes WHERE tenant_id = $1 ORDER BY sequence DESC LIMIT 1`
	sqlInsertChange = `INSERT INTO changes (tenant_id, sequence, at, actor, action, object, detail, revision, hash)
		VALUES ($1, $2, $3, $4, $5, $6, $7::json, $8, $9)`
	sqlListChanges = `SELECT sequence, at, actor, action, object, detail::text, revision, hash FROM changes
		WHERE tenant_id = $1 ORDER BY sequence DESC LIMIT $2`
	sqlChangesFrom = `SELECT sequence, at, actor, action, object, detail::text, revision, hash FROM changes
		WHERE tenant_id = $1 AND sequence >= $2 ORDER BY sequence LIMIT $3`
)

// changeDomain keeps these hashes apart from every other SHA-256 of the house.
const changeDomain = "mcpvault change v1\n"

// Change appends an entry to the tenant's ledger: what was done ("grant.create"), to what, and detail as JSON. Entries are
// chained: each hash is over the one before, so that none can be altered or left out without the rest showing it.
func (tx *Tx) Change(ctx context.Context, action, object string, detail any) error {
	raw, err := json.Marshal(detail)
	if err != nil {
		return fmt.Errorf("encode the detail of %s: %w", action, err)
	}
	// The tenant's row lock is held: nobody else appends now.
	last, err := one(ctx, tx, func(row pgx.CollectableRow) (controlplane.Change, error) {
		var c controlplane.Change
		var seq int64
		err := row.Scan(&seq, &c.Hash)
		c.Sequence = uint64(seq)
		return c, err
	}, sqlLastChange, tx.tenant)
	if err != nil && !isNoRows(err) {
		return err
	}
	c := controlplane.Change{
		Sequence: last.Sequence + 1, At: tx.now, Actor: tx.actor, Action: action, Object: object,
		Detail: string(raw), Revision: tx.revision,
	}
	c.Hash = ChangeHash(tx.tenant, last.Hash, c)
	_, err = tx.exec(ctx, sqlInsertChange, tx.tenant, int64(c.Sequence), c.At, c.Actor, c.Action, c.Object, c.Detail, int64(c.Revision), c.Hash)
	if err == nil {
		tx.changes++
	}
	return err
}

// ChangeHash is the hash that a change must have after the one whose hash is previous (nil for the first).
func ChangeHash(tenant controlplane.TenantID, previous []byte, c controlplane.Change) []byte {
	h := sha256.New()
	h.Write([]byte(changeDomain))
	writeField(h, previous)
	writeField(h, []byte(tenant))
	writeNumber(h, c.Sequence)
	writeNumber(h, uint64(c.At.UnixMilli()))
	for _, s := range []string{c.Actor, c.Action, c.Object, c.Detail} {
		writeField(h, []byte(s))
	}
	writeNumber(h, c.Revision)
	return h.Sum(nil)
}

// writeField writes the length first, so that no two lists of fields look the same.
func writeField(h hash.Hash, b []byte) {
	writeNumber(h, uint64(len(b)))
	h.Write(b)
}

func writeNumber(h hash.Hash, n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	h.Write(b[:])
}

// VerifyChanges checks a run of changes, oldest first, against the hash of the change before it (nil when the run starts
// at the beginning). The error names the first entry that is not what was written.
func VerifyChanges(tenant controlplane.TenantID, previous []byte, run []controlplane.Change) error {
	for i, c := range run {
		if i > 0 && c.Sequence != run[i-1].Sequence+1 {
			return fmt.Errorf("change %d is missing", run[i-1].Sequence+1)
		}
		if want := ChangeHash(tenant, previous, c); string(want) != string(c.Hash) {
			return fmt.Errorf("change %d is not what was written", c.Sequence)
		}
		previous = c.Hash
	}
	return nil
}

// Changes lists the newest entries, newest first.
func (tx *Tx) Changes(ctx context.Context, limit int) ([]controlplane.Change, error) {
	return all(ctx, tx, scanChange, sqlListChanges, tx.tenant, limit)
}

// ChangesFrom lists entries from a sequence number on, oldest first.
func (tx *Tx) ChangesFrom(ctx context.Context, first uint64, limit int) ([]controlplane.Change, error) {
	return all(ctx, tx, scanChange, sqlChangesFrom, tx.tenant, int64(first), limit)
}

func scanChange(row pgx.CollectableRow) (controlplane.Change, error) {
	var c controlplane.Change
	var seq, rev int64
	var at time.Time
	err := row.Scan(&seq, &at, &c.Actor, &c.Action, &c.Object, &c.Detail, &rev, &c.Hash)
	c.Sequence, c.Revision, c.At = uint64(seq), uint64(rev), at.UTC()
	return c, err
}
