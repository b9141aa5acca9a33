// Package store keeps the control plane's rows in PostgreSQL; it holds the only SQL in the house.
//
// It promises that an admin write is one transaction (rows, ledger entry and outbox row together, or nothing), that a
// transaction sees one tenant's rows only, whatever its queries say, and that PostgreSQL's failures come back as problems
// that a person can act on. Rules about what may be written are left to the rooms above.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Config says which database, and how to use it.
type Config struct {
	// URL is a PostgreSQL connection string of a role that may create tables and the role mcpvault_app.
	URL    string
	Logger *slog.Logger
	// MaxConns bounds the pool; 0 means 10.
	MaxConns int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Store is a pool of connections that work as mcpvault_app. It is safe for concurrent use.
type Store struct {
	cfg  Config
	pool *pgxpool.Pool
	log  *slog.Logger
	now  func() time.Time
}

// OutboxChannel is notified with the tenant's id when an admin write commits: a hint, the outbox is the truth.
const OutboxChannel = "mcpvault_outbox"

// appRole owns no table, so that row-level security holds for it.
const appRole = "mcpvault_app"

// attempts bounds how often a transaction is tried when PostgreSQL says that trying again may help.
const attempts = 4

// ErrNoChange is returned by the function given to Write when it found nothing to do: the transaction is rolled back
// and Write returns the tenant's present revision.
var ErrNoChange = errors.New("store: nothing to change")

// errSilentWrite is a bug in the caller: each write says in the ledger what it did.
var errSilentWrite = errors.New("store: a write made no ledger entry")

// Open migrates the schema and opens the pool. Close it when everything that uses it has ended.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = 10
	}
	if err := Migrate(ctx, cfg.URL, cfg.Logger); err != nil {
		return nil, err
	}
	pool, err := openPool(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &Store{cfg: cfg, pool: pool, log: cfg.Logger, now: cfg.Now}, nil
}

const connectLimit = 5 * time.Second

// dial makes connections that notice within seconds that PostgreSQL's machine is gone without a word: one that waits for a
// notification would else wait for hours.
func dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 3}}
	return d.DialContext(ctx, network, address)
}

func openPool(ctx context.Context, cfg Config) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, badURL(err)
	}
	pc.MaxConns = int32(min(cfg.MaxConns, 1000))
	pc.MaxConnIdleTime = 5 * time.Minute
	pc.ConnConfig.ConnectTimeout = connectLimit
	pc.ConnConfig.DialFunc = dial
	params := pc.ConnConfig.RuntimeParams
	params["application_name"] = "mcpvault-controlplane"
	// A client that hangs must not hold a tenant's row for ever.
	params["idle_in_transaction_session_timeout"] = "30000"
	params["timezone"] = "UTC"
	pc.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		_, err := c.Exec(ctx, "SET ROLE "+appRole)
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, translate(ctx, err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, translate(ctx, err)
	}
	return pool, nil
}

// Close waits until every connection is given back.
func (s *Store) Close() { s.pool.Close() }

// Ping asks whether PostgreSQL answers. The error is a problem.
func (s *Store) Ping(ctx context.Context) error { return translate(ctx, s.pool.Ping(ctx)) }

// Write runs fn in the transaction of one admin write of a tenant: the revision goes up by one, fn writes rows and says
// with Tx.Change what it did, the outbox row goes in, and everything commits together. Writes of one tenant are in one
// order. It returns the new revision.
//
// fn may be run more than once, each time in a transaction of its own, and must do nothing that a rollback does not undo.
// A write without a Change is an error. The errors are problems: unavailable when PostgreSQL is gone, conflict for a
// duplicate or when other writes stood in the way too long, not_found when there is no such tenant.
func (s *Store) Write(ctx context.Context, tenant controlplane.TenantID, actor string, fn func(*Tx) error) (revision uint64, err error) {
	return s.write(ctx, tenant, actor, fn, func(tx *Tx) error { return tx.bumpRevision(ctx) })
}

// write is Write with the deed that makes or moves the tenant's row.
func (s *Store) write(ctx context.Context, tenant controlplane.TenantID, actor string, fn, bump func(*Tx) error) (revision uint64, err error) {
	err = s.run(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, scope{tenant: tenant}, func(tx *Tx) error {
		tx.actor, tx.kind = actor, OutboxPolicy
		if err := bump(tx); err != nil {
			return err
		}
		revision = tx.revision
		if err := fn(tx); err != nil {
			return err
		}
		if tx.changes == 0 {
			return errSilentWrite
		}
		return tx.announce(ctx)
	})
	if errors.Is(err, ErrNoChange) {
		return revision - 1, nil
	}
	if err != nil {
		return 0, err
	}
	return revision, nil
}

// Record runs fn in a transaction of one tenant that is not an admin write: no revision, no ledger entry, no outbox row.
// It is for what the system notes down by itself: generations, acknowledgements, finished outbox rows.
func (s *Store) Record(ctx context.Context, tenant controlplane.TenantID, fn func(*Tx) error) error {
	return s.run(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, scope{tenant: tenant}, fn)
}

// Read runs fn on one consistent view of a tenant's rows. fn may be run more than once.
func (s *Store) Read(ctx context.Context, tenant controlplane.TenantID, fn func(*Tx) error) error {
	return s.run(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, scope{tenant: tenant}, fn)
}

// Platform runs fn in a transaction of no tenant, that sees the rows of all tenants in tenants, tenant_hosts, outbox and
// cell_tenants, and none in any other table that belongs to tenants.
func (s *Store) Platform(ctx context.Context, fn func(*Tx) error) error {
	return s.run(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, scope{platform: true}, fn)
}

// run tries the transaction until it commits, fails for good, or was tried often enough. What happened before COMMIT was
// sent can always be tried again, because nothing of it was kept.
func (s *Store) run(ctx context.Context, opts pgx.TxOptions, sc scope, fn func(*Tx) error) error {
	var err error
	for range attempts {
		var sent bool
		sent, err = s.once(ctx, opts, sc, fn)
		switch {
		case err == nil:
			return nil
		case sent && (isGone(err) || ctx.Err() != nil):
			return commitUnknown(err)
		case ctx.Err() != nil || !(isRetryable(err) || isGone(err)):
			return translate(ctx, err)
		}
	}
	return translate(ctx, err)
}

// once reports whether COMMIT was sent: from then on only PostgreSQL knows whether it happened.
func (s *Store) once(ctx context.Context, opts pgx.TxOptions, sc scope, fn func(*Tx) error) (sent bool, err error) {
	ptx, err := s.pool.BeginTx(ctx, opts)
	if err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	// A rollback that fails closes the connection, which PostgreSQL takes for a rollback.
	defer func() { _ = ptx.Rollback(context.WithoutCancel(ctx)) }()
	tx := &Tx{tx: ptx, tenant: sc.tenant, now: s.now().UTC().Truncate(time.Millisecond)}
	if _, err := ptx.Exec(ctx, sqlScope, string(sc.tenant), sc.platformSetting()); err != nil {
		return false, fmt.Errorf("set scope: %w", err)
	}
	if err := fn(tx); err != nil {
		return false, err
	}
	if opts.AccessMode == pgx.ReadOnly {
		return false, nil
	}
	if err := ptx.Commit(ctx); err != nil {
		return true, fmt.Errorf("commit: %w", err)
	}
	return true, nil
}

// scope is what a transaction may see.
type scope struct {
	tenant   controlplane.TenantID
	platform bool
}

func (s scope) platformSetting() string {
	if s.platform {
		return "on"
	}
	return "off"
}

const sqlScope = `SELECT set_config('mcpvault.tenant', $1, true), set_config('mcpvault.platform', $2, true)`

// commitUnknown is the one failure after which nobody here knows what PostgreSQL did. It did all or nothing.
func commitUnknown(cause error) error {
	return problem.New(problem.Unavailable,
		"PostgreSQL did not confirm the change that was being committed, so that it is either saved in full or not at all",
		"look at the newest entries of `mcpvault audit changes`, and repeat the command if yours is not there").Because(cause)
}
