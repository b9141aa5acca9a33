package tlog

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// FuzzSegment reads any bytes as a segment: every record that comes out is one whose sum is right, and the place where it
// ends is inside of the bytes.
func FuzzSegment(f *testing.F) {
	var b []byte
	for i, rec := range [][]byte{[]byte("a"), bytes.Repeat([]byte("b"), 300), []byte("c")} {
		b = appendFrame(b, int64(i), rec, recordSum(rec))
	}
	f.Add(b, 7)
	f.Add(b[:len(b)-1], 64)
	f.Add(append(bytes.Clone(b), 0, 0, 0, 0, 0, 0, 0, 0), 1)
	f.Add([]byte{0xff, 0xff, 0xff, 0x7f, 1, 2, 3, 4, 5}, 16)
	f.Fuzz(func(t *testing.T, b []byte, chunk int) {
		if chunk < 1 || chunk > 1<<16 {
			return
		}
		r := newFrameReader(bytes.NewReader(b), 0, 0, chunk)
		var again []byte
		for {
			rec, err := r.next()
			if err != nil {
				if err == io.EOF && r.off != int64(len(b)) { //nolint:errorlint // the reader's own sentinel
					t.Fatalf("a clean end at %d of %d", r.off, len(b))
				}
				break
			}
			again = appendFrame(again, r.index-1, rec, recordSum(rec))
		}
		if !bytes.Equal(again, b[:r.off]) {
			t.Fatal("what was read is not what is there")
		}
		_ = recordBehind(b, 0)
	})
}

// FuzzCheckpoint reads any bytes as a checkpoint, signed and unsigned, and as a state file.
func FuzzCheckpoint(f *testing.F) {
	skey, vkey, err := note.GenerateKey(bytes.NewReader(make([]byte, 64)), "mcpvault/audit/c/n/0")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		f.Fatal(err)
	}
	cp := Checkpoint{Origin: signer.Name(), Size: 12, Root: LeafHash([]byte("x"))}
	signed, err := note.Sign(&note.Note{Text: cp.text()}, signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add([]byte(cp.text()))
	f.Add([]byte(cp.text() + "extension\n"))
	f.Add(mark{durable: 9, floor: 3}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := OpenCheckpoint(b, vkey); err == nil && got != cp {
			t.Fatalf("%+v was never signed", got)
		}
		if got, err := ParseCheckpoint(string(b)); err == nil && !bytes.HasPrefix(b, []byte(got.text())) {
			t.Fatalf("%q read as %+v", b, got)
		}
		if durable, floor, err := ParseState(b); err == nil && !bytes.Equal(b, mark{durable, floor}.encode()) {
			t.Fatal("two ways to write one state")
		}
	})
}

// FuzzOpen opens a log whose last segment is any bytes behind a good beginning: it opens with the records that were there
// and no others, or refuses.
func FuzzOpen(f *testing.F) {
	f.Add([]byte("garbage at the end"), 3)
	f.Add(appendFrame(nil, 5, []byte("six"), recordSum([]byte("six"))), 0)
	f.Add(make([]byte, 100), 1)
	template := f.TempDir()
	l, _, err := Open(Config{Dir: template, Prefix: "p", RingDir: "-"})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 5 {
		if _, err := l.Append([]byte{byte('a' + i)}); err != nil {
			f.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	names, err := (Disk{}).List(template)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, tail []byte, back int) {
		dir := t.TempDir()
		for _, name := range names {
			b, err := os.ReadFile(filepath.Join(template, name))
			if err != nil {
				t.Fatal(err)
			}
			if name == SegmentName(0) {
				b = append(b[:len(b)-max(0, min(back, len(b)))], tail...)
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		l, rec, err := Open(Config{Dir: dir, Prefix: "p", RingDir: "-"})
		if err != nil {
			return
		}
		defer l.Close()
		if rec.Size < 5 {
			t.Fatalf("%d of 5 durable records", rec.Size)
		}
		recs, err := l.Read(0, 5, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for i, rec := range recs {
			if string(rec) != string(rune('a'+i)) {
				t.Fatalf("record %d is %q", i, rec)
			}
		}
	})
}

func TestTreeAgreesWithTheLibrary(t *testing.T) {
	t.Parallel()
	var stored []Hash
	read := HashReaderFunc(func(at []int64) ([]Hash, error) {
		out := make([]Hash, len(at))
		for i, n := range at {
			out[i] = stored[n]
		}
		return out, nil
	})
	var tree Tree
	for n := range int64(1100) {
		if root, err := TreeRoot(n, read); err != nil || root != tree.Root() {
			t.Fatalf("root of %d: %v", n, err)
		}
		if loaded, err := LoadTree(n, read); err != nil || loaded.Root() != tree.Root() || loaded.Size() != n {
			t.Fatalf("load %d: %v", n, err)
		}
		stored = append(stored, tree.Push(LeafHash([]byte{byte(rand.IntN(256)), byte(n), byte(n >> 8)}))...)
		if int64(len(stored)) != StoredHashCount(n+1) {
			t.Fatalf("%d hashes after %d records", len(stored), n+1)
		}
	}
}

func TestTheRingGivesBackWhatIsNotWritten(t *testing.T) {
	t.Parallel()
	dir := "/dev/shm"
	if _, err := os.Stat(dir); err != nil {
		t.Skip("no tmpfs here")
	}
	logDir := t.TempDir()
	name := filepath.Join(dir, RingFile(logDir))
	defer os.Remove(name)
	r, err := openRing(dir, logDir, "origin")
	if err != nil {
		t.Skip(err)
	}
	put := func(first int64, n int) *slot {
		s := r.take(first)
		for i := range n {
			rec := []byte{'r', byte(first) + byte(i)}
			s.put(appendFrame(nil, first+int64(i), rec, recordSum(rec)))
		}
		return s
	}
	a := put(10, 5)
	put(15, 3)
	r.give(a)
	put(18, 2) // takes the slot of the first batch again, and leaves some of its frames behind its own
	if got := r.left(15); len(got) != 5 || got[0][1] != 15 || got[4][1] != 19 {
		t.Fatalf("left from 15: %v", got)
	}
	if got := r.left(10); len(got) != 0 {
		t.Fatalf("there is a gap, and yet: %v", got)
	}
	sweepRings(dir)
	if err := r.close(false); err != nil {
		t.Fatal(err)
	}
	if r, err = openRing(dir, logDir, "origin"); err != nil {
		t.Fatal(err)
	}
	if got := r.left(17); len(got) != 3 {
		t.Fatalf("the next process finds %v", got)
	}
	_ = r.close(false)
	if r, err = openRing(dir, logDir, "another log"); err != nil {
		t.Fatal(err)
	}
	if got := r.left(17); len(got) != 0 {
		t.Fatalf("another log finds %v", got)
	}
	_ = r.close(false)
	sweepRings(dir)
	if _, err := os.Stat(name); err != nil {
		t.Fatalf("the ring of a log that is there was swept away: %v", err)
	}
	if err := os.Remove(logDir); err != nil {
		t.Fatal(err)
	}
	sweepRings(dir)
	if _, err := os.Stat(name); err == nil {
		t.Fatal("the ring of a log that is gone stayed")
	}
}
