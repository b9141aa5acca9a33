package tlog

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Three goroutines carry the records: the writer hands batches to the operating system as they come, the syncer makes what
// was written durable while the writer goes on (so that group commit needs no window), and the checkpointer signs what is
// durable. A batch stays in memory until it is durable: after a failed sync the kernel may have thrown the pages away, so
// everything that is not durable is then written again.

// retryEvery is how often a failed disk is tried.
const retryEvery = 100 * time.Millisecond

// gatherFor is how long records that nobody waits for may gather before they are written, and gatherBytes how much of them.
const (
	gatherFor   = 10 * time.Millisecond
	gatherBytes = 64 << 10
)

// maxFree bounds the memory of batches that are kept for the next ones: about what is written between two syncs that the
// delivery of records asks for.
const maxFree = 4 << 20

// syncAfter is how many records may be written before a sync happens without anybody asking for it.
const syncAfter = 4096

func (l *Log) start() {
	l.workWrite, l.workSync = sync.NewCond(&l.mu), sync.NewCond(&l.mu)
	l.cur = l.newBatch()
	l.wg.Go(l.runWriter)
	l.wg.Go(l.runSyncer)
	l.wg.Go(l.runCheckpointer)
}

// newBatch is called with mu held.
func (l *Log) newBatch() *batch {
	var b *batch
	if n := len(l.free); n > 0 {
		b, l.free = l.free[n-1], l.free[:n-1]
		l.freeBytes -= cap(b.frames)
		*b = batch{frames: b.frames[:0], hashes: b.hashes[:0]}
	} else {
		b = &batch{}
	}
	b.fate = &fate{done: make(chan struct{})}
	return b
}

// recycle keeps the buffers of a durable batch. It is called with mu held.
func (l *Log) recycle(b *batch) {
	if l.freeBytes+cap(b.frames) <= maxFree {
		b.seg, b.slot, b.fate = nil, nil, nil
		l.free = append(l.free, b)
		l.freeBytes += cap(b.frames)
	}
}

// seal moves the batch being filled behind the pending ones. It is called with mu held.
func (l *Log) seal() {
	if l.cur.count > 0 {
		l.pending = append(l.pending, l.cur)
		l.cur = l.newBatch()
	}
}

// unwritten returns the first batch that must be written now, nil when there is none. Records that nobody waits for gather
// until the deadline. It is called with mu held.
func (l *Log) unwritten(now time.Time, deadline *time.Time) *batch {
	for _, b := range l.pending {
		if !b.written {
			return b
		}
	}
	b := l.cur
	switch {
	case b.count == 0:
		*deadline = time.Time{}
		return nil
	case b.wanted || l.closing || l.failed != nil || len(b.frames) >= gatherBytes:
	case deadline.IsZero():
		*deadline = now.Add(gatherFor)
		return nil
	case now.Before(*deadline):
		return nil
	}
	*deadline = time.Time{}
	l.seal()
	return b
}

func (l *Log) runWriter() {
	watch := l.newWatch("write")
	alarm := time.AfterFunc(time.Hour, func() {
		l.mu.Lock() // else the signal could come between the look at the clock and the wait
		defer l.mu.Unlock()
		l.workWrite.Signal()
	})
	defer alarm.Stop()
	var deadline time.Time
	for {
		l.mu.Lock()
		b := l.unwritten(time.Now(), &deadline)
		for b == nil && (!l.closing || l.cur.count > 0) {
			if !deadline.IsZero() {
				alarm.Reset(time.Until(deadline))
			}
			l.workWrite.Wait()
			b = l.unwritten(time.Now(), &deadline)
		}
		gen := l.rewrites
		l.mu.Unlock()
		if b == nil {
			return
		}
		watch.begin()
		err := l.writeBatch(b)
		watch.end()
		if err != nil {
			l.fail(fmt.Errorf("write: %w", err), false)
			if !l.pause() {
				return
			}
			continue
		}
		l.wrote(b, gen)
	}
}

func (l *Log) writeBatch(b *batch) error {
	err := l.tryWrite(b)
	if errors.Is(err, syscall.ENOSPC) && l.giveUpReserve() {
		err = l.tryWrite(b)
	}
	return err
}

func (l *Log) tryWrite(b *batch) error {
	if b.seg == nil {
		if err := l.files.place(b, l.cfg.SegmentBytes); err != nil {
			return err
		}
	}
	return l.files.write(b)
}

// wrote notes that the operating system has the batch, unless a failure in the meantime made that doubtful.
func (l *Log) wrote(b *batch, gen uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if gen != l.rewrites {
		l.workWrite.Signal()
		return
	}
	b.written = true
	l.ring.give(b.slot)
	b.slot = nil
	l.written = max(l.written, b.end())
	if l.grown != nil {
		close(l.grown)
		l.grown = nil
	}
	l.workSync.Signal()
}

// ready returns the batches that can be made durable together: the pending ones up to the first that is not written. It is
// called with mu held.
func (l *Log) ready() []*batch {
	n := 0
	for n < len(l.pending) && l.pending[n].written {
		n++
	}
	return l.pending[:n:n]
}

func (l *Log) runSyncer() {
	watch := l.newWatch("sync")
	for {
		l.mu.Lock()
		bs := l.ready()
		for !l.syncWanted(bs) {
			if l.stuck || (l.closing && len(l.pending) == 0 && l.cur.count == 0) {
				l.mu.Unlock()
				return
			}
			l.workSync.Wait()
			bs = l.ready()
		}
		gen := l.rewrites
		l.mu.Unlock()

		watch.begin()
		err := l.syncBatches(bs)
		watch.end()
		if err != nil {
			l.fail(fmt.Errorf("sync: %w", err), true)
			if !l.pause() {
				return
			}
			continue
		}
		l.synced(len(bs), gen)
	}
}

// syncWanted is called with mu held.
func (l *Log) syncWanted(ready []*batch) bool {
	if len(ready) == 0 || l.stuck {
		return false
	}
	if l.failed != nil || l.closing || l.written-l.durable >= syncAfter {
		return true
	}
	for _, b := range ready {
		if b.wanted {
			return true
		}
	}
	return false
}

// wantAll asks for everything so far to be made durable. It is called with mu held.
func (l *Log) wantAll() {
	for _, b := range l.pending {
		b.wanted = true
	}
	l.cur.wanted = l.cur.count > 0
	l.workWrite.Signal()
	l.workSync.Signal()
}

func (l *Log) syncBatches(bs []*batch) error {
	err := l.files.sync(bs)
	if errors.Is(err, syscall.ENOSPC) && l.giveUpReserve() {
		err = l.files.sync(bs)
	}
	return err
}

// synced tells everybody that the first n pending batches are durable. When a failure came in between, the batches may
// have been written again meanwhile; the sync covered the first writing only, so it does not count.
func (l *Log) synced(n int, gen uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if gen != l.rewrites {
		return
	}
	done := l.pending[:n]
	for _, b := range done {
		b.tell(nil)
		l.waiting -= b.count
		l.bytes -= len(b.frames)
		l.durable = b.end()
	}
	l.files.retire(done[n-1].seg)
	for _, b := range done {
		l.recycle(b)
	}
	l.pending = slices.Delete(l.pending, 0, n)
	if l.failed != nil && l.durable >= l.failedEnd {
		l.heal()
	}
	l.broadcast()
	if l.durable-l.last.size() >= syncAfter {
		select {
		case l.kickCP <- struct{}{}:
		default:
		}
	}
}

// heal ends a failure. New records must not join a batch whose waiters were told of it. It is called with mu held.
func (l *Log) heal() {
	l.cfg.Logger.Info("the log's disk takes records again", slog.String("log", l.origin))
	l.failed = nil
	l.seal()
	if l.cur.fate.told {
		l.cur = l.newBatch()
	}
	l.workWrite.Signal()
}

// fail tells every waiter that the disk does not take records. After a failed sync all that is not durable is written
// again.
func (l *Log) fail(err error, rewrite bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.pending) == 0 {
		return // what seemed to hang has ended well
	}
	if l.failed == nil {
		l.cfg.Logger.Error("the log's disk does not take records",
			slog.String("log", l.origin), slog.String("error", err.Error()))
	}
	l.failed, l.failedEnd = err, l.tree.size
	if rewrite {
		l.rewrites++
	}
	for _, b := range l.pending {
		b.written = b.written && !rewrite
	}
	l.tellAll(unavailable(err))
	l.workWrite.Signal()
}

// tellAll gives the waiters of everything that is not durable the error. It is called with mu held.
func (l *Log) tellAll(err error) {
	for _, b := range l.pending {
		b.tell(err)
	}
	l.cur.tell(err)
	l.broadcast()
}

// broadcast wakes who waits for progress. It is called with mu held.
func (l *Log) broadcast() {
	if l.progress != nil {
		close(l.progress)
		l.progress = nil
	}
}

// awaitProgress is called with mu held.
func (l *Log) awaitProgress() chan struct{} {
	if l.progress == nil {
		l.progress = make(chan struct{})
	}
	return l.progress
}

// pause waits before a failed disk is tried again; false means that the log is closing and gives up.
func (l *Log) pause() bool {
	t := time.NewTimer(retryEvery)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.quit:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.stuck = true
		l.tellAll(ErrClosed)
		l.workSync.Broadcast()
		l.workWrite.Broadcast()
		return false
	}
}

// watch turns an operation that takes longer than WriteTimeout into a failure, while the operation itself still hangs.
type watch struct {
	timer *time.Timer
	limit time.Duration
	busy  atomic.Bool
}

func (l *Log) newWatch(what string) *watch {
	w := &watch{limit: l.cfg.WriteTimeout}
	w.timer = time.AfterFunc(time.Hour, func() {
		if w.busy.Load() {
			l.fail(fmt.Errorf("%s takes longer than %s", what, w.limit), false)
		}
	})
	w.timer.Stop()
	return w
}

func (w *watch) begin() {
	w.busy.Store(true)
	w.timer.Reset(w.limit)
}

func (w *watch) end() {
	w.busy.Store(false)
	w.timer.Stop()
}

// Close writes out everything, signs a last checkpoint and closes the files. When the disk hangs it gives up after four
// times WriteTimeout and returns ErrUnavailable; the goroutine that hangs ends with its system call.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return ErrClosed
	}
	l.closing = true
	close(l.quit)
	l.workWrite.Broadcast()
	l.workSync.Broadcast()
	l.broadcast()
	if l.grown != nil {
		close(l.grown)
		l.grown = nil
	}
	l.mu.Unlock()

	done := make(chan struct{})
	go func() { l.wg.Wait(); close(done) }()
	t := time.NewTimer(4 * l.cfg.WriteTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		return unavailable(errors.New("the disk hangs while the log is closed"))
	}
	l.mu.Lock()
	lost := l.waiting
	l.mu.Unlock()
	var err error
	if lost > 0 {
		err = unavailable(fmt.Errorf("%d records could not be written before the log was closed", lost))
	} else if cerr := l.persist(); cerr != nil {
		err = fmt.Errorf("last checkpoint: %w", cerr)
	}
	if l.ring != nil {
		err = errors.Join(err, l.ring.close(lost == 0))
	}
	return errors.Join(err, l.files.close(), l.lock.Close())
}
