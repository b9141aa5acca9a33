package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// ErrNotFound is in the chain of every not_found problem of this package.
var ErrNotFound = errors.New("store: no such row")

// ErrDuplicate is in the chain of a conflict problem that a unique constraint made.
var ErrDuplicate = errors.New("store: duplicate")

func isNoRows(err error) bool { return errors.Is(err, pgx.ErrNoRows) }

// translate makes a problem of what PostgreSQL or the network said; errors that are neither stay as they are.
func translate(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := problem.As(err); ok {
		return err
	}
	if ctx.Err() != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return problem.New(problem.Timeout, "PostgreSQL did not answer in time", "try again; if it goes on, look at its load and locks").Because(err)
		}
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	if isGone(err) {
		return gone(err)
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return translatePg(err, pg)
	}
	if isNoRows(err) {
		return problem.New(problem.NotFound, "no such row", "").Because(errors.Join(ErrNotFound, err))
	}
	return err
}

func translatePg(err error, pg *pgconn.PgError) error {
	switch {
	case pg.Code == "23505":
		return problem.Newf(problem.Conflict, "choose another name", "a %s with this name already exists", noun(pg.TableName)).
			Because(errors.Join(ErrDuplicate, err))
	case pg.Code == "23503":
		return problem.Newf(problem.Invalid, "", "the %s refers to something that does not exist, or is still referred to", noun(pg.TableName)).Because(err)
	case pg.Code == "23514" && strings.HasSuffix(pg.ConstraintName, "_no_cycle"):
		return problem.New(problem.Invalid, pg.Message, "choose another one above it").Because(err)
	case pg.Code == "23514":
		return problem.Newf(problem.Invalid, "", "a value of the %s is outside what is allowed (%s)", noun(pg.TableName), pg.ConstraintName).Because(err)
	case isRetryable(err):
		return problem.New(problem.Conflict, "other writes stood in the way too often", "try again").Because(err)
	case pg.Code == "57014" || pg.Code == "55P03":
		return problem.New(problem.Timeout, "PostgreSQL did not answer in time", "try again; if it goes on, look at its load and locks").Because(err)
	case pg.Code == "53100":
		return problem.New(problem.Unavailable, "PostgreSQL's disk is full", "make room on it; nothing of the change was saved").Because(err)
	case pg.Code == "42501" && strings.Contains(pg.Message, appRole):
		return problem.New(problem.Denied, "the database role may not become "+appRole, "GRANT "+appRole+" TO the role in the database URL").Because(err)
	case pg.Code == "25006":
		return problem.New(problem.Unavailable, "PostgreSQL is read-only", "point the database URL at the primary").Because(err)
	}
	return err
}

func gone(cause error) error {
	return problem.New(problem.Unavailable, "PostgreSQL is not reachable",
		"start it, or check the database URL; cells go on serving meanwhile").Because(cause)
}

func badURL(cause error) error {
	// The parser's own words may hold the password.
	var parse *pgconn.ParseConfigError
	if errors.As(cause, &parse) {
		return problem.New(problem.Invalid, "the database URL is not one that PostgreSQL's clients understand", "write it as postgres://USER@HOST:PORT/NAME")
	}
	return cause
}

// isRetryable reports a serialization failure or a deadlock: trying again may help.
func isRetryable(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

// isGone reports that the connection was lost, or never made.
func isGone(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		// 57P01-57P05: stopped, crashed, starting up, database dropped, idle session ended. 53300: too many connections.
		return strings.HasPrefix(pg.Code, "08") || strings.HasPrefix(pg.Code, "57P") || pg.Code == "53300"
	}
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, puddle.ErrClosedPool)
}

// noun is what a person calls a row of the table.
func noun(table string) string {
	switch table {
	case "tenant_hosts":
		return "tenant with this host or a host"
	case "":
		return "row"
	}
	return strings.ReplaceAll(strings.TrimSuffix(table, "s"), "_", " ")
}
