package run_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mcpvault/mcpvault/kit/run"
)

func TestEveryCallsAtEachIntervalUntilTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3500*time.Millisecond)
		defer cancel()
		began, calls := time.Now(), 0
		err := run.Every(ctx, time.Second, func(context.Context) {
			calls++
			if since := time.Since(began); since != time.Duration(calls)*time.Second {
				t.Errorf("call %d came after %s", calls, since)
			}
		})
		if err != nil || calls != 3 {
			t.Errorf("%d calls, %v", calls, err)
		}
	})
}
