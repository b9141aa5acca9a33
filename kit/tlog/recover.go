package tlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
)

// walk reads one segment's records into the tree, and cuts off a torn end of the last one.
func (r *recoverer) walk(s *segment, last bool) error {
	f := r.l.files
	name := SegmentName(s.first)
	if s.first != r.tree.size {
		return &CorruptError{File: name, What: fmt.Sprintf("the segment should begin at record %d", r.tree.size)}
	}
	w, err := f.fs.Open(f.path(name), false)
	if err != nil {
		return missing(name, err)
	}
	s.w = w
	if err := r.header(w, s); err != nil {
		return err
	}
	s.marks = []int64{}
	fr := newFrameReader(w, SegmentHeader, s.first, 1<<20)
	for {
		off := fr.off
		rec, err := fr.next()
		switch {
		case err == nil:
			if s.count%stride == 0 {
				s.marks = append(s.marks, off)
			}
			s.count++
			if err := r.leaf(rec); err != nil {
				return err
			}
			continue
		case errors.Is(err, io.EOF):
		case last && r.tree.size >= r.durable && (errors.Is(err, errTorn) || errors.Is(err, errSum) || errors.Is(err, errLen)):
			if err := r.cut(s, fr, err); err != nil {
				return err
			}
		default:
			return readError(name, fr, err)
		}
		break
	}
	s.size = fr.off
	if last && r.tree.size < r.durable {
		return &CorruptError{
			File: name, Offset: fr.off,
			What: fmt.Sprintf("the log ends at record %d, but %d were durable", r.tree.size, r.durable),
		}
	}
	if last {
		f.nextOff = s.size
		return nil
	}
	s.w = nil
	return w.Close()
}

// leaf adds a record to the tree and compares it with the hash file. Behind the last checkpoint the file may not have
// reached the disk: hashes that are missing or zero are computed from the records, which carry their own checksums.
func (r *recoverer) leaf(rec []byte) error {
	f := r.l.files
	at := StoredHashCount(r.tree.size)
	raw := r.tree.push(nil, leafHash(rec))
	n := int64(len(raw)) / hashSize
	have := make([]byte, len(raw))
	if at+n <= r.hashes {
		if _, err := f.hashes.ReadAt(have, at*hashSize); err != nil {
			return fmt.Errorf("tlog: read hashes: %w", err)
		}
		if string(have) == string(raw) {
			return nil
		}
	}
	if r.tree.size <= r.l.last.cp.Size || !r.unwritten(have) {
		return &CorruptError{
			File: hashFile, Offset: at * hashSize,
			What: fmt.Sprintf("not the hashes of record %d", r.tree.size-1),
		}
	}
	r.rec.HashesRebuilt += n
	if _, err := f.hashes.WriteAt(raw, at*hashSize); err != nil {
		return fmt.Errorf("tlog: rebuild hashes: %w", err)
	}
	r.hashes = max(r.hashes, at+n)
	return nil
}

// unwritten reports whether the bytes never reached the disk: all zero.
func (r *recoverer) unwritten(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// cut takes the torn end off the last segment, and keeps it in a file. A whole record behind the fault shows that the
// fault is not a torn end: the records are written in order.
func (r *recoverer) cut(s *segment, fr *frameReader, why error) error {
	f := r.l.files
	name := SegmentName(s.first)
	size, err := s.w.Size()
	if err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	if size-fr.off > 2*maxBytes {
		return readError(name, fr, why)
	}
	rest := make([]byte, size-fr.off)
	if _, err := s.w.ReadAt(rest, fr.off); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("tlog: %w", err)
	}
	if recordBehind(rest, fr.index) {
		return readError(name, fr, why)
	}
	t := Torn{File: name, Offset: fr.off, Bytes: int64(len(rest)), KeptAs: fmt.Sprintf("torn-%016x-%x", s.first, fr.off)}
	if err := replaceFile(f.fs, filepath.Join(f.dir, t.KeptAs), rest); err != nil {
		return fmt.Errorf("tlog: keep the torn end: %w", err)
	}
	if err := s.w.Truncate(fr.off); err != nil {
		return fmt.Errorf("tlog: cut the torn end: %w", err)
	}
	r.rec.Torn = append(r.rec.Torn, t)
	r.l.cfg.Logger.Warn("the log had a torn end that was never acknowledged",
		slog.String("log", r.l.origin), slog.String("file", name), slog.Int64("offset", t.Offset),
		slog.Int64("bytes", t.Bytes))
	return nil
}

// recordBehind reports whether b holds a whole frame of one of the records after index anywhere but at its start. A search
// that grows too long counts as found: the end of one write is not that large.
func recordBehind(b []byte, index int64) bool {
	const effort = 256 << 20
	spent := 0
	for at := 1; at+frameHeader < len(b); at++ {
		n := int(binary.LittleEndian.Uint32(b[at:]))
		if n <= 0 || n > MaxRecord || at+frameHeader+n > len(b) {
			continue
		}
		sum, want := recordSum(b[at+frameHeader:at+frameHeader+n]), binary.LittleEndian.Uint32(b[at+4:])
		// A frame has at least frameHeader+1 bytes, so the index is not far from here.
		far := min(int64(at/(frameHeader+1)), MaxWaiting)
		for i := index + 1; i <= index+1+far; i++ {
			if frameSum(sum, i, n) == want {
				return true
			}
		}
		if spent += n + 16*int(far); spent > effort {
			return true
		}
	}
	return false
}

// finish makes everything that was found durable, so that whatever the log promises from here on rests on it.
func (r *recoverer) finish() error {
	f := r.l.files
	if want := StoredHashCount(r.tree.size); r.hashes > want {
		if err := f.hashes.Truncate(want * hashSize); err != nil {
			return fmt.Errorf("tlog: %w", err)
		}
	}
	if root := r.l.last.cp; root.Size == r.tree.size && root.Root != r.tree.Root() {
		return &CorruptError{File: checkpointFile, What: "not the root of the records"}
	}
	if err := f.segs[len(f.segs)-1].w.Sync(); err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	r.l.tree = r.tree
	end := r.tree.size
	if err := f.writeState(func(m *mark) { m.durable = end }); err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	return f.state.Sync()
}
