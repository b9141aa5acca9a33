package run

import (
	"context"
	"time"
)

// Every calls do each time that the interval has passed since the start, one call after the other, until ctx ends. A call
// that takes longer makes the next one late, not more frequent.
func Every(ctx context.Context, interval time.Duration, do func(context.Context)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			do(ctx)
		}
	}
}
