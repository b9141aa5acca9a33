package tlog

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"
)

// MaxCheckpoint bounds the bytes of a signed checkpoint.
const MaxCheckpoint = 4096

// Checkpoint says which root the log had at a size.
type Checkpoint struct {
	Origin string
	Size   int64
	Root   Hash
}

// text is the note's body (C2SP tlog-checkpoint): origin, size, root.
func (c Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", c.Origin, c.Size, base64.StdEncoding.EncodeToString(c.Root[:]))
}

// ParseCheckpoint reads the body of a checkpoint without looking at signatures. Lines after the third are extensions, which
// are ignored.
func ParseCheckpoint(text string) (Checkpoint, error) {
	if len(text) > MaxCheckpoint {
		return Checkpoint{}, errors.New("tlog: checkpoint is too large")
	}
	lines := strings.SplitN(text, "\n", 4)
	if len(lines) < 4 || lines[0] == "" {
		return Checkpoint{}, errors.New("tlog: checkpoint has fewer than three lines")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return Checkpoint{}, fmt.Errorf("tlog: checkpoint size %.32q is not a number", lines[1])
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != hashSize {
		return Checkpoint{}, errors.New("tlog: checkpoint root is not a hash")
	}
	return Checkpoint{Origin: lines[0], Size: size, Root: Hash(root)}, nil
}

// OpenCheckpoint verifies a signed checkpoint with the verifier key, whose name must be the origin.
func OpenCheckpoint(signed []byte, verifierKey string) (Checkpoint, error) {
	if len(signed) > MaxCheckpoint {
		return Checkpoint{}, errors.New("tlog: checkpoint is too large")
	}
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("tlog: verifier key: %w", err)
	}
	return openCheckpoint(signed, v)
}

func openCheckpoint(signed []byte, v note.Verifier) (Checkpoint, error) {
	n, err := note.Open(signed, note.VerifierList(v))
	if err != nil {
		return Checkpoint{}, fmt.Errorf("tlog: checkpoint: %w", err)
	}
	c, err := ParseCheckpoint(n.Text)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Origin != v.Name() {
		return Checkpoint{}, fmt.Errorf("tlog: checkpoint of %q is signed by %q", c.Origin, v.Name())
	}
	return c, nil
}

// OriginOf returns the name in a verifier key.
func OriginOf(verifierKey string) (string, error) {
	v, err := note.NewVerifier(verifierKey)
	if err != nil {
		return "", fmt.Errorf("tlog: verifier key: %w", err)
	}
	return v.Name(), nil
}

// lastCheckpoint is the newest one that was persisted.
type lastCheckpoint struct {
	mu     sync.Mutex
	signed []byte
	cp     Checkpoint
	at     time.Time
}

func (c *lastCheckpoint) set(signed []byte, cp Checkpoint, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.signed, c.cp, c.at = signed, cp, at
}

func (c *lastCheckpoint) get() (int64, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cp.Size, c.at
}

func (c *lastCheckpoint) size() int64 {
	n, _ := c.get()
	return n
}

// Checkpoint returns the newest persisted checkpoint and its signed form.
func (l *Log) Checkpoint() ([]byte, Checkpoint) {
	l.last.mu.Lock()
	defer l.last.mu.Unlock()
	return l.last.signed, l.last.cp
}

// CheckpointAt signs the tree of the given size, which must be durable. What was signed holds for ever: the log can only
// go on from it.
func (l *Log) CheckpointAt(size int64) ([]byte, Checkpoint, error) {
	if size < 0 || size > l.Durable() {
		return nil, Checkpoint{}, fmt.Errorf("%w: checkpoint at %d", ErrRange, size)
	}
	root, err := TreeRoot(size, l.files)
	if err != nil {
		return nil, Checkpoint{}, err
	}
	cp := Checkpoint{Origin: l.origin, Size: size, Root: root}
	signed, err := note.Sign(&note.Note{Text: cp.text()}, l.signer)
	return signed, cp, err
}

// ProveRecord proves that the tree of the given size holds the record at index.
func (l *Log) ProveRecord(size, index int64) ([]Hash, error) {
	if size > l.Durable() {
		return nil, ErrRange
	}
	return ProveRecord(size, index, l.files)
}

// ProveTree proves that the tree of size to begins with the tree of size from. A proof that does not hold means that the
// hash file was changed, and is a *CorruptError.
func (l *Log) ProveTree(to, from int64) ([]Hash, error) {
	if to > l.Durable() {
		return nil, ErrRange
	}
	proof, err := ProveTree(to, from, l.files)
	if err != nil {
		return nil, err
	}
	toRoot, err := TreeRoot(to, l.files)
	if err != nil {
		return nil, err
	}
	fromRoot, err := TreeRoot(from, l.files)
	if err != nil {
		return nil, err
	}
	if err := CheckTree(proof, to, toRoot, from, fromRoot); err != nil {
		return nil, &CorruptError{File: hashFile, What: fmt.Sprintf("trees of %d and %d do not agree", from, to)}
	}
	return proof, nil
}

// runCheckpointer signs what is durable, at least every CheckpointEvery while records come.
func (l *Log) runCheckpointer() {
	tick := time.NewTicker(l.cfg.CheckpointEvery)
	defer tick.Stop()
	complained := false
	for {
		select {
		case <-l.quit:
			return
		case <-l.kickCP:
		case <-tick.C:
			l.restoreReserve()
			if l.Size() > l.Durable() {
				_ = l.Sync(context.Background()) // a failure has been logged by whom it hit
			}
		}
		err := l.persist()
		if err != nil && !complained {
			l.cfg.Logger.Error("the log's checkpoint could not be written",
				slog.String("log", l.origin), slog.String("error", err.Error()))
		}
		complained = err != nil
	}
}

// persist writes a checkpoint of what is durable. The hashes below it are durable before it is.
func (l *Log) persist() error {
	size := l.Durable()
	if size == l.last.size() {
		return nil
	}
	signed, cp, err := l.CheckpointAt(size)
	if err != nil {
		return err
	}
	if err := l.files.hashes.Sync(); err != nil {
		return err
	}
	err = replaceFile(l.files.fs, l.files.path(checkpointFile), signed)
	if errors.Is(err, syscall.ENOSPC) && l.giveUpReserve() {
		err = replaceFile(l.files.fs, l.files.path(checkpointFile), signed)
	}
	if err != nil {
		return err
	}
	l.last.set(signed, cp, time.Now())
	return nil
}

// giveUpReserve gives the ballast back to a full disk; false when there was none left.
func (l *Log) giveUpReserve() bool {
	l.mu.Lock()
	had := l.cfg.Reserve > 0 && !l.noReserve
	l.noReserve = l.cfg.Reserve > 0
	l.mu.Unlock()
	if !had {
		return false
	}
	l.cfg.Logger.Warn("the disk is full: the log uses its reserve", slog.String("log", l.origin))
	return l.files.fs.Remove(l.files.path(reserveFile)) == nil
}

// restoreReserve makes the ballast again when there is room for it.
func (l *Log) restoreReserve() {
	l.mu.Lock()
	missing := l.noReserve
	l.mu.Unlock()
	if !missing {
		return
	}
	if err := makeReserve(l.files.fs, l.files.path(reserveFile), l.cfg.Reserve); err == nil {
		l.mu.Lock()
		l.noReserve = false
		l.mu.Unlock()
	}
}

func makeReserve(fsys FS, name string, size int64) error {
	f, err := fsys.Open(name, true)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	err = f.Allocate(size)
	if errors.Is(err, errors.ErrUnsupported) {
		err = fill(f, size)
	}
	if err != nil {
		_ = fsys.Remove(name)
		return err
	}
	return nil
}

// fill takes room on a file system that reserves none.
func fill(f File, size int64) error {
	zeros := make([]byte, 64<<10)
	for at := int64(0); at < size; at += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(size-at, int64(len(zeros)))], at); err != nil {
			return err
		}
	}
	return nil
}
