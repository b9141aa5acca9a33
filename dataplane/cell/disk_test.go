package cell

import (
	"log/slog"
	"slices"
	"testing"
	"time"
)

func TestADiskThatHangsForTooLongEndsTheProcessWith74(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limit, hung time.Duration
		want        []int
	}{
		"it works":             {0, 0, nil},
		"a slow write":         {0, 3 * time.Second, nil},
		"the usual limit":      {0, 20*time.Second + 1, []int{74}},
		"a limit of one's own": {time.Minute, 59 * time.Second, nil},
		"beyond it":            {time.Minute, 61 * time.Second, []int{74}},
	} {
		var codes []int
		n := &Node{log: slog.New(slog.DiscardHandler), cfg: Config{DiskHangLimit: c.limit}, exit: func(code int) { codes = append(codes, code) }}
		n.judgeDisk(c.hung)
		if !slices.Equal(codes, c.want) {
			t.Errorf("%s: ended with %v", name, codes)
		}
	}
}
