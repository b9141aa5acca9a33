package tlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"sort"
	"sync"
)

// The names in a log's directory.
const (
	publicFile     = "log.pub"
	privateFile    = "log.key"
	stateFile      = "state"
	hashFile       = "hashes"
	checkpointFile = "checkpoint"
	reserveFile    = "reserve"
	lockName       = "lock"
	hashSize       = 32
	// stride is how many records lie between two remembered offsets of a segment.
	stride = 256
)

// segment is one file of records.
type segment struct {
	first int64
	// w is the writer's handle; nil once the segment is full and durable.
	w File
	// size is how much of the file holds records, and marks the offsets of every stride-th of them; marks is nil while the
	// segment was not walked yet. files.mu guards both.
	size  int64
	marks []int64
	count int64
}

// files is the log on disk. The writer adds to it; readers see what is below the size that they pass.
type files struct {
	fs     FS
	dir    string
	origin string
	hashes File
	state  File

	stateMu sync.Mutex // orders writes to the state file; taken before mu
	mu      sync.Mutex // guards segs, what they say they have, and mark
	segs    []*segment // in order; the last one is written
	mark    mark
	hashBuf []byte // the syncer's own
	nextOff int64  // where the next batch goes in the last segment; the writer's own
}

func (f *files) path(name string) string { return filepath.Join(f.dir, name) }

func (f *files) first() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mark.floor
}

func (f *files) bytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var n int64
	for _, s := range f.segs {
		n += s.size
	}
	return n
}

// mark is the content of the state file: how many records were acknowledged as durable, and the first that was kept. It
// is written over in place and reaches the operating system before any acknowledgement, so that after the end of a
// process the file says exactly what had been promised; after a power cut it may say less.
type mark struct{ durable, floor int64 }

const (
	stateMagic = "mvtstat1"
	stateSize  = 28
)

func (m mark) encode() []byte {
	b := make([]byte, 0, stateSize)
	b = append(b, stateMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(m.durable))
	b = binary.LittleEndian.AppendUint64(b, uint64(m.floor))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// ParseState reads a state file: the number of records that were acknowledged as durable and the first one kept.
func ParseState(b []byte) (durable, floor int64, err error) {
	if len(b) != stateSize || string(b[:8]) != stateMagic ||
		crc32.Checksum(b[:stateSize-4], castagnoli) != binary.LittleEndian.Uint32(b[stateSize-4:]) {
		return 0, 0, &CorruptError{File: stateFile, What: "not a state record with a matching checksum"}
	}
	durable = int64(binary.LittleEndian.Uint64(b[8:]))
	floor = int64(binary.LittleEndian.Uint64(b[16:]))
	if floor < 0 || durable < floor {
		return 0, 0, &CorruptError{File: stateFile, What: "impossible numbers"}
	}
	return durable, floor, nil
}

// writeState changes the mark and hands it to the operating system.
func (f *files) writeState(change func(*mark)) error {
	f.stateMu.Lock()
	defer f.stateMu.Unlock()
	f.mu.Lock()
	change(&f.mark)
	b := f.mark.encode()
	f.mu.Unlock()
	_, err := f.state.WriteAt(b, 0)
	return err
}

// retire closes the writer's handles of the segments before the one that is durable up to its newest batch.
func (f *files) retire(current *segment) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.segs) - 1; i >= 0; i-- {
		s := f.segs[i]
		if s.first >= current.first {
			continue
		}
		if s.w == nil {
			return
		}
		_ = s.w.Close() // synced, and never written again
		s.w = nil
	}
}

// place gives the batch its segment and offset, beginning a new segment when the last one is full.
func (f *files) place(b *batch, segmentBytes int64) error {
	f.mu.Lock()
	s := f.segs[len(f.segs)-1]
	f.mu.Unlock()
	if f.nextOff > SegmentHeader && f.nextOff+int64(len(b.frames)) > segmentBytes {
		n, err := f.create(b.first)
		if err != nil {
			return err
		}
		f.mu.Lock()
		f.segs = append(f.segs, n)
		f.mu.Unlock()
		s, f.nextOff = n, SegmentHeader
	}
	b.seg, b.off = s, f.nextOff
	f.nextOff += int64(len(b.frames))
	return nil
}

func (f *files) create(first int64) (*segment, error) {
	w, err := f.fs.Open(f.path(SegmentName(first)), true)
	if err != nil {
		return nil, err
	}
	if _, err := w.WriteAt(segmentHeader(f.origin, first), 0); err != nil {
		_ = w.Close()
		return nil, err
	}
	if err := f.fs.SyncDir(f.dir); err != nil {
		_ = w.Close()
		return nil, err
	}
	return &segment{first: first, w: w, size: SegmentHeader, marks: []int64{}}, nil
}

// write puts the batch into its place.
func (f *files) write(b *batch) error {
	if _, err := b.seg.w.WriteAt(b.frames, b.off); err != nil {
		return err
	}
	f.mu.Lock()
	b.seg.note(b)
	f.mu.Unlock()
	return nil
}

// sync makes batches that were written durable. Their hashes are written first, so that whatever is durable can be read and
// proved; that they reach the disk is only promised by the next checkpoint, because they derive from the records.
func (f *files) sync(bs []*batch) error {
	f.hashBuf = f.hashBuf[:0]
	for _, b := range bs {
		f.hashBuf = append(f.hashBuf, b.hashes...)
	}
	if _, err := f.hashes.WriteAt(f.hashBuf, StoredHashCount(bs[0].first)*hashSize); err != nil {
		return err
	}
	var last *segment
	for _, b := range bs {
		if b.seg == last {
			continue
		}
		last = b.seg
		if err := last.w.Sync(); err != nil {
			return err
		}
	}
	end := bs[len(bs)-1].end()
	return f.writeState(func(m *mark) { m.durable = max(m.durable, end) })
}

// note remembers where the batch's records lie. A batch that is written again changes nothing.
func (s *segment) note(b *batch) {
	if s.size > b.off {
		return
	}
	for at := 0; at < len(b.frames); {
		if s.count%stride == 0 {
			s.marks = append(s.marks, b.off+int64(at))
		}
		s.count++
		at += frameHeader + int(binary.LittleEndian.Uint32(b.frames[at:]))
	}
	s.size = b.off + int64(len(b.frames))
}

// ReadHashes implements HashReader on the hash file.
func (f *files) ReadHashes(at []int64) ([]Hash, error) {
	out := make([]Hash, len(at))
	for i, n := range at {
		if _, err := f.hashes.ReadAt(out[i][:], n*hashSize); err != nil {
			if errors.Is(err, io.EOF) {
				return nil, &CorruptError{File: hashFile, Offset: n * hashSize, What: "the file ends before this hash"}
			}
			return nil, fmt.Errorf("read hash %d: %w", n, err)
		}
	}
	return out, nil
}

// leaves reads the leaf hashes of the records [from, to).
func (f *files) leaves(from, to int64) ([]Hash, error) {
	base := StoredHashIndex(0, from)
	raw := make([]byte, (StoredHashIndex(0, to-1)-base+1)*hashSize)
	if n, err := f.hashes.ReadAt(raw, base*hashSize); err != nil && n < len(raw) {
		if errors.Is(err, io.EOF) {
			return nil, &CorruptError{File: hashFile, Offset: base*hashSize + int64(n), What: "the file ends early"}
		}
		return nil, err
	}
	out := make([]Hash, to-from)
	for i := range out {
		copy(out[i][:], raw[(StoredHashIndex(0, from+int64(i))-base)*hashSize:])
	}
	return out, nil
}

// find returns the segment that holds the record, with the record after its last, and the remembered place at or before
// the record. A segment that was not walked yet is read from its beginning.
func (f *files) find(index int64) (s *segment, end, at, off int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := sort.Search(len(f.segs), func(i int) bool { return f.segs[i].first > index }) - 1
	if i < 0 {
		return nil, 0, 0, 0
	}
	s = f.segs[i]
	end = int64(1<<63 - 1)
	if i+1 < len(f.segs) {
		end = f.segs[i+1].first
	}
	at, off = s.first, SegmentHeader
	if k := (index - s.first) / stride; s.marks != nil && k < int64(len(s.marks)) {
		at, off = s.first+k*stride, s.marks[k]
	}
	return s, end, at, off
}

// remember keeps the offsets of a segment that was walked from its beginning to its end.
func (f *files) remember(s *segment, marks []int64, count int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s.marks == nil {
		s.marks, s.count = marks, count
	}
}

// close closes every handle. Who still reads gets errors.
func (f *files) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, s := range f.segs {
		if s.w != nil {
			errs = append(errs, s.w.Close())
			s.w = nil
		}
	}
	if f.hashes != nil {
		errs = append(errs, f.hashes.Close())
	}
	if f.state != nil {
		errs = append(errs, f.state.Close())
	}
	return errors.Join(errs...)
}
