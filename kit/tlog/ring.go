package tlog

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"sort"
)

// The ring is memory that outlives the process: a file on a tmpfs that is mapped. A record is copied there when it gets its
// place, and leaves when the operating system has it, so that an append survives SIGKILL without a system call, and the
// writer may gather what comes within gatherFor into one write. A tmpfs has no disk below it that could hang a copy.
const (
	ringSlots  = 16
	ringSlot   = 256 << 10
	slotHeader = 24 // first index, first bytes of the origin's hash, length of nothing: zeros
)

type ring struct {
	name string
	mem  []byte
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
	return "mcpvault-log-" + hex.EncodeToString(h[:8])
}

// openRing maps a log's ring.
func openRing(name, origin string) (*ring, error) {
	mem, err := mapFile(name, ringSlots*ringSlot)
	if err != nil {
		return nil, fmt.Errorf("tlog: ring: %w", err)
	}
	r := &ring{name: name, mem: mem}
	h := leafHash([]byte(origin))
	copy(r.id[:], h[:])
	for i := range ringSlots {
		r.free = append(r.free, i)
	}
	return r, nil
}

// left returns what the last process left in the ring from the record at index on, as far as it goes without a gap.
func (r *ring) left(index int64) [][]byte {
	type run struct {
		first int64
		b     []byte
	}
	var runs []run
	for i := range ringSlots {
		b := r.mem[i*ringSlot : (i+1)*ringSlot]
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
	s := &slot{n: n, mem: r.mem[n*ringSlot : (n+1)*ringSlot], used: slotHeader}
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
