package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/migrations"
)

// Migrate brings the schema up to this program's, as the owner that the URL names. Several migrators at once are safe:
// one does the work, under a lock of the session, and the others find it done.
func Migrate(ctx context.Context, url string, log *slog.Logger) error {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return badURL(err)
	}
	db := stdlib.OpenDB(*cfg)
	defer func() { _ = db.Close() }()
	if err := db.PingContext(ctx); err != nil {
		return translate(ctx, fmt.Errorf("migrate: %w", err))
	}
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 60))
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, migrations.FS,
		goose.WithSessionLocker(locker), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	done, err := provider.Up(ctx)
	for _, r := range done {
		log.InfoContext(ctx, "schema migrated", "version", r.Source.Version, "file", r.Source.Path, "duration", r.Duration)
	}
	if err != nil {
		return translate(ctx, mayNot(fmt.Errorf("migrate: %w", err)))
	}
	return nil
}

// mayNot says what the role of the URL lacks.
func mayNot(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "42501" {
		return err
	}
	return problem.New(problem.Denied, "the database role may not set up the schema: "+pg.Message,
		"connect as the database's owner, with CREATEROLE or after CREATE ROLE mcpvault_app; GRANT mcpvault_app TO that owner").Because(err)
}
