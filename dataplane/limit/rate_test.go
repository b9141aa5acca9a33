package limit_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/limit"
)

func alone(c *clock) *limit.Limiter { return limit.New(limit.Config{Now: c.Now}) }

func TestABurstPassesAndThenTheRateHolds(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := alone(c)
	r := &limit.Rate{Requests: 10, Per: time.Second, Burst: 5}
	for i := range 5 {
		if v := l.Take(tenantKey(), r); !v.OK || v.Left != int64(4-i) {
			t.Fatalf("request %d of the burst: %+v", i, v)
		}
	}
	v := l.Take(tenantKey(), r)
	if v.OK || v.Wait <= 99*time.Millisecond || v.Wait > 101*time.Millisecond {
		t.Fatalf("beyond the burst: %+v", v)
	}
	c.add(v.Wait - time.Millisecond)
	if l.Take(tenantKey(), r).OK {
		t.Fatal("a request passed before it was said to")
	}
	c.add(time.Millisecond)
	if !l.Take(tenantKey(), r).OK {
		t.Fatal("the wait that was told was too short")
	}
	c.add(time.Hour)
	passed := 0
	for l.Take(tenantKey(), r).OK {
		passed++
	}
	if passed != 5 {
		t.Fatalf("after an hour %d pass at once: more than the burst was saved up", passed)
	}
}

func TestARateOfOneInADayHolds(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := alone(c)
	r := &limit.Rate{Requests: 1, Per: 24 * time.Hour, Burst: 1}
	passed := 0
	for range 10 * 24 * 60 {
		if l.Take(tenantKey(), r).OK {
			passed++
		}
		c.add(time.Minute)
	}
	if passed != 10 {
		t.Fatalf("%d in ten days", passed)
	}
}

func TestOthersBucketsAreOthers(t *testing.T) {
	t.Parallel()
	l := alone(newClock())
	r := &limit.Rate{Requests: 1, Per: time.Second, Burst: 1}
	for _, k := range []limit.Key{
		{Tenant: "a", Scope: limit.Principal, Name: "alice"},
		{Tenant: "a", Scope: limit.Principal, Name: "bob"},
		{Tenant: "b", Scope: limit.Principal, Name: "alice"},
		{Tenant: "a", Scope: limit.Server, Name: "alice"},
		{Tenant: "a", Scope: limit.Tool, Name: "alice", Item: "x"},
		{Tenant: "a", Scope: limit.Tenant},
	} {
		if !l.Take(k, r).OK || l.Take(k, r).OK {
			t.Errorf("%+v does not have a bucket of its own", k)
		}
	}
}

func TestAnotherRateHoldsAtOnceAndCreatesNothing(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := alone(c)
	small, large := &limit.Rate{Requests: 1, Per: time.Second, Burst: 2}, &limit.Rate{Requests: 100, Per: time.Second, Burst: 50}
	for range 3 {
		l.Take(tenantKey(), small)
	}
	if l.Take(tenantKey(), large).OK {
		t.Fatal("a raised limit filled the bucket")
	}
	c.add(100 * time.Millisecond)
	passed := 0
	for l.Take(tenantKey(), large).OK {
		passed++
	}
	if passed != 10 {
		t.Fatalf("%d passed 100 ms after the rate became 100 a second", passed)
	}
	c.add(time.Minute)
	l.Take(tenantKey(), large)
	if v := l.Take(tenantKey(), small); v.Left > 1 {
		t.Fatalf("a lowered burst left %d", v.Left)
	}
}

func TestManyCallersAtOnceGetNoMoreThanThereIs(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := alone(c)
	r := &limit.Rate{Requests: 1, Per: time.Hour, Burst: 1000}
	var passed atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if l.Take(tenantKey(), r).OK {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if passed.Load() != 1000 {
		t.Fatalf("%d of a burst of 1000 passed", passed.Load())
	}
}

func TestMemoryIsBoundedAndIdleBucketsGo(t *testing.T) {
	t.Parallel()
	c := newClock()
	l := limit.New(limit.Config{Now: c.Now, MaxBuckets: 100})
	r := &limit.Rate{Requests: 10, Per: time.Second, Burst: 10}
	passed := 0
	for i := range 100_000 {
		if l.Take(limit.Key{Tenant: "a", Scope: limit.Principal, Name: fmt.Sprint(i)}, r).OK {
			passed++
		}
	}
	if n := l.Buckets(); n > 101 {
		t.Fatalf("%d buckets, the bound is 100 and the one for all others", n)
	}
	if passed != 100+10 {
		t.Fatalf("%d passed: whoever found no room must share one bucket, neither shut out nor let in", passed)
	}
	for range 200 {
		c.add(time.Second)
		l.Exchange(t.Context(), nil)
	}
	if n := l.Buckets(); n != 0 {
		t.Fatalf("%d buckets are left after minutes without a request", n)
	}
	if k := (limit.Key{Tenant: "a", Scope: limit.Principal, Name: "new"}); !l.Take(k, r).OK {
		t.Fatal("there is room again, but not for a newcomer")
	}
}

func TestAPlanKnowsTheNarrowerName(t *testing.T) {
	t.Parallel()
	var none *limit.Plan
	if none.Rate(limit.Tenant, "", "") != nil {
		t.Fatal("no plan limits nothing")
	}
	p := &limit.Plan{}
	all, one := limit.Rate{Requests: 5, Per: time.Second, Burst: 5}, limit.Rate{Requests: 1, Per: time.Minute, Burst: 1}
	if err := p.Set(limit.Tool, "", "", all); err != nil {
		t.Fatal(err)
	}
	if err := p.Set(limit.Tool, "pay", "refund", one); err != nil {
		t.Fatal(err)
	}
	if *p.Rate(limit.Tool, "pay", "refund") != one || *p.Rate(limit.Tool, "pay", "balance") != all || p.Rate(limit.Server, "pay", "") != nil {
		t.Fatal("the wrong rate was found")
	}
	for _, bad := range []limit.Rate{{}, {Requests: 1, Per: time.Millisecond, Burst: 1}, {Requests: 1 << 40, Per: time.Second, Burst: 1}, {Requests: 1, Per: time.Second}} {
		if p.Set(limit.Tenant, "", "", bad) == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	for _, s := range []limit.Scope{limit.Principal, limit.Tenant, limit.Tool, limit.Server, limit.Discover, limit.Resume} {
		if back, ok := limit.ParseScope(s.String()); !ok || back != s {
			t.Errorf("%s is not read as it is written", s)
		}
	}
}

func TestARequestWithinItsLimitsAllocatesNothing(t *testing.T) {
	l := limit.New(limit.Config{})
	r := &limit.Rate{Requests: 1_000_000, Per: time.Second, Burst: 1_000_000}
	k := limit.Key{Tenant: "acme", Scope: limit.Principal, Name: "alice"}
	l.Take(k, r)
	if n := testing.AllocsPerRun(1000, func() { l.Take(k, r) }); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// BenchmarkTake is the decision of one limit, with the clock's reading: by one caller, by many on one bucket, and by many
// with buckets of their own. p50 and p99 are of batches of 16, divided.
func BenchmarkTake(b *testing.B) {
	r := &limit.Rate{Requests: 1_000_000, Per: time.Second, Burst: 1_000_000}
	b.Run("alone", func(b *testing.B) {
		l := limit.New(limit.Config{})
		k := limit.Key{Tenant: "acme", Scope: limit.Principal, Name: "alice"}
		l.Take(k, r)
		took := make([]time.Duration, 0, 1<<20)
		b.ReportAllocs()
		for b.Loop() {
			began := time.Now()
			for range 16 {
				l.Take(k, r)
			}
			if len(took) < cap(took) {
				took = append(took, time.Since(began)/16)
			}
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2]), "p50-ns")
		b.ReportMetric(float64(took[len(took)*99/100]), "p99-ns")
	})
	for _, shared := range []bool{true, false} {
		b.Run(fmt.Sprintf("parallel/shared=%t", shared), func(b *testing.B) {
			l := limit.New(limit.Config{})
			var n atomic.Int64
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				k := limit.Key{Tenant: "acme", Scope: limit.Principal, Name: "alice"}
				if !shared {
					k.Name = fmt.Sprint(n.Add(1))
				}
				for pb.Next() {
					l.Take(k, r)
				}
			})
		})
	}
}
