package tlog

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
)

// The ring is memory that outlives the process: a file on a tmpfs that is mapped. A record is copied there when it gets its
// place, and leaves when the operating system has it, so that an append survives SIGKILL without a system call, and the
// writer may gather what comes within gatherFor into one write. A tmpfs has no disk below it that could hang a copy.
const (
	ringPrefix = "mcpvault-log-"
	// The first page says whose ring it is: the length of the log's directory and its path.
	ringHeader = 4096
	ringSlots  = 8
	// A slot takes the largest record.
	ringSlot   = MaxRecord + 8<<10
	ringSize   = ringHeader + ringSlots*ringSlot
	slotHeader = 24 // first index, first bytes of the origin's hash
)

type ring struct {
	name string
	mem  []byte
	keep io.Closer // holds the lock
	free []int
	id   [16]byte
}

// slot is a part of the ring: a header and the frames of one batch.
type slot struct {
	n    int
	mem  []byte
	used int
}

// RingFile is the name of a log's ring in the directory for rings. It is removed by Close, and stays behind a killed process
// until the log is opened and closed again.
func RingFile(logDir string) string {
	if abs, err := filepath.Abs(logDir); err == nil {
		logDir = abs
	}
	h := leafHash([]byte(logDir))
	return ringPrefix + hex.EncodeToString(h[:8])
}

// openRing maps a log's ring.
func openRing(dir, logDir, origin string) (*ring, error) {
	abs, err := filepath.Abs(logDir)
	if err != nil || len(abs) > ringHeader-2 {
		return nil, fmt.Errorf("tlog: ring: directory %q has no usable path", logDir)
	}
	name := filepath.Join(dir, RingFile(logDir))
	mem, keep, err := mapFile(name, ringSize)
	if err != nil {
		return nil, fmt.Errorf("tlog: ring: %w", err)
	}
	r := &ring{name: name, mem: mem, keep: keep}
	binary.LittleEndian.PutUint16(mem, uint16(len(abs)))
	copy(mem[2:], abs)
	h := leafHash([]byte(origin))
	copy(r.id[:], h[:])
	for i := range ringSlots {
		r.free = append(r.free, i)
	}
	return r, nil
}

// sweepRings removes the rings of logs whose directories are gone: their processes were killed, and nobody will open them
// again.
func sweepRings(dir string) {
	names, err := filepath.Glob(filepath.Join(dir, ringPrefix+"*"))
	if err != nil {
		return
	}
	for _, name := range names {
		sweepRing(name)
	}
}

func sweepRing(name string) {
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	var head [ringHeader]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return
	}
	n := int(binary.LittleEndian.Uint16(head[:]))
	if n == 0 || n > ringHeader-2 {
		return
	}
	logDir := string(head[2 : 2+n])
	if filepath.Base(name) != RingFile(logDir) {
		return
	}
	// The lock is tried last, because it would be in the way of an owner who is just starting.
	if _, err := os.Lstat(logDir); errors.Is(err, os.ErrNotExist) && unused(f) {
		_ = os.Remove(name)
	}
}

// slotAt is the n-th slot's memory.
func (r *ring) slotAt(n int) []byte {
	at := ringHeader + n*ringSlot
	return r.mem[at : at+ringSlot : at+ringSlot]
}

// close unmaps the ring, and removes it when nothing in it is needed any more.
func (r *ring) close(done bool) error {
	err := unmap(r.mem)
	if done {
		err = errors.Join(err, os.Remove(r.name))
	}
	return errors.Join(err, r.keep.Close())
}

// left returns what the last process left in the ring from the record at index on, as far as it goes without a gap.
func (r *ring) left(index int64) [][]byte {
	type run struct {
		first int64
		b     []byte
	}
	var runs []run
	for i := range ringSlots {
		b := r.slotAt(i)
		if string(b[8:24]) == string(r.id[:]) {
			runs = append(runs, run{int64(binary.LittleEndian.Uint64(b)), b[slotHeader:]})
		}
	}
	sort.Slice(runs, func(i, j int) bool { return runs[i].first < runs[j].first })
	var recs [][]byte
	for _, run := range runs {
		// A frame of an earlier use has another index in its sum, so it ends the run.
		for at, b := run.first, run.b; ; at++ {
			rec, size, err := parseFrame(b, at)
			if err != nil {
				break
			}
			if at == index {
				recs = append(recs, append([]byte(nil), rec...))
				index++
			}
			b = b[size:]
		}
	}
	return recs
}

// take returns a slot for the batch that begins at first; nil when there is none.
func (r *ring) take(first int64) *slot {
	if r == nil || len(r.free) == 0 {
		return nil
	}
	n := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	s := &slot{n: n, mem: r.slotAt(n), used: slotHeader}
	clear(s.mem[:slotHeader+frameHeader])
	binary.LittleEndian.PutUint64(s.mem, uint64(first))
	copy(s.mem[8:], r.id[:])
	return s
}

// fits reports whether a frame goes into the slot; a batch without a slot takes any.
func (s *slot) fits(frame int) bool { return s == nil || s.used+frame <= len(s.mem) }

func (s *slot) put(frame []byte) {
	if s != nil {
		s.used += copy(s.mem[s.used:], frame)
	}
}

// give takes a slot back whose records the operating system has.
func (r *ring) give(s *slot) {
	if r != nil && s != nil {
		r.free = append(r.free, s.n)
	}
}
