package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/snapshot"
)

// Generation is one published policy of a tenant.
type Generation struct {
	Epoch, Generation, Revision uint64
	// Base is the generation of the head: its own, or the one that its deltas rest on.
	Base uint64
	// Envelope is the DSSE envelope of a head, Delta an encoded snapshot.v1.SignedDelta: a generation has one of them.
	Envelope, Delta []byte
	// PayloadSHA256 is the digest of the head's payload, or of the delta's body.
	PayloadSHA256 []byte
	// Size is that of the shards together, or of the delta, in bytes.
	Size uint64
	// Error is why a revision after this one could not be published, "" when there is none.
	Error     string
	CreatedAt time.Time
	// CommittedAt is when the newest revision it contains was written.
	CommittedAt time.Time
}

// GenerationChannel is notified with "TENANT-ID PUBLISHER" when a generation is published: for the other control planes.
const GenerationChannel = "mcpvault_generation"

// Blob is a shard under its SHA-256.
type Blob struct {
	SHA256, Bytes []byte
}

const (
	sqlLockPublish = `SELECT pg_advisory_xact_lock(hashtextextended('mcpvault publish ' || $1, 0))`

	generationColumns = `epoch, generation, coalesce(base, generation), revision, envelope, delta, payload_sha256, size, error, created_at, committed_at`
	sqlGenerations    = `SELECT ` + generationColumns + ` FROM generations WHERE tenant_id = $1 ORDER BY epoch DESC, generation DESC LIMIT $2`
	sqlGeneration     = `SELECT ` + generationColumns + ` FROM generations WHERE tenant_id = $1 AND generation = $2 ORDER BY epoch DESC LIMIT 1`
	sqlChain          = `SELECT ` + generationColumns + ` FROM generations
		WHERE tenant_id = $1 AND epoch = $2 AND generation BETWEEN $3 AND $4 ORDER BY generation`

	sqlGenerationAt = `SELECT ` + generationColumns + ` FROM generations WHERE tenant_id = $1 AND epoch = $2 AND generation = $3`

	sqlInsertGeneration = `INSERT INTO generations
		(tenant_id, epoch, generation, base, revision, envelope, delta, payload_sha256, size, created_at, committed_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`
	// A delta rests on the shards of its head: they stay for as long as it does.
	sqlInheritShards = `INSERT INTO generation_shards (tenant_id, epoch, generation, sha256)
		SELECT tenant_id, epoch, $3, sha256 FROM generation_shards WHERE tenant_id = $1 AND epoch = $2 AND generation = $4`
	// A shard that is there already is written to all the same, which locks it: SweepBlobs must not take it away meanwhile.
	sqlInsertBlob  = `INSERT INTO blobs (sha256, bytes, size) VALUES ($1, $2, $3) ON CONFLICT (sha256) DO UPDATE SET size = excluded.size`
	sqlInsertShard = `INSERT INTO generation_shards (tenant_id, epoch, generation, sha256) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`
	sqlBlob        = `SELECT bytes FROM blobs WHERE sha256 = $1`
	sqlSetError    = `UPDATE generations SET error = $2 WHERE tenant_id = $1 AND (epoch, generation) =
		(SELECT epoch, generation FROM generations WHERE tenant_id = $1 ORDER BY epoch DESC, generation DESC LIMIT 1)`
	// created_at rises with the generations: what is older than the oldest one that stays, and nothing that stays rests on it,
	// goes.
	sqlForget = `DELETE FROM generations WHERE tenant_id = $1 AND (epoch, generation) <
		(SELECT k.epoch, coalesce(k.base, k.generation) FROM generations k WHERE k.tenant_id = $1 AND (k.created_at >= $3 OR (k.epoch, k.generation) IN
			(SELECT epoch, generation FROM generations WHERE tenant_id = $1 ORDER BY epoch DESC, generation DESC LIMIT $2))
		ORDER BY k.epoch, k.generation LIMIT 1)`
	sqlForgetAcks = `DELETE FROM acks a WHERE a.tenant_id = $1 AND NOT EXISTS
		(SELECT 1 FROM generations g WHERE g.tenant_id = $1 AND g.epoch = a.epoch AND g.generation = a.generation)`
	// The shards' rows are the only ones of generations that a platform transaction sees.
	sqlNewest = `SELECT DISTINCT ON (tenant_id) tenant_id::text, epoch, generation FROM generation_shards
		ORDER BY tenant_id, epoch DESC, generation DESC`
	sqlSweepBlobs = `DELETE FROM blobs b WHERE NOT EXISTS (SELECT 1 FROM generation_shards s WHERE s.sha256 = b.sha256)`

	sqlOldestOpen = `SELECT min(revision) FROM outbox WHERE tenant_id = $1 AND kind = $2 AND done_at IS NULL`
	sqlCommitted  = `SELECT at FROM outbox WHERE tenant_id = $1 AND revision <= $2 ORDER BY revision DESC LIMIT 1`
	sqlOfRevision = `SELECT at FROM outbox WHERE tenant_id = $1 AND revision = $2 LIMIT 1`
)

// LockPublish waits until nobody else publishes this tenant, and holds that until the transaction ends.
func (tx *Tx) LockPublish(ctx context.Context) error {
	_, err := tx.exec(ctx, sqlLockPublish, tx.tenant)
	return err
}

// Generations lists the newest generations, newest first.
func (tx *Tx) Generations(ctx context.Context, limit int) ([]Generation, error) {
	return all(ctx, tx, scanGeneration, sqlGenerations, tx.tenant, limit)
}

// Generation finds one by its number, the newest when it is 0; not_found when there is none.
func (tx *Tx) Generation(ctx context.Context, number uint64) (Generation, error) {
	if number == 0 {
		g, err := one(ctx, tx, scanGeneration, sqlGenerations, tx.tenant, 1)
		return g, missing(err, "nothing has been published yet")
	}
	g, err := one(ctx, tx, scanGeneration, sqlGeneration, tx.tenant, int64(number))
	return g, missing(err, "generation %d does not exist, or is no longer kept", number)
}

// GenerationAt finds one by its version, the newest for version 0; not_found when there is none.
func (tx *Tx) GenerationAt(ctx context.Context, v snapshot.Version) (Generation, error) {
	if v == (snapshot.Version{}) {
		return tx.Generation(ctx, 0)
	}
	g, err := one(ctx, tx, scanGeneration, sqlGenerationAt, tx.tenant, int64(v.Epoch), int64(v.Generation))
	return g, missing(err, "generation %s does not exist, or is no longer kept", v)
}

// Chain is what a generation is made of: its head, and the deltas up to it in order.
func (tx *Tx) Chain(ctx context.Context, g Generation) ([]Generation, error) {
	if g.Delta == nil {
		return []Generation{g}, nil
	}
	chain, err := all(ctx, tx, scanGeneration, sqlChain, tx.tenant, int64(g.Epoch), int64(g.Base), int64(g.Generation))
	if err == nil && (len(chain) == 0 || chain[0].Delta != nil || uint64(len(chain)) != g.Generation-g.Base+1) {
		err = fmt.Errorf("generation %d rests on %d, and some of the %d between are missing", g.Generation, g.Base, len(chain))
	}
	return chain, err
}

// Newest is the version of each tenant's newest generation, for a platform transaction.
func (tx *Tx) Newest(ctx context.Context) (map[controlplane.TenantID]snapshot.Version, error) {
	newest := map[controlplane.TenantID]snapshot.Version{}
	_, err := all(ctx, tx, func(row pgx.CollectableRow) (n struct{}, err error) {
		var id string
		var epoch, gen int64
		err = row.Scan(&id, &epoch, &gen)
		newest[controlplane.TenantID(id)] = snapshot.Version{Epoch: snapshot.Epoch(epoch), Generation: snapshot.Generation(gen)}
		return n, err
	}, sqlNewest)
	return newest, err
}

// InsertGeneration stores a generation and its shards. A delta has none of its own.
func (tx *Tx) InsertGeneration(ctx context.Context, g Generation, shards []Blob) error {
	var base *int64
	if g.Delta != nil {
		n := int64(g.Base)
		base = &n
	}
	_, err := tx.exec(ctx, sqlInsertGeneration, tx.tenant, int64(g.Epoch), int64(g.Generation), base, int64(g.Revision),
		append([]byte{}, g.Envelope...), g.Delta, g.PayloadSHA256, int64(g.Size), tx.now, g.CommittedAt)
	if err != nil {
		return err
	}
	if g.Delta != nil {
		_, err := tx.exec(ctx, sqlInheritShards, tx.tenant, int64(g.Epoch), int64(g.Generation), int64(g.Base))
		return err
	}
	for _, b := range shards {
		if _, err := tx.exec(ctx, sqlInsertBlob, b.SHA256, b.Bytes, len(b.Bytes)); err != nil {
			return err
		}
		if _, err := tx.exec(ctx, sqlInsertShard, tx.tenant, int64(g.Epoch), int64(g.Generation), b.SHA256); err != nil {
			return err
		}
	}
	return nil
}

// Blob reads a shard; not_found when it is not kept.
func (tx *Tx) Blob(ctx context.Context, sha256 []byte) ([]byte, error) {
	b, err := one(ctx, tx, scanValue[[]byte], sqlBlob, sha256)
	return b, missing(err, "shard %x is not kept", sha256)
}

// NotePublishError keeps with the newest generation why the next one could not be made; "" clears it.
func (tx *Tx) NotePublishError(ctx context.Context, message string) error {
	_, err := tx.exec(ctx, sqlSetError, tx.tenant, message)
	return err
}

// ForgetGenerations drops what was made before a time, but for the newest ones and what those that stay rest on, and the acknowledgements of what it drops.
func (tx *Tx) ForgetGenerations(ctx context.Context, keep int, before time.Time) error {
	n, err := tx.exec(ctx, sqlForget, tx.tenant, keep, before)
	if err != nil || n == 0 {
		return err
	}
	_, err = tx.exec(ctx, sqlForgetAcks, tx.tenant)
	return err
}

// SweepBlobs drops the shards that no generation names. It is for a platform transaction, which sees every tenant's.
func (tx *Tx) SweepBlobs(ctx context.Context) (int64, error) { return tx.exec(ctx, sqlSweepBlobs) }

// AnnounceGeneration tells the other control planes, when the transaction commits, and who published.
func (tx *Tx) AnnounceGeneration(ctx context.Context, publisher string) error {
	_, err := tx.exec(ctx, sqlNotify, GenerationChannel, string(tx.tenant)+" "+publisher)
	return err
}

// OldestOpen is the first revision of the tenant that no generation holds yet; 0 when there is none.
func (tx *Tx) OldestOpen(ctx context.Context) (uint64, error) {
	rev, err := one(ctx, tx, scanValue[*int64], sqlOldestOpen, tx.tenant, OutboxPolicy)
	if err != nil || rev == nil {
		return 0, err
	}
	return uint64(*rev), nil
}

// CommittedAt is when the newest write up to a revision was made; the zero time when the outbox no longer knows.
func (tx *Tx) CommittedAt(ctx context.Context, revision uint64) (time.Time, error) {
	return tx.outboxTime(ctx, sqlCommitted, revision)
}

// WrittenAt is when exactly this revision was made; the zero time when the outbox no longer knows.
func (tx *Tx) WrittenAt(ctx context.Context, revision uint64) (time.Time, error) {
	return tx.outboxTime(ctx, sqlOfRevision, revision)
}

func (tx *Tx) outboxTime(ctx context.Context, sql string, revision uint64) (time.Time, error) {
	at, err := one(ctx, tx, scanValue[time.Time], sql, tx.tenant, int64(revision))
	if isNoRows(err) {
		return time.Time{}, nil
	}
	return at.UTC(), err
}

func scanGeneration(row pgx.CollectableRow) (Generation, error) {
	var g Generation
	var epoch, gen, base, rev, size int64
	err := row.Scan(&epoch, &gen, &base, &rev, &g.Envelope, &g.Delta, &g.PayloadSHA256, &size, &g.Error, &g.CreatedAt, &g.CommittedAt)
	g.Epoch, g.Generation, g.Base, g.Revision, g.Size = uint64(epoch), uint64(gen), uint64(base), uint64(rev), uint64(size)
	return g, err
}
