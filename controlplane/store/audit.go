package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

// NoTenant is whose audit records are those of no tenant.
const NoTenant controlplane.TenantID = "00000000-0000-0000-0000-000000000000"

// AuditLog is one node's log as the control plane knows it.
type AuditLog struct {
	No          int32
	ID          string
	Cell, Node  string
	VerifierKey string
	// Size: records below it are stored. Witnessed is the size of Checkpoint.
	Size, Witnessed int64
	Checkpoint      []byte
	WitnessedAt     time.Time
	Alarm           string
}

// AuditTile is up to 256 hashes of one level of a log's tree.
type AuditTile struct {
	Level  int32
	N      int64
	Hashes []byte
}

// AuditRecord is one leaf of a log, with what is searched for.
type AuditRecord struct {
	Log      int32
	LogID    string // set by reads
	Index    int64
	Tenant   controlplane.TenantID
	ID       string
	IntentID string
	At       time.Time
	Kind     int32
	Decision int32
	Reason   string
	// Principal, Server and Target are names.
	Principal, Server, Target string
	Leaf                      []byte
	// Received orders the records of all logs as they became visible.
	Received   int64
	ReceivedAt time.Time
}

// AuditQuery says which records; zero values ask for any.
type AuditQuery struct {
	Principal, Server, Target string
	Decision                  int32
	Since                     time.Time
	// After asks for the oldest ones received after this one; 0 for the newest ones.
	After int64
	Limit int
}

const (
	sqlAuditLogColumns = `no, id, cell, node, verifier_key, size, witnessed, checkpoint, witnessed_at, alarm`

	sqlAddAuditLog = `INSERT INTO audit_logs (id, cell, node, verifier_key, created_at) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (id) DO NOTHING`
	sqlLockAuditLog = `SELECT ` + sqlAuditLogColumns + ` FROM audit_logs WHERE id = $1 FOR UPDATE`
	sqlAuditLog     = `SELECT ` + sqlAuditLogColumns + ` FROM audit_logs WHERE id = $1`
	sqlAuditLogs    = `SELECT ` + sqlAuditLogColumns + ` FROM audit_logs ORDER BY id`

	sqlSetAuditHead = `UPDATE audit_logs SET size = $2, witnessed = $3, checkpoint = $4, witnessed_at = $5 WHERE no = $1`
	// The first alarm is the one that tells what happened.
	sqlSetAuditAlarm = `UPDATE audit_logs SET alarm = $2 WHERE no = $1 AND alarm = ''`

	sqlAuditTiles = `SELECT t.level, t.n, t.hashes FROM audit_tiles t
		JOIN unnest($2::integer[], $3::bigint[]) AS want (level, n) ON t.level = want.level AND t.n = want.n
		WHERE t.log = $1`
	sqlPutAuditTiles = `INSERT INTO audit_tiles (log, level, n, hashes)
		SELECT $1, level, n, hashes FROM unnest($2::integer[], $3::bigint[], $4::bytea[]) AS t (level, n, hashes)
		ON CONFLICT (log, level, n) DO UPDATE SET hashes = excluded.hashes`

	// Held until the commit, so that records become visible in the order of their numbers: a reader who saw one will not be
	// shown a lower one later.
	sqlLockReceived      = `SELECT pg_advisory_xact_lock(7310595122714325)`
	sqlInsertAuditRecord = `INSERT INTO audit_records
		(log, idx, tenant_id, id, intent_id, at, kind, decision, reason, principal, server, target, leaf, received_at)
		SELECT $1, idx, $2, id, intent_id, at, kind, decision, reason, principal, server, target, leaf, $3
		FROM unnest($4::bigint[], $5::text[], $6::text[], $7::timestamptz[], $8::integer[], $9::integer[], $10::text[],
			$11::text[], $12::text[], $13::text[], $14::bytea[])
			AS r (idx, id, intent_id, at, kind, decision, reason, principal, server, target, leaf)
		ON CONFLICT (log, idx) DO NOTHING`
	sqlSetTenant = `SELECT set_config('mcpvault.tenant', $1, true)`

	sqlAuditRecordColumns = `r.log, l.id, r.idx, r.tenant_id::text, r.id, r.intent_id, r.at, r.kind, r.decision, r.reason,
		r.principal, r.server, r.target, r.leaf, r.received, r.received_at`
	sqlAuditWhereColumns = ` FROM audit_records r JOIN audit_logs l ON l.no = r.log WHERE r.tenant_id = $1
		AND ($2 = '' OR r.principal = $2) AND ($3 = '' OR r.server = $3) AND ($4 = '' OR r.target = $4)
		AND ($5 = 0 OR r.decision = $5) AND ($6::timestamptz IS NULL OR r.at >= $6) AND r.received > $7`
	sqlAuditAfter  = `SELECT ` + sqlAuditRecordColumns + sqlAuditWhereColumns + ` ORDER BY r.received LIMIT $8`
	sqlAuditNewest = `SELECT * FROM (SELECT ` + sqlAuditRecordColumns + sqlAuditWhereColumns + ` ORDER BY r.received DESC LIMIT $8)
		AS newest ORDER BY received`
	sqlAuditDecision = `SELECT ` + sqlAuditRecordColumns + ` FROM audit_records r JOIN audit_logs l ON l.no = r.log
		WHERE r.tenant_id = $1 AND (r.id = ANY($2) OR (r.intent_id <> '' AND r.intent_id = ANY($2)))
		ORDER BY r.log, r.idx LIMIT 100`
	sqlAuditLeaves = `SELECT leaf FROM audit_records WHERE log = $1 AND idx >= $2 AND idx < $3 ORDER BY idx`
)

// LockAuditLog returns the log with its row locked until the transaction ends, and makes it at the first contact.
func (tx *Tx) LockAuditLog(ctx context.Context, id, cell, node, verifierKey string) (AuditLog, error) {
	l, err := one(ctx, tx, scanAuditLog, sqlLockAuditLog, id)
	if err == nil || !isNoRows(err) {
		return l, err
	}
	if _, err := tx.exec(ctx, sqlAddAuditLog, id, cell, node, verifierKey, tx.now); err != nil {
		return AuditLog{}, err
	}
	return one(ctx, tx, scanAuditLog, sqlLockAuditLog, id)
}

// AuditLog returns one log; not_found when there is none with the id.
func (tx *Tx) AuditLog(ctx context.Context, id string) (AuditLog, error) {
	l, err := one(ctx, tx, scanAuditLog, sqlAuditLog, id)
	return l, missing(err, "audit log %s does not exist", id)
}

// AuditLogs lists every log.
func (tx *Tx) AuditLogs(ctx context.Context) ([]AuditLog, error) {
	return all(ctx, tx, scanAuditLog, sqlAuditLogs)
}

// SetAuditHead notes how far a log is stored, and the checkpoint that proves it.
func (tx *Tx) SetAuditHead(ctx context.Context, no int32, size, witnessed int64, checkpoint []byte) error {
	_, err := tx.exec(ctx, sqlSetAuditHead, no, size, witnessed, checkpoint, tx.now)
	return err
}

// SetAuditAlarm notes what is wrong with a log. An earlier alarm stays.
func (tx *Tx) SetAuditAlarm(ctx context.Context, no int32, alarm string) error {
	_, err := tx.exec(ctx, sqlSetAuditAlarm, no, alarm)
	return err
}

// AuditTiles returns those of the tiles that exist; Hashes of want is ignored.
func (tx *Tx) AuditTiles(ctx context.Context, log int32, want []AuditTile) ([]AuditTile, error) {
	levels, ns := make([]int32, len(want)), make([]int64, len(want))
	for i, t := range want {
		levels[i], ns[i] = t.Level, t.N
	}
	return all(ctx, tx, func(row pgx.CollectableRow) (AuditTile, error) {
		var t AuditTile
		err := row.Scan(&t.Level, &t.N, &t.Hashes)
		return t, err
	}, sqlAuditTiles, log, levels, ns)
}

// PutAuditTiles writes tiles, new ones and longer ones.
func (tx *Tx) PutAuditTiles(ctx context.Context, log int32, tiles []AuditTile) error {
	levels, ns, hashes := make([]int32, len(tiles)), make([]int64, len(tiles)), make([][]byte, len(tiles))
	for i, t := range tiles {
		levels[i], ns[i], hashes[i] = t.Level, t.N, t.Hashes
	}
	_, err := tx.exec(ctx, sqlPutAuditTiles, log, levels, ns, hashes)
	return err
}

// InsertAuditRecords stores records of one log, each below its tenant. A record that is there already stays as it is.
// Other deliveries wait until this transaction ends.
func (tx *Tx) InsertAuditRecords(ctx context.Context, log int32, recs []AuditRecord) error {
	if _, err := tx.exec(ctx, sqlLockReceived); err != nil {
		return err
	}
	byTenant := map[controlplane.TenantID]*auditColumns{}
	var order []controlplane.TenantID
	for _, r := range recs {
		c := byTenant[r.Tenant]
		if c == nil {
			c = &auditColumns{}
			byTenant[r.Tenant] = c
			order = append(order, r.Tenant)
		}
		c.add(r)
	}
	for _, tenant := range order {
		if _, err := tx.exec(ctx, sqlSetTenant, tenant); err != nil {
			return err
		}
		c := byTenant[tenant]
		_, err := tx.exec(ctx, sqlInsertAuditRecord, log, tenant, tx.now, c.idx, c.id, c.intent, c.at, c.kind, c.decision,
			c.reason, c.principal, c.server, c.target, c.leaf)
		if err != nil {
			return err
		}
	}
	_, err := tx.exec(ctx, sqlSetTenant, tx.tenant)
	return err
}

// auditColumns are records turned on their side, as unnest wants them.
type auditColumns struct {
	idx                                           []int64
	id, intent, reason, principal, server, target []string
	at                                            []time.Time
	kind, decision                                []int32
	leaf                                          [][]byte
}

func (c *auditColumns) add(r AuditRecord) {
	c.idx, c.id, c.intent = append(c.idx, r.Index), append(c.id, r.ID), append(c.intent, r.IntentID)
	c.at, c.kind, c.decision = append(c.at, r.At.UTC()), append(c.kind, r.Kind), append(c.decision, r.Decision)
	c.reason, c.principal = append(c.reason, r.Reason), append(c.principal, r.Principal)
	c.server, c.target, c.leaf = append(c.server, r.Server), append(c.target, r.Target), append(c.leaf, r.Leaf)
}

// SearchAudit lists the tenant's records that fit, oldest first.
func (tx *Tx) SearchAudit(ctx context.Context, q AuditQuery) ([]AuditRecord, error) {
	sql := sqlAuditNewest
	if q.After > 0 {
		sql = sqlAuditAfter
	}
	return all(ctx, tx, scanAuditRecord, sql,
		tx.tenant, q.Principal, q.Server, q.Target, q.Decision, q.Since, q.After, q.Limit)
}

// AuditDecision lists the tenant's records with one of the ids, and those that name one as their intent.
func (tx *Tx) AuditDecision(ctx context.Context, ids ...string) ([]AuditRecord, error) {
	return all(ctx, tx, scanAuditRecord, sqlAuditDecision, tx.tenant, ids)
}

// AuditLeaves lists the leaves [first, end) of a log in order. Outside a platform transaction, other tenants' are left out.
func (tx *Tx) AuditLeaves(ctx context.Context, log int32, first, end int64) ([][]byte, error) {
	return all(ctx, tx, scanValue[[]byte], sqlAuditLeaves, log, first, end)
}

func scanAuditLog(row pgx.CollectableRow) (AuditLog, error) {
	var l AuditLog
	var at *time.Time
	err := row.Scan(&l.No, &l.ID, &l.Cell, &l.Node, &l.VerifierKey, &l.Size, &l.Witnessed, &l.Checkpoint, &at, &l.Alarm)
	l.WitnessedAt = timeOrZero(at)
	return l, err
}

func scanAuditRecord(row pgx.CollectableRow) (AuditRecord, error) {
	var r AuditRecord
	var tenant string
	err := row.Scan(&r.Log, &r.LogID, &r.Index, &tenant, &r.ID, &r.IntentID, &r.At, &r.Kind, &r.Decision, &r.Reason,
		&r.Principal, &r.Server, &r.Target, &r.Leaf, &r.Received, &r.ReceivedAt)
	r.Tenant, r.At, r.ReceivedAt = controlplane.TenantID(tenant), r.At.UTC(), r.ReceivedAt.UTC()
	return r, err
}
