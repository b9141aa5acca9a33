package authz

import (
	"fmt"
	"log/slog"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	"github.com/mcpvault/mcpvault/dataplane/store"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/shard"
)

// run is a measurement under way.
type run struct {
	Config
	tenants int
	figures *Figures
	disk    *store.Store
	// heads name the shards on the disk.
	heads   []*snapshotv1.Head
	indexes []*index.Index
}

// compile makes the tenants and puts their shards on a cell's disk.
func (r *run) compile(dir string) (err error) {
	r.disk, err = store.Open(store.Config{Dir: dir, Key: store.Key{1}, Logger: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = r.disk.Close()
		}
	}()
	if err := r.compileOne(); err != nil {
		return err
	}
	n := max(r.tenants, r.Shards)
	r.heads = make([]*snapshotv1.Head, n)
	var took, used time.Duration
	for first := 0; first < n; first += runtime.GOMAXPROCS(0) {
		r.Note("compiling tenant %d of %d", first+1, n)
		batch := make([]compile.Input, min(n-first, runtime.GOMAXPROCS(0)))
		for i := range batch {
			if batch[i], err = Rows(first+i, r.Size); err != nil {
				return err
			}
			if first+i < r.tenants {
				r.figures.Grants += len(batch[i].Grants)
			}
		}
		outs := make([]*compile.Output, len(batch))
		runtime.GC() // the rows before are no part of what is measured
		before, begin := processor(), time.Now()
		err := parallel(len(batch), func(i int) (err error) {
			outs[i], err = compile.Compile(batch[i])
			return err
		})
		if err != nil {
			return err
		}
		took, used = took+time.Since(begin), used+processor()-before
		for i, out := range outs {
			if len(out.Report.Notes) > 0 {
				return fmt.Errorf("make the world: grant %s: %s", out.Report.Notes[0].Grant, out.Report.Notes[0].Problem)
			}
			r.heads[first+i] = &snapshotv1.Head{TenantId: string(batch[i].Tenant.ID), Shards: out.Shards}
			if err := r.disk.PutBlob(snapshot.DigestOf(out.Index), out.Index); err != nil {
				return err
			}
			r.figures.ShardBytes = max(r.figures.ShardBytes, len(out.Index))
		}
	}
	r.figures.Shards1M = n
	r.figures.Compile1M, r.figures.CompileCPU1M = ms(took)*maxTenants/float64(n), ms(used)*maxTenants/float64(n)
	return nil
}

// compileOne compiles one tenant by itself, several times.
func (r *run) compileOne() error {
	in, err := Rows(0, r.Size)
	if err != nil {
		return err
	}
	r.figures.Compile10k, r.figures.CompileCPU10k, err = r.median(func() error {
		_, err := compile.Compile(in)
		return err
	})
	return err
}

// page is what the system gives memory in.
const page = 4096

// open measures how long a cell needs from its disk to indexes, and keeps those of the world.
func (r *run) open() (err error) {
	r.Note("opening")
	one := func(i int) (*index.Index, error) {
		return shard.OpenIndex(r.heads[i%len(r.heads)], func(dst []byte, d snapshot.Digest, size uint64) ([]byte, error) {
			return r.disk.AppendBlob(dst, d, int64(size))
		})
	}
	r.figures.Open10k, r.figures.OpenCPU10k, err = r.median(func() error {
		_, err := one(0)
		return err
	})
	if err != nil {
		return err
	}
	if r.figures.Open1M, r.figures.OpenCPU1M, err = r.median(func() error {
		opened := make([]*index.Index, r.Million)
		err := parallel(len(opened), func(i int) (err error) {
			opened[i], err = one(i)
			return err
		})
		runtime.KeepAlive(opened)
		return err
	}); err != nil {
		return err
	}
	before := heap()
	r.indexes = make([]*index.Index, r.tenants)
	bytes := 0
	for i := range r.indexes {
		if r.indexes[i], err = one(i); err != nil {
			return err
		}
		bytes += (r.indexes[i].Size() + page - 1) &^ (page - 1)
	}
	grown := float64(heap()) - float64(before)
	r.figures.HeapBytesPerUser = grown / float64(r.tenants*r.Size.Users)
	r.figures.BytesPerUser = (float64(bytes) + max(0, grown)) / float64(r.tenants*r.Size.Users)
	return nil
}

// median of a few runs of something, in milliseconds, by the clock and of processor time; the first one warms up.
func (r *run) median(f func() error) (wall, cpu float64, err error) {
	var took, used []float64
	for i := range r.Rounds + 1 {
		runtime.GC()
		before, begin := processor(), time.Now()
		if err := f(); err != nil {
			return 0, 0, err
		}
		if i > 0 {
			took, used = append(took, ms(time.Since(begin))), append(used, ms(processor()-before))
		}
	}
	return measure.Median(took), measure.Median(used), nil
}

// processor is the time that this process has had on all processors.
func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// parallel does n things on all processors.
func parallel(n int, do func(i int) error) error {
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range n {
		g.Go(func() error { return do(i) })
	}
	return g.Wait()
}

// heap is what Go's collector keeps.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
