package tlog_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/tlog"
)

func benchLog(b *testing.B) *tlog.Log {
	cfg := tlog.Config{Dir: b.TempDir(), Prefix: prefix, WriteTimeout: 10 * time.Second}
	l, _ := open(b, cfg)
	b.Cleanup(func() { _ = l.Close() })
	return l
}

// BenchmarkAppend is the cost that a read call pays. Every 5,000 records the disk is waited for outside of the clock, so
// that it is the append which is measured and not the disk.
func BenchmarkAppend(b *testing.B) {
	l := benchLog(b)
	rec := make([]byte, 400)
	b.ReportAllocs()
	b.SetBytes(int64(len(rec)))
	n := 0
	for b.Loop() {
		if _, err := l.Append(rec); err != nil {
			b.Fatal(err)
		}
		if n++; n%5000 == 0 {
			b.StopTimer()
			if err := l.Sync(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
}

// BenchmarkAppendUnderWay is the processor time of an append, its share of the writing and the syncing included, while 16
// calls are under way that do something else in between.
func BenchmarkAppendUnderWay(b *testing.B) {
	l := benchLog(b)
	rec := make([]byte, 400)
	var wg sync.WaitGroup
	work := make(chan struct{})
	for range 16 {
		wg.Go(func() {
			for range work {
				if _, err := l.Append(rec); err != nil {
					b.Error(err)
				}
				time.Sleep(500 * time.Microsecond)
			}
		})
	}
	before := cpuTime()
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
}

func BenchmarkCommit256(b *testing.B) {
	l := benchLog(b)
	rec := make([]byte, 400)
	b.ReportAllocs()
	var wg sync.WaitGroup
	work := make(chan struct{}, 1024)
	for range 256 {
		wg.Go(func() {
			for range work {
				if _, err := l.Commit(context.Background(), rec); err != nil {
					b.Error(err)
				}
			}
		})
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "durable/s")
}
