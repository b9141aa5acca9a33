package catalog

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

const (
	// othersLimit is by how much calls of other servers may be slower at the 99th percentile while one is slow, as a factor, and
	// othersSlack what is no difference on any machine.
	othersLimit = 1.2
	othersSlack = 2 * time.Millisecond
	// rounds of a server that is well and one that is slow, in turn, so that what else the machine does is in both.
	rounds = 4
	// callers ask the slow server at once, each again after a pause.
	callers, between = 24, 500 * time.Millisecond
	// slowServer is the one that is made slow, and slowTool what is called there.
	slowServer, slowTool = "demo", "echo"
)

func slowUpstream() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "slow-upstream",
		Breaks: "lets one MCP server answer five seconds late while two dozen callers ask it, in turns with rounds in which it is quick",
		Blast:  "callers of that server wait or are told that it does not answer; callers of others notice nothing",
		Lost:   "an MCP server: slow or dead", Works: "every other server, as quick as before", Until: "no limit",
		Recovers: "the server's tools can be called again, from when it is quick",
		Needs:    []rehearse.Need{rehearse.Faults},
		Flags:    append(faults(), "--no-demo=false"),
		Limits:   rehearse.Limits{RTO: upstreamLimit},
		Break:    func(context.Context, *rehearse.Run) error { return nil },
		Observe:  slowAndQuick,
		Mend: func(ctx context.Context, r *rehearse.Run) error {
			if err := r.Site.ClearFaults(ctx); err != nil {
				return err
			}
			r.Recovering()
			if err := r.Until(ctx, 4*upstreamLimit, slowServer+" can be called", func(ctx context.Context) bool { return r.Other(ctx, slowServer, slowTool) == "" }); err != nil {
				return err
			}
			r.Recovered()
			return nil
		},
	}
}

// upstreamLimit is how long a server that is quick again may be refused: a breaker tries it every five seconds.
const upstreamLimit = 10 * time.Second

// slowAndQuick lets the server be quick and slow in turn, under the same calls, and compares what others' callers notice.
func slowAndQuick(ctx context.Context, r *rehearse.Run) error {
	var slow, quick []rehearse.Window
	var answered, refused atomic.Int64
	calling, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	// In all as long as a drill is broken, half of it quick and half of it slow.
	roundFor := max(r.For/2/rounds/2, 250*time.Millisecond)
	for range callers {
		wg.Go(func() {
			for calling.Err() == nil {
				if r.Other(calling, slowServer, slowTool) == "" {
					answered.Add(1)
				} else {
					refused.Add(1)
				}
				// As many calls whether it is quick or not: what is compared is the waiting, not the work.
				select {
				case <-calling.Done():
				case <-time.After(between):
				}
			}
		})
	}
	for range rounds {
		for _, isSlow := range []bool{false, true} {
			if err := setSlow(ctx, r, isSlow); err != nil {
				return err
			}
			w := rehearse.Window{From: time.Now(), Until: time.Now().Add(roundFor)}
			if isSlow {
				slow = append(slow, w)
			} else {
				quick = append(quick, w)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(roundFor):
			}
		}
	}
	with, without := r.P99(slow), r.P99(quick)
	r.Fact("others_p99_ms_while_slow", float64(with.Microseconds())/1000)
	r.Fact("others_p99_ms_while_quick", float64(without.Microseconds())/1000)
	r.Fact("others_p99_ratio", float64(with)/float64(max(1, without)))
	r.Fact("slow_server_answered", float64(answered.Load()))
	r.Fact("slow_server_refused", float64(refused.Load()))
	if with-without > othersSlack && float64(with) > othersLimit*float64(without) {
		r.Fail("others' 99th percentile stays below %.1f times what it was: %s, and %s while the server is quick", othersLimit, with, without)
	}
	return nil
}

func setSlow(ctx context.Context, r *rehearse.Run, slow bool) error {
	if !slow {
		return r.Site.ClearFaults(ctx)
	}
	return r.Site.SetFault(ctx, "upstream "+slowServer+" slow 5s")
}
