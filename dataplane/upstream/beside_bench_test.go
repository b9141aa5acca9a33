package upstream_test

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
)

// BenchmarkBesideTheZoo measures what calls of a healthy server notice of the zoo, whose animals are each visited five times a
// second through the same client: the p99 beside it over the p99 alone, in turns. It is to be under 1.2. The animals live
// in this process, and their own work counts with it.
func BenchmarkBesideTheZoo(b *testing.B) {
	healthy := newRaw(b, func(c net.Conn, _ *http.Request, _ string) bool { return say(c, okAnswer) })
	c := client(upstream.Config{MaxAnswer: 1 << 20, MaxEvent: 1 << 20})
	defer c.Close()
	animals := zoo()
	urls := make([]string, len(animals))
	for i, a := range animals {
		urls[i] = a.cage(b)
	}
	// Until its breakers know them.
	for range 6 {
		var wg sync.WaitGroup
		for i, a := range animals {
			wg.Go(func() { _ = a.visit(b.Context(), c, urls[i]) })
		}
		wg.Wait()
	}
	call := func() time.Duration {
		began := time.Now()
		resp, err := c.Do(b.Context(), post(healthy.url, "{}"))
		if err != nil {
			b.Fatal(err)
		}
		resp.Close()
		return time.Since(began)
	}
	round := func(n int) []time.Duration {
		took := make([]time.Duration, n)
		for i := range took {
			took[i] = call()
		}
		return took
	}
	const each = 2000
	var alone, beside []time.Duration
	for b.Loop() {
		alone = append(alone, round(each)...)
		ctx, stop := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		for i, a := range animals {
			wg.Go(func() {
				select { // not all at one moment
				case <-ctx.Done():
				case <-time.After(time.Duration(i) * 200 * time.Millisecond / time.Duration(len(animals))):
				}
				for ctx.Err() == nil {
					_ = a.visit(ctx, c, urls[i])
					select {
					case <-ctx.Done():
					case <-time.After(200 * time.Millisecond):
					}
				}
			})
		}
		beside = append(beside, round(each)...)
		stop()
		wg.Wait()
	}
	p99 := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)*99/100])
	}
	b.ReportMetric(p99(beside)/p99(alone), "p99_ratio")
	b.ReportMetric(p99(alone)/1e3, "p99_us_alone")
	b.ReportMetric(p99(beside)/1e3, "p99_us_beside")
}
