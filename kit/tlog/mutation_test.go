package tlog_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"testing"

	"github.com/mcpvault/mcpvault/kit/tlog"
	"github.com/mcpvault/mcpvault/kit/tlog/check"
)

// damage is one change of a log's files. It returns what it did.
type damage func(rnd *rand.Rand, files map[string][]byte, name string) string

func pick(rnd *rand.Rand, files map[string][]byte, ok func(string) bool) string {
	var names []string
	for name := range files {
		if ok(name) {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names[rnd.IntN(len(names))]
}

func isSegment(name string) bool {
	_, ok := tlog.ParseSegmentName(name)
	return ok
}

// blind are the accidents: somebody who knows nothing of the format, or a disk.
var blind = []damage{
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		b := bytes.Clone(files[name])
		at, bit := rnd.IntN(len(b)), rnd.IntN(8)
		b[at] ^= 1 << bit
		files[name] = b
		return fmt.Sprintf("bit %d of byte %d turned", bit, at)
	},
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		b := files[name]
		at := rnd.IntN(len(b))
		files[name] = bytes.Clone(b[:at])
		return fmt.Sprintf("cut at %d of %d", at, len(b))
	},
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		b := files[name]
		at := rnd.IntN(len(b))
		files[name] = append(bytes.Clone(b[:at]), b[at+1:]...)
		return fmt.Sprintf("byte %d taken out", at)
	},
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		b := files[name]
		at := rnd.IntN(len(b) + 1)
		files[name] = append(append(bytes.Clone(b[:at]), byte(rnd.IntN(256))), b[at:]...)
		return fmt.Sprintf("byte put in at %d of %d", at, len(b))
	},
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		b := bytes.Clone(files[name])
		at := rnd.IntN(len(b))
		end := min(len(b), at+1+rnd.IntN(512))
		clear(b[at:end])
		files[name] = b
		return fmt.Sprintf("zeros in [%d, %d)", at, end)
	},
	func(_ *rand.Rand, files map[string][]byte, name string) string {
		delete(files, name)
		return "deleted"
	},
}

// sealed frames a record as the log does.
func sealed(rec []byte, index int) []byte {
	table := crc32.MakeTable(crc32.Castagnoli)
	var tail [12]byte
	binary.LittleEndian.PutUint64(tail[:], uint64(index))
	binary.LittleEndian.PutUint32(tail[8:], uint32(len(rec)))
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(rec)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Update(crc32.Checksum(rec, table), table, tail[:]))
	return append(b, rec...)
}

// rewrite takes a segment's records apart, changes the list and puts the segment together with right checksums.
func rewrite(files map[string][]byte, name string, change func(recs [][]byte) [][]byte) {
	b := files[name]
	starts := frameStarts(b)
	var recs [][]byte
	for i := range len(starts) - 1 {
		recs = append(recs, b[starts[i]+8:starts[i+1]])
	}
	first, _ := tlog.ParseSegmentName(name)
	out := bytes.Clone(b[:tlog.SegmentHeader])
	for i, rec := range change(recs) {
		out = append(out, sealed(rec, int(first)+i)...)
	}
	files[name] = out
}

// skilled are the forgeries of somebody who knows the format and makes the checksums right.
var skilled = []damage{
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		var i int
		rewrite(files, name, func(recs [][]byte) [][]byte {
			i = rnd.IntN(len(recs))
			recs[i] = append(bytes.Clone(recs[i]), '!')
			return recs
		})
		return fmt.Sprintf("record %d of the segment changed, checksums made right", i)
	},
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		var i int
		rewrite(files, name, func(recs [][]byte) [][]byte {
			i = rnd.IntN(len(recs))
			return append(recs[:i:i], recs[i+1:]...)
		})
		return fmt.Sprintf("record %d of the segment deleted, checksums made right", i)
	},
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		var i, j int
		rewrite(files, name, func(recs [][]byte) [][]byte {
			i, j = rnd.IntN(len(recs)), rnd.IntN(len(recs))
			recs[i], recs[j] = recs[j], recs[i]
			return recs
		})
		return fmt.Sprintf("records %d and %d of the segment exchanged, checksums made right", i, j)
	},
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		var i int
		rewrite(files, name, func(recs [][]byte) [][]byte {
			i = rnd.IntN(len(recs) + 1)
			return append(append(recs[:i:i], []byte("put in")), recs[i:]...)
		})
		return fmt.Sprintf("record put in before %d of the segment, checksums made right", i)
	},
	func(rnd *rand.Rand, files map[string][]byte, name string) string {
		other := pick(rnd, files, isSegment)
		files[name], files[other] = files[other], files[name]
		return "exchanged with " + other
	},
}

func load(t testing.TB, dir string) map[string][]byte {
	files := map[string][]byte{}
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		if e.Name() == "lock" {
			continue // holds nothing
		}
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func save(t testing.TB, files map[string][]byte) string {
	dir := t.TempDir()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// provablyHarmless reports whether the records, what was signed and what proves them are all as they were: nothing changed,
// or bytes were put behind the hashes of the last record, or the signing key is not here, where nothing that was signed
// needs it.
func provablyHarmless(files, original map[string][]byte) bool {
	for name, want := range original {
		got, ok := files[name]
		switch {
		case ok && bytes.Equal(got, want):
		case ok && name == "hashes" && bytes.HasPrefix(got, want):
		case !ok && name == "log.key":
		default:
			return false
		}
	}
	return len(files) <= len(original)
}

// TestAThousandMutationsAreFound changes one thing at a time in a log's directory. The checker must find each one; and
// Open, which does not read everything, must either refuse or serve exactly the records that were written.
func TestAThousandMutationsAreFound(t *testing.T) {
	t.Parallel()
	const records = 600
	dir := t.TempDir()
	l, _ := open(t, config(dir))
	for i := 0; i < records; i += 50 {
		appendAll(t, l, i, i+50)
	}
	witnessed, _, err := l.CheckpointAt(records)
	if err != nil {
		t.Fatal(err)
	}
	key := l.VerifierKey()
	closeLog(t, l)
	original := load(t, dir)

	count := 1000
	if testing.Short() {
		count = 200
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	found, harmless, refused := 0, 0, 0
	for found < count {
		files := map[string][]byte{}
		for name, b := range original {
			files[name] = b
		}
		var name, did string
		if rnd.IntN(3) == 0 {
			name = pick(rnd, files, isSegment)
			did = skilled[rnd.IntN(len(skilled))](rnd, files, name)
		} else {
			name = pick(rnd, files, func(string) bool { return true })
			did = blind[rnd.IntN(len(blind))](rnd, files, name)
		}
		broken := save(t, files)
		r, err := check.Dir(broken, check.Options{VerifierKey: key, Witnessed: [][]byte{witnessed}})
		if err != nil {
			t.Fatalf("%s: %s: %v", name, did, err)
		}
		switch {
		case !r.OK():
			found++
		case provablyHarmless(files, original):
			harmless++
		default:
			t.Fatalf("%s: %s: not found", name, did)
		}
		if openAsWritten(t, broken, records) {
			refused++
		} else if r.OK() && !provablyHarmless(files, original) {
			t.Errorf("%s: %s: opened without a fault", name, did)
		}
		_ = os.RemoveAll(broken)
	}
	t.Logf("%d found, %d changed nothing; opening or reading refused %d", found, harmless, refused)
}

// openAsWritten opens and reads a damaged log, and reports whether it was refused. Serving anything that was not written
// fails the test.
func openAsWritten(t *testing.T, dir string, want int) (refused bool) {
	t.Helper()
	l, rec, err := tlog.Open(config(dir))
	if err != nil {
		return true
	}
	defer l.Close()
	if rec.Size != int64(want) {
		t.Errorf("opened with %d records: %+v", rec.Size, rec)
	}
	for at := int64(0); at < rec.Size; {
		recs, err := l.Read(at, 100, 1<<20)
		if err != nil {
			if !errors.Is(err, tlog.ErrCorrupt) {
				t.Errorf("read from %d: %v", at, err)
			}
			return true
		}
		for _, rec := range recs {
			if !bytes.Equal(rec, record(int(at))) {
				t.Errorf("record %d was served as %q", at, rec)
			}
			at++
		}
	}
	return false
}

// TestAWholeDirectoryWrittenAnewIsFoundByTheWitness is the strongest forger: the one who has the signing key.
func TestAWholeDirectoryWrittenAnewIsFoundByTheWitness(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, _ := open(t, config(dir))
	commit(t, l, 0, 5)
	start := crashed(t, dir)
	commit(t, l, 5, 20)
	witnessed, _, err := l.CheckpointAt(20)
	if err != nil {
		t.Fatal(err)
	}
	key := l.VerifierKey()
	closeLog(t, l)
	for name, size := range map[string]int{"fork": 20, "fork and longer": 25, "cut": 12} {
		forged := crashed(t, start)
		l, _ := open(t, config(forged))
		for i := 5; i < size; i++ {
			rec := record(i)
			if name != "cut" && i == 7 {
				rec = []byte("another story")
			}
			if _, err := l.Commit(t.Context(), rec); err != nil {
				t.Fatal(err)
			}
		}
		closeLog(t, l)
		if r, err := check.Dir(forged, check.Options{VerifierKey: key}); err != nil || !r.OK() {
			t.Fatalf("%s: the forged directory contradicts itself: %v, %v", name, r.Fault, err)
		}
		r, err := check.Dir(forged, check.Options{VerifierKey: key, Witnessed: [][]byte{witnessed}})
		if err != nil || r.OK() {
			t.Fatalf("%s: not found: %v", name, err)
		}
		t.Logf("%s: %v", name, r.Fault)
	}
}
