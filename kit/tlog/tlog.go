// Package tlog is an append-only log on local disk whose records are the leaves of an RFC 6962 Merkle tree. It promises
// two degrees of keeping (Append: the record has its place and survives the process; Commit: it survives the power), one
// order, and that nothing it once called durable is lost, changed or moved without being noticed: every record carries a
// CRC-32C, the tree's head is signed as a C2SP checkpoint, and package check proves a directory or an export from the
// outside. A broken log is reported with file and offset, never repaired silently.
//
// DESIGN.md has the files and the reasons. What the records mean is the caller's business.
package tlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Bounds of a log. Appenders wait, and then fail, when more records or bytes than this are not yet durable.
const (
	MaxRecord  = 256 << 10
	MaxWaiting = 10_000
	maxBytes   = 64 << 20
)

var (
	// ErrUnavailable says that the disk does not take records now: full, failing or hanging. The log tries again by itself.
	ErrUnavailable = errors.New("tlog: the disk does not take records")
	// ErrClosed says that the log was closed.
	ErrClosed = errors.New("tlog: closed")
	// ErrRecord says that a record is empty or larger than MaxRecord.
	ErrRecord = errors.New("tlog: record is empty or too large")
	// ErrRange says that an index or a size is outside of what the log holds.
	ErrRange = errors.New("tlog: out of range")
	// ErrCorrupt is the sentinel below every *CorruptError.
	ErrCorrupt = errors.New("tlog: corrupt")
	// ErrInUse says that another process has the directory open.
	ErrInUse = errors.New("tlog: directory is in use by another process")
)

// CorruptError names the place where a log is not what it was when it was written.
type CorruptError struct {
	File   string
	Offset int64
	What   string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("tlog: %s is corrupt at offset %d: %s", e.File, e.Offset, e.What)
}

// Unwrap makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// Config of a log.
type Config struct {
	// Dir holds the log and nothing else. It is created when it is missing.
	Dir string
	// Prefix names the writer, "mcpvault/audit/CELL/NODE". A new directory gets a random incarnation and a key of its own; the
	// origin is PREFIX/INCARNATION.
	Prefix string
	// KeyFile is where the private key is kept; Dir/log.key when empty.
	KeyFile string
	// SegmentBytes is the size at which a new segment file is begun; 16 MiB when 0.
	SegmentBytes int64
	// WriteTimeout is how long a write may take before it counts as failed; 500 ms when 0.
	WriteTimeout time.Duration
	// CheckpointEvery is the longest time from a record to a checkpoint that covers it; 1 s when 0. 4,096 records bring one
	// earlier.
	CheckpointEvery time.Duration
	// RingDir is a directory on a tmpfs for the memory that keeps appended records when the process is killed; /dev/shm when
	// empty, and "-" for none. Without it an append may be lost with the process, but never one that was committed.
	RingDir string
	// Reserve is the size of the ballast file, which is given back to the disk when it is full: 0 for none, else 4 to 64 MiB.
	Reserve int64
	// FS is the file system; the machine's when nil.
	FS FS
	// Logger takes what an operator must know; discarded when nil.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" || c.Prefix == "" {
		return c, errors.New("tlog: Dir and Prefix must be set")
	}
	if c.Reserve != 0 && (c.Reserve < 4<<20 || c.Reserve > 64<<20) {
		return c, fmt.Errorf("tlog: reserve of %d bytes is not between 4 and 64 MiB", c.Reserve)
	}
	if c.SegmentBytes == 0 {
		c.SegmentBytes = 16 << 20
	}
	if c.WriteTimeout == 0 {
		c.WriteTimeout = 500 * time.Millisecond
	}
	if c.CheckpointEvery == 0 {
		c.CheckpointEvery = time.Second
	}
	if c.RingDir == "" {
		c.RingDir = defaultRing
	}
	if c.FS == nil {
		c.FS = Disk{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// Log is one open log. All methods may be called from many goroutines.
type Log struct {
	cfg      Config
	files    *files
	origin   string
	vkey     string
	signer   note.Signer
	verifier note.Verifier

	// mu guards what follows. It is held for work in memory only, never across IO, so that a hanging disk delays nobody.
	mu        sync.Mutex
	tree      Tree     // every record that has a place
	cur       *batch   // takes new records
	pending   []*batch // sealed and not durable, in order
	waiting   int      // records not durable, cur included
	bytes     int      // their frames
	durable   int64    // records below this survive the power
	written   int64    // records below this survive the process
	failed    error    // why the disk does not take records; nil while it does
	failedEnd int64    // the failure is over when records up to here are durable
	rewrites  uint64   // counts failed syncs, so that a write that overlapped one is done again
	ring      *ring    // nil when there is none
	noReserve bool     // the ballast file was given up
	closing   bool
	stuck     bool          // closing gave up on the disk
	progress  chan struct{} // closed when durable or failed changes; nil while nobody waits
	grown     chan struct{} // closed when written grows; nil while nobody waits
	free      []*batch
	freeBytes int // of their frames
	workWrite *sync.Cond
	workSync  *sync.Cond

	last   lastCheckpoint
	lock   io.Closer
	wg     sync.WaitGroup
	quit   chan struct{} // closed when closing begins
	kickCP chan struct{} // asks for a checkpoint now
}

// batch is a run of records that is written with one call and becomes durable together. Its buffers are used again; what
// waiters hold is its fate, which is not.
type batch struct {
	first  int64
	count  int
	frames []byte
	hashes []byte
	// seg and off are the place, given at the first attempt and kept for the next ones.
	seg     *segment
	off     int64
	written bool
	wanted  bool  // somebody waits for it to be durable
	slot    *slot // keeps the frames until they are written
	fate    *fate
}

// fate is what became of a batch: durable when err is nil.
type fate struct {
	done chan struct{} // closed once err stands
	err  error
	told bool
}

func (b *batch) end() int64 { return b.first + int64(b.count) }

func (b *batch) tell(err error) {
	if !b.fate.told {
		b.fate.told, b.fate.err = true, err
		close(b.fate.done)
	}
}

// Append gives the record its place and returns the index. It survives the end of this process in the ring until it is
// written, a few milliseconds later, and is durable within CheckpointEvery. While the disk does not take records they are
// kept in memory, up to MaxWaiting of them.
func (l *Log) Append(rec []byte) (int64, error) {
	i, _, err := l.add(rec, false)
	return i, err
}

// Commit appends the record and returns when it is durable. An error means that the caller must not count on it; when the
// index is not negative the record has its place all the same, and may yet become durable.
func (l *Log) Commit(ctx context.Context, rec []byte) (int64, error) {
	i, f, err := l.add(rec, true)
	if err != nil {
		return -1, err
	}
	select {
	case <-f.done:
		return i, f.err
	case <-ctx.Done():
		return i, ctx.Err()
	}
}

// Sync returns when everything appended before the call is durable.
func (l *Log) Sync(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := l.tree.size
	for l.durable < size {
		if l.failed != nil || l.stuck {
			return unavailable(l.failed)
		}
		l.wantAll()
		ch := l.awaitProgress()
		l.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
		}
		l.mu.Lock()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// add gives the record its place in the batch being filled.
func (l *Log) add(rec []byte, commit bool) (int64, *fate, error) {
	if len(rec) == 0 || len(rec) > MaxRecord {
		return -1, nil, ErrRecord
	}
	leaf, sum := leafHash(rec), recordSum(rec)
	l.mu.Lock()
	for {
		if l.closing {
			l.mu.Unlock()
			return -1, nil, ErrClosed
		}
		full := l.waiting >= MaxWaiting || l.bytes+len(rec) > maxBytes
		if l.failed != nil && (commit || full) {
			err := l.failed
			l.mu.Unlock()
			return -1, nil, unavailable(err)
		}
		if !full {
			break
		}
		if err := l.waitForRoom(); err != nil {
			return -1, nil, err
		}
	}
	i := l.tree.size
	if !l.cur.slot.fits(frameHeader + len(rec)) {
		l.seal()
	}
	b := l.cur
	if b.count == 0 {
		b.first = i
		b.slot = l.ring.take(i)
	}
	n := len(b.frames)
	b.frames = appendFrame(b.frames, i, rec, sum)
	b.slot.put(b.frames[n:])
	b.hashes = l.tree.push(b.hashes, leaf)
	b.count++
	l.waiting++
	l.bytes += len(b.frames) - n
	b.wanted = b.wanted || commit
	if b.count == 1 || b.wanted || len(b.frames) >= gatherBytes {
		l.workWrite.Signal()
	}
	f := b.fate
	l.mu.Unlock()
	return i, f, nil
}

// waitForRoom waits for the disk to catch up, for at most WriteTimeout. It is called with mu held and returns with mu held
// unless it returns an error.
func (l *Log) waitForRoom() error {
	ch := l.awaitProgress()
	l.wantAll()
	l.mu.Unlock()
	t := time.NewTimer(l.cfg.WriteTimeout)
	defer t.Stop()
	select {
	case <-ch:
	case <-t.C:
		return unavailable(errors.New("too many records wait for the disk"))
	case <-l.quit:
		return ErrClosed
	}
	l.mu.Lock()
	return nil
}

func unavailable(cause error) error {
	if cause == nil {
		return ErrUnavailable
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, cause)
}

// Dir is the directory of the log.
func (l *Log) Dir() string { return l.cfg.Dir }

// Origin is the log's name, PREFIX/INCARNATION, and the first line of its checkpoints.
func (l *Log) Origin() string { return l.origin }

// VerifierKey is the public key of the log's checkpoints in note form.
func (l *Log) VerifierKey() string { return l.vkey }

// Size is the number of records that have a place.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.size
}

// Durable is the number of records that survive the power.
func (l *Log) Durable() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

// First is the index of the oldest record that was not pruned.
func (l *Log) First() int64 { return l.files.first() }

// Grown returns a channel that is closed when records beyond size have been written, or at once when there are some.
func (l *Log) Grown(size int64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.written > size || l.closing {
		ch := make(chan struct{})
		close(ch)
		return ch
	}
	if l.grown == nil {
		l.grown = make(chan struct{})
	}
	return l.grown
}

// Stats is how the log is at one moment.
type Stats struct {
	Size, Written, Durable int64
	// Waiting records are not durable yet.
	Waiting int
	// Failed is why the disk does not take records, nil while it does.
	Failed error
	// ReserveUsed says that the ballast file was given back to a full disk.
	ReserveUsed bool
	// Bytes of all segments.
	Bytes int64
	// Checkpoint is the size of the newest persisted checkpoint, and CheckpointAt when it was signed.
	Checkpoint   int64
	CheckpointAt time.Time
}

// Stats returns how the log is.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	s := Stats{
		Size: l.tree.size, Written: l.written, Durable: l.durable, Waiting: l.waiting,
		Failed: l.failed, ReserveUsed: l.noReserve,
	}
	l.mu.Unlock()
	s.Bytes = l.files.bytes()
	s.Checkpoint, s.CheckpointAt = l.last.get()
	return s
}
