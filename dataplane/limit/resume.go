package limit

import (
	"sync"
	"time"
)

// maxResumers bounds the streams that are resumed within one second: what is more has to wait.
const maxResumers = 1 << 16

// Resumes counts how often each stream is resumed within a second. Its memory is that of one second.
type Resumes struct {
	max int

	mu     sync.Mutex
	second int64            // guarded by mu
	count  map[[16]byte]int // guarded by mu; of this second
}

// NewResumes lets each stream be resumed perSecond times.
func NewResumes(perSecond int) *Resumes {
	return &Resumes{max: perSecond, count: map[[16]byte]int{}}
}

// Take counts one; false when there were too many in this second.
func (r *Resumes) Take(stream [16]byte, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := now.Unix(); s != r.second {
		r.second = s
		clear(r.count)
	}
	n, known := r.count[stream]
	if n >= r.max || !known && len(r.count) >= maxResumers {
		return false
	}
	r.count[stream] = n + 1
	return true
}
