package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// listenRetry is how long a lost listener waits before it connects again.
const listenRetry = 500 * time.Millisecond

// Listen gives the payloads of a channel until the context ends; then it closes the Go channel, and nothing runs on.
//
// A notification is a hint and may be lost: whenever the connection was made anew, and once at the start, "" is given,
// which means "look for yourself". A reader that falls far behind is given "" as well, in place of the payloads it missed.
func (s *Store) Listen(ctx context.Context, channel string) <-chan string {
	out := make(chan string, 256)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			err := s.listenOnce(ctx, channel, out)
			if ctx.Err() != nil {
				return
			}
			s.log.WarnContext(ctx, "notifications interrupted", "channel", channel, "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(listenRetry):
			}
		}
	}()
	return out
}

func (s *Store) listenOnce(ctx context.Context, channel string, out chan string) error {
	cfg, err := pgx.ParseConfig(s.cfg.URL)
	if err != nil {
		return badURL(err)
	}
	cfg.ConnectTimeout, cfg.DialFunc = connectLimit, dial
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return translate(ctx, err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, "SET ROLE "+appRole); err != nil {
		return translate(ctx, err)
	}
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
		return translate(ctx, err)
	}
	hint(out, "")
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return problem.New(problem.Unavailable, "the connection that listens was lost", "").Because(err)
		}
		hint(out, n.Payload)
	}
}

// hint never blocks. A reader that is that far behind has lost count, so one of its hints becomes "look for yourself".
func hint(out chan string, payload string) {
	select {
	case out <- payload:
		return
	default:
	}
	select {
	case <-out:
	default:
	}
	out <- ""
}
