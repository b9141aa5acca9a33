// Package shrink gives memory back to the system that a burst of work has left behind, once the process is quiet.
//
// The collector lets the heap grow to about twice of what is in use before it runs, which is what makes it cheap under load, and
// when the load ends, the last garbage stays: nothing is allocated, so nothing is collected. For a process that holds
// thousands of idle sessions that is as much again as all of them take. Setting GOGC lower would have every call pay for it;
// collecting after a burst costs two cycles, and nothing while there is load.
package shrink

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/mcpvault/mcpvault/kit/run"
)

const (
	every = time.Second
	// quiet is what may be allocated between two looks by a process that is not at work.
	quiet = 1 << 20
	// worth is the least that is collected for; it is more where more is in use, because a cycle looks at all of that.
	worth      = 1 << 20
	worthShare = 8
)

// Run looks every second until ctx ends.
func Run(ctx context.Context) error {
	s := newSampler()
	before := s.read()
	return run.Every(ctx, every, func(context.Context) {
		now := s.read()
		if now.due(before) {
			runtime.GC()         // takes what lies in pools aside
			debug.FreeOSMemory() // and drops it
			now = s.read()
		}
		before = now
	})
}

// sample is the heap at one moment, in bytes.
type sample struct {
	allocated uint64 // since the process began
	live      uint64 // found in use by the last collection
	objects   uint64 // in use, or not yet collected
	free      uint64 // not used, and not given back
}

// due reports whether memory is to be given back, a second after the sample before.
func (s sample) due(before sample) bool {
	if s.allocated-before.allocated > quiet {
		return false
	}
	surplus := s.free
	if s.objects > s.live {
		surplus += s.objects - s.live
	}
	return surplus >= max(worth, s.live/worthShare)
}

type sampler []metrics.Sample

func newSampler() sampler {
	return sampler{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
}

func (s sampler) read() sample {
	metrics.Read(s)
	of := func(i int) uint64 {
		if s[i].Value.Kind() != metrics.KindUint64 {
			return 0 // a runtime that does not know it
		}
		return s[i].Value.Uint64()
	}
	return sample{of(0), of(1), of(2), of(3)}
}
