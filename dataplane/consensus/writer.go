package consensus

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// errStore means that the log's disk does not do its work; the log goes out of service and is tried again later.
var errStore = errors.New("the log's disk failed")

// errStalled means that a write took longer than the limit. Raft by itself never gives up on it: a leader whose disk
// hangs goes on sending heartbeats and is not replaced.
var errStalled = fmt.Errorf("%w: a write takes too long", errStore)

// writer does writes one after the other on a goroutine of its own, so that the caller can leave one that hangs. After
// the first failure it does none any more: a node that has once not written is out of step with what Raft believes.
type writer struct {
	limit  time.Duration
	before func() error
	jobs   chan job
	quit   chan struct{}
	once   sync.Once
	// ended is closed when the goroutine has ended, which a hanging disk delays.
	ended  chan struct{}
	onFail func(error)
	// busy is when the write that is under way began, in ns; 0 while none is.
	busy atomic.Int64

	mu    sync.Mutex // guards cause
	cause error
}

type job struct {
	do   func() error
	done chan error
}

// startWriter starts the goroutine; onFail hears the first failure.
func startWriter(limit time.Duration, before func() error, onFail func(error)) *writer {
	w := &writer{
		limit: limit, before: before, onFail: onFail,
		jobs: make(chan job), quit: make(chan struct{}), ended: make(chan struct{}),
	}
	go w.loop()
	return w
}

func (w *writer) loop() {
	defer close(w.ended)
	for {
		select {
		case <-w.quit:
			return
		case j := <-w.jobs:
			w.busy.Store(time.Now().UnixNano())
			var err error
			if w.before != nil {
				err = w.before()
			}
			if err == nil {
				err = j.do()
			}
			w.busy.Store(0)
			j.done <- err
		}
	}
}

// write runs do and returns when it is done or the limit is over. do must not touch what its caller goes on to change.
func (w *writer) write(do func() error) error {
	if err := w.err(); err != nil {
		return err
	}
	j := job{do, make(chan error, 1)}
	timer := time.NewTimer(w.limit)
	defer timer.Stop()
	select {
	case w.jobs <- j:
	case <-w.quit:
		return w.fail(fmt.Errorf("%w: closed", errStore))
	case <-timer.C:
		return w.fail(errStalled)
	}
	select {
	case err := <-j.done:
		if err != nil {
			return w.fail(fmt.Errorf("%w: %w", errStore, err))
		}
		return nil
	case <-timer.C:
		return w.fail(errStalled)
	}
}

// fail keeps the first cause and returns it.
func (w *writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cause == nil {
		w.cause = err
		w.onFail(err)
	}
	return w.cause
}

func (w *writer) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cause
}

// hung is for how long the write that is under way has been; 0 while none is.
func (w *writer) hung() time.Duration {
	began := w.busy.Load()
	if began == 0 {
		return 0
	}
	return time.Since(time.Unix(0, began))
}

// stop lets the goroutine end after the write in progress.
func (w *writer) stop() { w.once.Do(func() { close(w.quit) }) }
