package cell

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/bench/load"
	"github.com/mcpvault/mcpvault/bench/measure"
)

// Revocation is how soon a right that was taken away is gone on every node, while the nodes hear the control plane late and
// somebody calls on each of them all the time.
type Revocation struct {
	Revocations int     `json:"revocations"`
	Nodes       int     `json:"nodes"`
	DelayMS     float64 `json:"delay_ms"`
	// From the commit to the last node's acknowledgement.
	P50 float64 `json:"p50_ms"`
	P99 float64 `json:"p99_ms"`
	Max float64 `json:"max_ms"`
	// Calls were made meanwhile; LateAllows of them were begun after their node had acknowledged, and allowed all the same.
	Calls      int `json:"calls"`
	LateAllows int `json:"late_allows"`
	// Deltas is how many of the generations were deltas.
	Deltas int `json:"deltas"`
}

// allowed is a call that was allowed, and when it was begun.
type allowed struct {
	node int
	at   time.Time
}

// Revocation grants and revokes n times. delay is what the installation was started with.
func (b *Bench) Revocation(ctx context.Context, n int, delay time.Duration) (*Revocation, error) {
	out := &Revocation{Revocations: n, Nodes: len(b.dev.PIDs.Nodes), DelayMS: float64(delay.Microseconds()) / 1000}
	var all []time.Duration
	for range n {
		if _, err := b.edit(ctx, "CreateGrant"); err != nil {
			return nil, err
		}
		stop := b.callAll(ctx)
		done, err := b.edit(ctx, "DeleteGrants")
		if err == nil {
			// Somebody who calls after the acknowledgement must be refused: a few calls are made for certain.
			time.Sleep(20 * time.Millisecond)
		}
		got, calls := stop()
		if err != nil {
			return nil, err
		}
		out.Calls += calls
		out.LateAllows += late(got, done.Acks)
		all = append(all, time.Duration(done.ElapsedMS*float64(time.Millisecond)))
	}
	var err error
	if out.Deltas, err = b.deltas(ctx, 2*n); err != nil {
		return nil, err
	}
	toMS := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	out.P50, out.P99, out.Max = toMS(measure.Percentile(all, 50)), toMS(measure.Percentile(all, 99)), toMS(measure.Percentile(all, 100))
	return out, nil
}

// edited is how far an edit got.
type edited struct {
	Complete  bool    `json:"complete"`
	ElapsedMS float64 `json:"elapsedMs"`
	Acks      []ack   `json:"acks"`
}

// ack is when a node said that the edit is in force there.
type ack struct {
	Node string `json:"node"`
	AtMS string `json:"atMs"`
}

// edit gives bob a tool, or takes it away, and waits until every node says so.
func (b *Bench) edit(ctx context.Context, verb string) (*edited, error) {
	admin := admin{url: b.dev.AdminURL, token: b.dev.AdminToken}
	var wrote struct {
		Revision string `json:"revision"`
	}
	body := map[string]any{"tenant": "acme", "subject": "user:bob", "target": "server:bench/t00", "effect": "GRANT_EFFECT_ALLOW"}
	if err := admin.call(ctx, "AccessService/"+verb, body, &wrote); err != nil {
		return nil, err
	}
	done := &edited{}
	wait := map[string]any{"tenant": "acme", "revision": wrote.Revision, "timeout": "10s"}
	if err := admin.call(ctx, "SnapshotService/WaitRevision", wait, done); err != nil {
		return nil, err
	}
	if !done.Complete {
		return nil, fmt.Errorf("%s did not reach every node within 10 s", verb)
	}
	return done, nil
}

// callEvery keeps the calls from taking the processor away from what is measured.
const callEvery = 20 * time.Millisecond

// callAll calls as bob on every node, one call after the other, until it is stopped.
func (b *Bench) callAll(ctx context.Context) (stop func() ([]allowed, int)) {
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	var got []allowed
	var calls atomic.Int64
	var wg sync.WaitGroup
	for i, url := range b.dev.MCPURLs {
		target := load.Target{URL: url + "/bench", Token: b.dev.Tokens["bob"], Tool: "t00"}
		wg.Go(func() {
			tick := time.NewTicker(callEvery)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				at := time.Now()
				calls.Add(1)
				if load.Once(ctx, target) != nil {
					continue
				}
				mu.Lock()
				got = append(got, allowed{i, at})
				mu.Unlock()
			}
		})
	}
	return func() ([]allowed, int) {
		cancel()
		wg.Wait()
		return got, int(calls.Load())
	}
}

// late counts the calls that were begun after their node's acknowledgement. An acknowledgement is dated in whole milliseconds:
// those within its own are not counted.
func late(got []allowed, acks []ack) (n int) {
	at := map[string]int64{}
	for _, a := range acks {
		at[a.Node], _ = strconv.ParseInt(a.AtMS, 10, 64)
	}
	for _, c := range got {
		if ms, ok := at[fmt.Sprintf("n%d", c.node+1)]; ok && c.at.UnixMilli() > ms {
			n++
		}
	}
	return n
}

// deltas counts the deltas among the newest generations.
func (b *Bench) deltas(ctx context.Context, limit int) (n int, err error) {
	var list struct {
		Generations []struct {
			Kind string `json:"kind"`
		} `json:"generations"`
	}
	in := map[string]any{"tenant": "acme", "limit": min(limit, 1000)}
	if err := (admin{url: b.dev.AdminURL, token: b.dev.AdminToken}).call(ctx, "SnapshotService/ListGenerations", in, &list); err != nil {
		return 0, err
	}
	for _, g := range list.Generations {
		if g.Kind == "delta" {
			n++
		}
	}
	return n, nil
}
