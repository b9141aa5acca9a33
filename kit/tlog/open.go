package tlog

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// Recovery tells what Open found.
type Recovery struct {
	// Created says that the directory was new: a new incarnation with a new key.
	Created bool
	Origin  string
	// Size is the number of records, all of them durable now.
	Size int64
	// Torn are the bytes at the end that were never acknowledged as durable and are not whole records. They were kept in a
	// file beside the log.
	Torn []Torn
	// HashesRebuilt is how many hashes behind the last checkpoint were computed again from their records.
	HashesRebuilt int64
	// Replayed records had their place and were not written when the process was killed; they come from the ring.
	Replayed int64
	Took     time.Duration
}

// Torn is an end that was cut off.
type Torn struct {
	File   string
	Offset int64
	Bytes  int64
	// KeptAs is the file with the bytes.
	KeptAs string
}

// Open opens the log in a directory, or begins a new one, and starts to write. The tail is recovered: what was appended and
// not acknowledged as durable may be torn, and is cut off and reported. Anything else that is not as it was written is a
// *CorruptError, and nothing is changed.
func Open(cfg Config) (*Log, Recovery, error) {
	began := time.Now()
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, Recovery{}, err
	}
	if err := cfg.FS.Mkdir(cfg.Dir); err != nil {
		return nil, Recovery{}, fmt.Errorf("tlog: %w", err)
	}
	lock, err := cfg.FS.Lock(filepath.Join(cfg.Dir, lockName))
	if err != nil {
		return nil, Recovery{}, fmt.Errorf("tlog: %w", err)
	}
	l := &Log{
		cfg: cfg, lock: lock, quit: make(chan struct{}), kickCP: make(chan struct{}, 1),
		files: &files{fs: cfg.FS, dir: cfg.Dir},
	}
	rec, err := l.recover()
	if errors.Is(err, syscall.ENOSPC) && cfg.FS.Remove(l.files.path(reserveFile)) == nil {
		// The disk is full: recovery gets the reserve.
		err = l.files.close()
		l.files, l.tree = &files{fs: cfg.FS, dir: cfg.Dir}, Tree{}
		if err == nil {
			rec, err = l.recover()
		}
	}
	if err != nil {
		return nil, Recovery{}, errors.Join(err, l.files.close(), lock.Close())
	}
	l.durable, l.written = l.tree.size, l.tree.size
	if cfg.Reserve > 0 {
		if err := makeReserve(cfg.FS, l.files.path(reserveFile), cfg.Reserve); err != nil {
			l.noReserve = true
			cfg.Logger.Warn("no room for the log's reserve", slog.String("log", l.origin), slog.String("error", err.Error()))
		}
	}
	if cfg.RingDir != "-" {
		sweepRings(cfg.RingDir)
		if l.ring, err = openRing(cfg.RingDir, cfg.Dir, l.origin); err != nil {
			cfg.Logger.Warn("no ring: appended records do not survive SIGKILL until they are written",
				slog.String("log", l.origin), slog.String("error", err.Error()))
		}
	}
	rec.Replayed, err = l.replay()
	if err != nil {
		return nil, Recovery{}, errors.Join(err, l.Close())
	}
	rec.Origin, rec.Size, rec.Took = l.origin, l.tree.size, time.Since(began)
	return l, rec, nil
}

// replay starts the log and appends what the ring held. The ring is used again when all of it is on disk.
func (l *Log) replay() (int64, error) {
	ring := l.ring
	l.ring = nil
	l.start()
	if ring == nil {
		return 0, nil
	}
	recs := ring.left(l.tree.size)
	for _, rec := range recs {
		if _, err := l.Append(rec); err != nil {
			return 0, fmt.Errorf("tlog: replay the ring: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*l.cfg.WriteTimeout)
	defer cancel()
	if err := l.Sync(ctx); err != nil {
		// They have their place in memory now, and the ring keeps them until a process finds a disk that takes them.
		l.cfg.Logger.Warn("what the ring held is not on disk yet", slog.String("log", l.origin), slog.String("error", err.Error()))
		return int64(len(recs)), nil
	}
	l.mu.Lock()
	l.ring = ring
	l.mu.Unlock()
	return int64(len(recs)), nil
}

// recover reads what is on disk and leaves the log ready to write.
func (l *Log) recover() (rec Recovery, err error) {
	names, err := l.files.fs.List(l.cfg.Dir)
	if err != nil {
		return rec, fmt.Errorf("tlog: %w", err)
	}
	var firsts []int64
	has := map[string]bool{}
	for _, n := range names {
		has[n] = true
		if first, ok := ParseSegmentName(n); ok {
			firsts = append(firsts, first)
		}
	}
	sort.Slice(firsts, func(i, j int) bool { return firsts[i] < firsts[j] })
	if !has[publicFile] {
		if len(firsts) > 0 || has[checkpointFile] {
			return rec, &CorruptError{File: publicFile, What: "the file is missing beside a log"}
		}
		rec.Created = true
		if err := l.create(); err != nil {
			return rec, fmt.Errorf("tlog: create: %w", err)
		}
		firsts = []int64{0}
	}
	if err := l.loadKeys(); err != nil {
		return rec, err
	}
	if err := l.files.open(firsts); err != nil {
		return rec, err
	}
	if err := l.loadCheckpoint(); err != nil {
		return rec, err
	}
	r := recoverer{l: l, rec: &rec}
	return rec, r.run()
}

// create makes the files of an empty log. The public key is last: without it there is no log yet.
func (l *Log) create() error {
	f := l.files
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	origin := l.cfg.Prefix + "/" + hex.EncodeToString(id[:])
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return fmt.Errorf("prefix %q cannot be a note's name: %w", l.cfg.Prefix, err)
	}
	cp := Checkpoint{Origin: origin, Root: (&Tree{}).Root()}
	signed, err := note.Sign(&note.Note{Text: cp.text()}, signer)
	if err != nil {
		return err
	}
	for _, c := range []struct {
		path    string
		content []byte
	}{
		{l.keyPath(), []byte(skey + "\n")},
		{f.path(stateFile), mark{}.encode()},
		{f.path(hashFile), nil},
		{f.path(SegmentName(0)), segmentHeader(origin, 0)},
		{f.path(checkpointFile), signed},
		{f.path(publicFile), []byte(vkey + "\n")},
	} {
		if err := replaceFile(f.fs, c.path, c.content); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) keyPath() string {
	if l.cfg.KeyFile != "" {
		return l.cfg.KeyFile
	}
	return l.files.path(privateFile)
}

// loadKeys reads the log's identity.
func (l *Log) loadKeys() error {
	pub, err := readAll(l.files.fs, l.files.path(publicFile), MaxCheckpoint)
	if err != nil {
		return missing(publicFile, err)
	}
	vkey, ok := strings.CutSuffix(string(pub), "\n")
	if !ok {
		return &CorruptError{File: publicFile, Offset: int64(len(pub)), What: "the line does not end"}
	}
	if l.verifier, err = note.NewVerifier(vkey); err != nil {
		return &CorruptError{File: publicFile, What: err.Error()}
	}
	l.vkey, l.origin = vkey, l.verifier.Name()
	l.files.origin = l.origin
	if !strings.HasPrefix(l.origin, l.cfg.Prefix+"/") {
		return fmt.Errorf("tlog: %s holds the log %s, not one of %s", l.cfg.Dir, l.origin, l.cfg.Prefix)
	}
	priv, err := readAll(l.files.fs, l.keyPath(), MaxCheckpoint)
	if err != nil {
		return missing(filepath.Base(l.keyPath()), err)
	}
	skey, ok := strings.CutSuffix(string(priv), "\n")
	if l.signer, err = note.NewSigner(skey); err != nil || !ok {
		return &CorruptError{File: filepath.Base(l.keyPath()), What: "not a note signer key"}
	}
	if l.signer.Name() != l.origin || l.signer.KeyHash() != l.verifier.KeyHash() {
		return &CorruptError{File: filepath.Base(l.keyPath()), What: "not the key of " + l.origin}
	}
	return nil
}

func missing(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &CorruptError{File: name, What: "the file is missing"}
	}
	return fmt.Errorf("tlog: read %s: %w", name, err)
}

// loadCheckpoint reads the last checkpoint and compares it with the hash file.
func (l *Log) loadCheckpoint() error {
	signed, err := readAll(l.files.fs, l.files.path(checkpointFile), MaxCheckpoint)
	if err != nil {
		return missing(checkpointFile, err)
	}
	cp, err := openCheckpoint(signed, l.verifier)
	if err != nil {
		return &CorruptError{File: checkpointFile, What: err.Error()}
	}
	root, err := TreeRoot(cp.Size, l.files)
	if err != nil {
		return err
	}
	if root != cp.Root {
		return &CorruptError{
			File: hashFile,
			What: fmt.Sprintf("the root of the first %d records is not that of the checkpoint", cp.Size),
		}
	}
	l.last.set(signed, cp, time.Now())
	return nil
}

// open opens the files whose names were found.
func (f *files) open(firsts []int64) (err error) {
	if f.state, err = f.fs.Open(f.path(stateFile), false); err != nil {
		return missing(stateFile, err)
	}
	b, err := readAll(f.fs, f.path(stateFile), stateSize)
	if err != nil {
		return missing(stateFile, err)
	}
	if f.mark.durable, f.mark.floor, err = ParseState(b); err != nil {
		return err
	}
	if f.hashes, err = f.fs.Open(f.path(hashFile), false); err != nil {
		return missing(hashFile, err)
	}
	// Pruning may have been cut short: what ends at or below the floor goes now.
	for len(firsts) > 1 && firsts[1] <= f.mark.floor {
		if err := f.fs.Remove(f.path(SegmentName(firsts[0]))); err != nil {
			return fmt.Errorf("tlog: prune: %w", err)
		}
		firsts = firsts[1:]
	}
	if len(firsts) == 0 || firsts[0] != f.mark.floor {
		return &CorruptError{File: SegmentName(f.mark.floor), What: "the segment is missing"}
	}
	for _, first := range firsts {
		f.segs = append(f.segs, &segment{first: first})
	}
	return nil
}

// recoverer walks over the end of the log, from the segment that holds the last checkpoint's size on.
type recoverer struct {
	l    *Log
	rec  *Recovery
	tree Tree
	// durable is what was acknowledged for certain.
	durable int64
	hashes  int64 // stored hashes that the file has
}

func (r *recoverer) run() error {
	f, cp := r.l.files, r.l.last.cp
	r.durable = max(f.mark.durable, cp.Size)
	size, err := f.hashes.Size()
	if err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	r.hashes = size / hashSize
	from := len(f.segs) - 1
	for from > 0 && f.segs[from].first >= cp.Size {
		from--
	}
	if f.segs[from].first > cp.Size {
		return &CorruptError{File: checkpointFile, What: "the checkpoint is older than the first record kept"}
	}
	for _, s := range f.segs[:from] {
		if err := r.sealed(s); err != nil {
			return err
		}
	}
	if r.tree, err = LoadTree(f.segs[from].first, f); err != nil {
		return err
	}
	for i := from; i < len(f.segs); i++ {
		last := i == len(f.segs)-1
		if last && i > from && r.tornHeader(f.segs[i]) {
			if err := r.dropSegment(f.segs[i]); err != nil {
				return err
			}
			f.segs = f.segs[:i]
			break
		}
		if err := r.walk(f.segs[i], last); err != nil {
			return err
		}
	}
	return r.finish()
}

// sealed looks at a segment that is not walked: its header and its size.
func (r *recoverer) sealed(s *segment) error {
	f := r.l.files
	w, err := f.fs.Open(f.path(SegmentName(s.first)), false)
	if err != nil {
		return missing(SegmentName(s.first), err)
	}
	defer func() { _ = w.Close() }()
	if err := r.header(w, s); err != nil {
		return err
	}
	s.size, err = w.Size()
	return err
}

func (r *recoverer) header(w File, s *segment) error {
	var h [SegmentHeader]byte
	n, _ := w.ReadAt(h[:], 0)
	if err := checkSegmentHeader(h[:n], r.l.origin, s.first); err != nil {
		return &CorruptError{File: SegmentName(s.first), What: err.Error()}
	}
	return nil
}

// tornHeader reports whether the last segment was only being made when the process ended.
func (r *recoverer) tornHeader(s *segment) bool {
	f := r.l.files
	if s.first != r.tree.size || r.durable > s.first {
		return false
	}
	w, err := f.fs.Open(f.path(SegmentName(s.first)), false)
	if err != nil {
		return false
	}
	defer func() { _ = w.Close() }()
	size, err := w.Size()
	if err != nil || size > SegmentHeader {
		return false
	}
	b := make([]byte, size)
	_, _ = w.ReadAt(b, 0)
	return !bytes.Equal(b, segmentHeader(r.l.origin, s.first)) &&
		(bytes.HasPrefix(segmentHeader(r.l.origin, s.first), b) || len(bytes.Trim(b, "\x00")) == 0)
}

func (r *recoverer) dropSegment(s *segment) error {
	f := r.l.files
	name := SegmentName(s.first)
	r.rec.Torn = append(r.rec.Torn, Torn{File: name})
	if err := f.fs.Remove(f.path(name)); err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	prev := f.segs[len(f.segs)-2]
	w, err := f.fs.Open(f.path(SegmentName(prev.first)), false)
	if err != nil {
		return fmt.Errorf("tlog: %w", err)
	}
	prev.w, f.nextOff = w, prev.size
	return f.fs.SyncDir(f.dir)
}
