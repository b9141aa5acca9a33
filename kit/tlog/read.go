package tlog

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// readChunk is how much of a segment is read at once.
const readChunk = 256 << 10

var chunks = sync.Pool{New: func() any { return new([readChunk]byte) }}

// Read returns durable records from index from on: at most n, and no more than limit bytes of them unless the first alone is
// larger. Every record is checked against its checksum and against the tree. ErrRange says that there is none, because it
// was pruned or is not durable yet.
func (l *Log) Read(from int64, n, limit int) ([][]byte, error) {
	durable, first := l.Durable(), l.First()
	if from < first || from >= durable || n <= 0 {
		return nil, fmt.Errorf("%w: record %d of [%d, %d)", ErrRange, from, first, durable)
	}
	to := min(durable, from+int64(n))
	var recs [][]byte
	total := 0
	for at := from; at < to; {
		got, bytes, err := l.files.readSegment(at, to, limit-total, len(recs) == 0)
		if err != nil {
			return nil, err
		}
		recs = append(recs, got...)
		total += bytes
		at += int64(len(got))
		if len(got) == 0 || total >= limit {
			break
		}
	}
	return recs, l.files.checkLeaves(from, recs)
}

// readSegment reads records [from, to) as far as they are in the segment of from.
func (f *files) readSegment(from, to int64, limit int, atLeastOne bool) (recs [][]byte, total int, err error) {
	s, end, at, off := f.find(from)
	if s == nil {
		return nil, 0, &CorruptError{File: SegmentName(from), What: "the segment is missing"}
	}
	name := SegmentName(s.first)
	file, err := f.fs.Open(f.path(name), false)
	if err != nil {
		return nil, 0, fmt.Errorf("open segment %s: %w", name, err)
	}
	defer func() { _ = file.Close() }()
	buf, _ := chunks.Get().(*[readChunk]byte)
	defer chunks.Put(buf)
	r := newFrameReader(file, off, at, readChunk)
	r.buf = buf[:0]
	var arena []byte // where the records go, so that each is no allocation of its own
	w := walk{s: s, fresh: at == s.first}
	for r.index < min(to, end) {
		w.step(r)
		rec, err := r.next()
		if err != nil {
			return nil, 0, readError(name, r, err)
		}
		if r.index <= from {
			continue
		}
		if total+len(rec) > limit && !(atLeastOne && len(recs) == 0) {
			return recs, total, nil
		}
		if cap(arena)-len(arena) < len(rec) {
			left := int(min(to, end) - r.index + 1) // about as large as this one
			arena = make([]byte, 0, max(len(rec), min(readChunk, limit-total, left*(len(rec)+len(rec)/8))))
		}
		n := len(arena)
		arena = append(arena, rec...)
		recs = append(recs, arena[n:len(arena):len(arena)])
		total += len(rec)
	}
	if r.index == end {
		w.finish(f)
	}
	return recs, total, nil
}

// walk gathers a segment's marks while it is read from its beginning.
type walk struct {
	s     *segment
	fresh bool
	marks []int64
	count int64
}

func (w *walk) step(r *frameReader) {
	if w.fresh && (r.index-w.s.first)%stride == 0 {
		w.marks = append(w.marks, r.off)
	}
	w.count = r.index + 1 - w.s.first
}

func (w *walk) finish(f *files) {
	if w.fresh {
		f.remember(w.s, w.marks, w.count)
	}
}

func readError(name string, r *frameReader, err error) error {
	if errors.Is(err, io.EOF) {
		err = errTorn
	}
	if errors.Is(err, errTorn) || errors.Is(err, errSum) || errors.Is(err, errLen) {
		return &CorruptError{File: name, Offset: r.off, What: fmt.Sprintf("record %d: %v", r.index, err)}
	}
	return fmt.Errorf("read segment %s at %d: %w", name, r.off, err)
}

// checkLeaves compares the records with the leaves of the tree.
func (f *files) checkLeaves(from int64, recs [][]byte) error {
	if len(recs) == 0 {
		return nil
	}
	leaves, err := f.leaves(from, from+int64(len(recs)))
	if err != nil {
		return err
	}
	for i, rec := range recs {
		if leafHash(rec) != leaves[i] {
			at := from + int64(i)
			return &CorruptError{
				File: hashFile, Offset: StoredHashIndex(0, at) * hashSize,
				What: fmt.Sprintf("record %d is not the one that the tree holds", at),
			}
		}
	}
	return nil
}

// Prune deletes segments whose records are all below the index, oldest first, while those that stay have at least keep
// bytes. The hashes stay, so that proofs go on to work.
func (l *Log) Prune(below, keep int64) error {
	f := l.files
	below = min(below, l.Durable())
	rest := f.bytes()
	f.mu.Lock()
	n := 0
	for n+1 < len(f.segs) && f.segs[n+1].first <= below && f.segs[n].w == nil && rest-f.segs[n].size >= keep {
		rest -= f.segs[n].size
		n++
	}
	if n == 0 {
		f.mu.Unlock()
		return nil
	}
	gone := f.segs[:n]
	f.segs = append([]*segment(nil), f.segs[n:]...)
	floor := f.segs[0].first
	f.mu.Unlock()
	// The floor is durable before a file goes, so that a file that is missing without it is a fault.
	if err := f.writeState(func(m *mark) { m.floor = floor }); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	if err := f.state.Sync(); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	for _, s := range gone {
		if err := f.fs.Remove(f.path(SegmentName(s.first))); err != nil {
			return fmt.Errorf("prune: %w", err)
		}
	}
	return f.fs.SyncDir(f.dir)
}
