package check

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/mcpvault/mcpvault/kit/tlog"
)

func emptyRoot() tlog.Hash { return sha256.Sum256(nil) }

const hashSize = sha256.Size

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Options of Dir.
type Options struct {
	// VerifierKey is the key that the log is known to have; the directory's own when empty, which then proves nothing against
	// somebody who wrote the whole directory anew.
	VerifierKey string
	// Witnessed are checkpoints that somebody else kept.
	Witnessed [][]byte
}

// Dir proves a log's directory, that of a running log included: records that are not acknowledged yet may come while it is
// read. The error says that it could not be read; everything that is wrong is the report's Fault.
func Dir(dir string, opts Options) (Report, error) {
	d := &dirCheck{dir: dir}
	err := d.run(opts)
	var fault *Fault
	if errors.As(err, &fault) {
		d.report.Fault, err = fault, nil
	}
	d.report.Size, d.report.Root = d.tree.n, d.tree.root()
	return d.report, err
}

type dirCheck struct {
	dir     string
	report  Report
	sigs    *signatures
	own     int64 // size of the directory's own checkpoint
	durable int64
	tree    tree
	hashes  *os.File
	stored  int64 // size of the hash file before the segments were read
	next    int64 // place of the next hash
}

func (d *dirCheck) run(opts Options) error {
	if err := d.open(opts); err != nil {
		return err
	}
	defer func() { _ = d.hashes.Close() }()
	firsts, err := d.segments()
	if err != nil {
		return err
	}
	if err := d.start(); err != nil {
		return err
	}
	for i, first := range firsts {
		if first != d.tree.n {
			return &Fault{
				Kind: Missing, File: tlog.SegmentName(first), Index: d.tree.n,
				What: fmt.Sprintf("the segment should begin at record %d", d.tree.n),
			}
		}
		if err := d.segment(first, i == len(firsts)-1); err != nil {
			return err
		}
	}
	return d.finish()
}

// open reads the small files. The checkpoint is read before the state, and both before the records: each can only be older
// than what comes after it.
func (d *dirCheck) open(opts Options) error {
	key, err := d.small("log.pub")
	if err != nil {
		return err
	}
	vkey, ok := strings.CutSuffix(string(key), "\n")
	if !ok || (opts.VerifierKey != "" && opts.VerifierKey != vkey) {
		return &Fault{Kind: Changed, File: "log.pub", Index: -1, What: "not the log's verifier key"}
	}
	if d.report.Origin, err = tlog.OriginOf(vkey); err != nil {
		return &Fault{Kind: Changed, File: "log.pub", Index: -1, What: err.Error()}
	}
	d.report.VerifierKey = vkey
	if err := d.privateKey(vkey); err != nil {
		return err
	}
	signed, err := d.small("checkpoint")
	if err != nil {
		return err
	}
	cp, err := tlog.OpenCheckpoint(signed, vkey)
	if err != nil {
		return &Fault{Kind: Unsigned, File: "checkpoint", Index: -1, What: err.Error()}
	}
	d.own = cp.Size
	var fault *Fault
	d.sigs, fault = openAll(vkey, append([][]byte{signed}, opts.Witnessed...))
	d.report.Checkpoints, d.report.Signed = d.sigs.count, d.sigs.largest()
	if fault != nil {
		return fault
	}
	state, err := d.small("state")
	if err != nil {
		return err
	}
	if d.durable, d.report.First, err = tlog.ParseState(state); err != nil {
		return &Fault{Kind: Changed, File: "state", Index: -1, What: err.Error()}
	}
	if d.durable < cp.Size {
		// A power cut may have taken the last writes of the mark; what was signed is durable all the same.
		d.durable = cp.Size
	}
	if d.hashes, err = os.Open(filepath.Join(d.dir, "hashes")); err != nil {
		return gone("hashes", err)
	}
	st, err := d.hashes.Stat()
	if err != nil {
		return err
	}
	d.stored = st.Size()
	return nil
}

// privateKey looks whether the signing key, when it is here, is that of the log.
func (d *dirCheck) privateKey(vkey string) error {
	b, err := os.ReadFile(filepath.Join(d.dir, "log.key"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil // kept elsewhere, or not for this reader
	}
	if err != nil {
		return err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return err
	}
	s, err := note.NewSigner(strings.TrimSuffix(string(b), "\n"))
	if err != nil || s.Name() != v.Name() || s.KeyHash() != v.KeyHash() || !strings.HasSuffix(string(b), "\n") {
		return &Fault{Kind: Changed, File: "log.key", Index: -1, What: "not the log's signing key"}
	}
	return nil
}

func (d *dirCheck) small(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(d.dir, name))
	if err != nil {
		return nil, gone(name, err)
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, 2*tlog.MaxCheckpoint))
}

func gone(name string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return &Fault{Kind: Missing, File: name, Index: -1, What: "the file is missing"}
	}
	return err
}

// segments lists the segments, without those that an interrupted pruning left behind.
func (d *dirCheck) segments() ([]int64, error) {
	es, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, err
	}
	var firsts []int64
	for _, e := range es {
		if first, ok := tlog.ParseSegmentName(e.Name()); ok && first >= d.report.First {
			firsts = append(firsts, first)
		} else if !ok && strings.HasSuffix(e.Name(), ".seg") {
			return nil, &Fault{Kind: Changed, File: e.Name(), Index: -1, What: "not the name of a segment"}
		}
	}
	sort.Slice(firsts, func(i, j int) bool { return firsts[i] < firsts[j] })
	if len(firsts) == 0 {
		return nil, &Fault{Kind: Missing, File: tlog.SegmentName(d.report.First), Index: -1, What: "the segment is missing"}
	}
	return firsts, nil
}

// start takes the tree at the first record kept from the hash file: the checkpoints prove it later.
func (d *dirCheck) start() error {
	n := d.report.First
	for level, lo := 62, int64(0); level >= 0; level-- {
		if n&(1<<level) == 0 {
			continue
		}
		at := tlog.StoredHashIndex(level, lo>>level)
		var h tlog.Hash
		if _, err := d.hashes.ReadAt(h[:], at*hashSize); err != nil {
			return &Fault{Kind: Truncated, File: "hashes", Offset: at * hashSize, Index: -1, What: "the file ends before this hash"}
		}
		d.tree.roots = append(d.tree.roots, h)
		lo += 1 << level
	}
	d.tree.n = n
	d.next = tlog.StoredHashCount(n)
	if f := d.sigs.check(&d.tree); f != nil {
		return f
	}
	return d.pruned()
}

// pruned computes the inner hashes again from the leaf hashes of records that are not here any more.
func (d *dirCheck) pruned() error {
	var t tree
	for at := int64(0); t.n < d.report.First; {
		var leaf tlog.Hash
		if _, err := d.hashes.ReadAt(leaf[:], at*hashSize); err != nil {
			return fmt.Errorf("read hashes: %w", err)
		}
		for _, want := range t.add(leaf) {
			if err := d.sameHash(at, want, t.n-1); err != nil {
				return err
			}
			at++
		}
	}
	if d.report.First > 0 && t.root() != d.tree.root() {
		return &Fault{Kind: Changed, File: "hashes", Index: -1, What: "hashes of pruned records do not make the tree"}
	}
	return nil
}

func (d *dirCheck) sameHash(at int64, want tlog.Hash, index int64) error {
	var have tlog.Hash
	n, err := d.hashes.ReadAt(have[:], at*hashSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read hashes: %w", err)
	}
	if n == hashSize && have == want {
		return nil
	}
	if index >= d.own && (n < hashSize || have == tlog.Hash{}) {
		return nil // derived from records that are here; recovery computes it again
	}
	return &Fault{Kind: Changed, File: "hashes", Offset: at * hashSize, Index: index, What: "not the hash of the records"}
}

// segment reads one file of records.
func (d *dirCheck) segment(first int64, last bool) error {
	name := tlog.SegmentName(first)
	b, err := os.ReadFile(filepath.Join(d.dir, name))
	if err != nil {
		return gone(name, err)
	}
	origin := tlog.LeafHash([]byte(d.report.Origin))
	if len(b) < tlog.SegmentHeader || string(b[:8]) != "mvtlog1\n" || binary.LittleEndian.Uint64(b[8:]) != uint64(first) ||
		string(b[16:28]) != string(origin[:12]) || binary.LittleEndian.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) {
		if last && first >= d.durable && len(b) <= tlog.SegmentHeader {
			d.report.Torn += int64(len(b))
			return nil
		}
		return &Fault{Kind: Changed, File: name, Index: first, What: "not the header of this segment"}
	}
	for off := tlog.SegmentHeader; off < len(b); {
		rec, size, what := frame(b[off:], d.tree.n)
		if what != "" {
			if last && d.tree.n >= d.durable {
				d.report.Torn += int64(len(b) - off)
				return nil
			}
			return &Fault{Kind: Changed, File: name, Offset: int64(off), Index: d.tree.n, What: what}
		}
		if err := d.record(rec); err != nil {
			return err
		}
		off += size
	}
	return nil
}

// record adds a record to the tree, and compares the hashes on disk and the signatures with it.
func (d *dirCheck) record(rec []byte) error {
	index := d.tree.n
	for _, h := range d.tree.add(tlog.LeafHash(rec)) {
		if err := d.sameHash(d.next, h, index); err != nil {
			return err
		}
		d.next++
	}
	if f := d.sigs.check(&d.tree); f != nil {
		return f
	}
	return nil
}

// frame reads one record: length, checksum over record, index and length, record.
func frame(b []byte, index int64) (rec []byte, size int, what string) {
	if len(b) < 8 {
		return nil, 0, "the file ends inside a record"
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > tlog.MaxRecord {
		return nil, 0, "the record's length is impossible"
	}
	if uint32(len(b)-8) < n {
		return nil, 0, "the file ends inside a record"
	}
	summed := append([]byte(nil), b[8:8+n]...)
	summed = binary.LittleEndian.AppendUint64(summed, uint64(index))
	summed = binary.LittleEndian.AppendUint32(summed, n)
	if crc32.Checksum(summed, castagnoli) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, 0, "the record's checksum does not match"
	}
	return b[8 : 8+n], 8 + int(n), ""
}

func (d *dirCheck) finish() error {
	if d.tree.n < d.durable {
		return &Fault{
			Kind: Truncated, Index: d.tree.n,
			What: fmt.Sprintf("there are %d records, and %d were durable", d.tree.n, d.durable),
		}
	}
	if d.tree.n < d.report.Signed {
		return &Fault{
			Kind: Truncated, Index: d.tree.n,
			What: fmt.Sprintf("there are %d records, and a witnessed checkpoint of %d", d.tree.n, d.report.Signed),
		}
	}
	// Hashes behind the last record are of records that a power cut took before they were acknowledged. They derive from
	// nothing that is kept, and recovery drops them.
	d.report.Torn += max(0, d.stored-d.next*hashSize)
	return nil
}
