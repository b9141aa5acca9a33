package shrink

import (
	"context"
	"runtime/debug"
	"testing"
	"time"
)

func TestMemoryIsGivenBackWhenItIsQuietAndWorthIt(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	for name, tc := range map[string]struct {
		before, now sample
		due         bool
	}{
		"garbage":                      {sample{allocated: 100 * mb}, sample{100 * mb, 10 * mb, 14 * mb, 0}, true},
		"free memory":                  {sample{allocated: 100 * mb}, sample{100 * mb, 10 * mb, 10 * mb, 4 * mb}, true},
		"both together":                {sample{allocated: 100 * mb}, sample{100 * mb, 10 * mb, 11 * mb, 1 * mb}, true},
		"at work":                      {sample{allocated: 100 * mb}, sample{102 * mb, 10 * mb, 14 * mb, 4 * mb}, false},
		"a little":                     {sample{allocated: 100 * mb}, sample{100 * mb, 10 * mb, 11 * mb, 0}, false},
		"a little beside a large heap": {sample{allocated: 100 * mb}, sample{100 * mb, 80 * mb, 85 * mb, 2 * mb}, false},
		"much beside a large heap":     {sample{allocated: 100 * mb}, sample{100 * mb, 80 * mb, 95 * mb, 0}, true},
		"more live than there is":      {sample{}, sample{0, 10 * mb, 9 * mb, 0}, false},
	} {
		if got := tc.now.due(tc.before); got != tc.due {
			t.Errorf("%s: %t", name, got)
		}
	}
}

var sink []byte

//nolint:paralleltest // others would allocate
func TestAQuietProcessShrinks(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // so that nobody else collects
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- Run(ctx) }()
	for range 64 {
		sink = make([]byte, 1<<20)
		for i := 0; i < len(sink); i += 4096 {
			sink[i] = 1
		}
	}
	sink = nil
	s := newSampler()
	held := func() uint64 { now := s.read(); return now.objects + now.free }
	deadline := time.Now().Add(30 * time.Second)
	for held() > 16<<20 {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are still held", held())
		}
		time.Sleep(50 * time.Millisecond) // the process has to be quiet
	}
	stop()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
}
