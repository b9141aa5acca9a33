// Package check proves a log from the outside: it reads a node's directory, an export or a stranger's copy, computes the
// whole Merkle tree again with code of its own, and compares it with checkpoints that were signed and, better, witnessed
// elsewhere. It needs public keys only, changes nothing, and names the first thing that is wrong.
//
// What it can find: a record changed, deleted, moved or put in; an end that was cut off below a witnessed checkpoint; a log
// that told two stories (fork). What nobody can find is an end cut off above every checkpoint that somebody else has.
package check

import (
	"fmt"
	"iter"
	"slices"

	"github.com/mcpvault/mcpvault/kit/tlog"
)

// The kinds of fault.
const (
	Changed   = "changed"   // records or files are not what was signed
	Truncated = "truncated" // records are missing at the end
	Missing   = "missing"   // a file or a record is missing
	Forked    = "forked"    // two signed checkpoints contradict each other
	Unsigned  = "unsigned"  // a checkpoint does not verify
)

// Fault is the first thing that is wrong.
type Fault struct {
	Kind string
	// File and Offset say where, when files were read.
	File   string
	Offset int64
	// Index is the record that it is about, -1 when that cannot be said.
	Index int64
	What  string
}

func (f *Fault) Error() string {
	s := f.Kind
	if f.File != "" {
		s += fmt.Sprintf(" %s at %d", f.File, f.Offset)
	}
	if f.Index >= 0 {
		s += fmt.Sprintf(" record %d", f.Index)
	}
	return s + ": " + f.What
}

// Report is what was found. It is good when Fault is nil.
type Report struct {
	Origin      string
	VerifierKey string
	// First and Size: the records [First, Size) were read and hashed. First is above 0 in a directory whose oldest segments
	// were pruned.
	First, Size int64
	// Checkpoints that were verified, and the size of the largest: records from there on rest on nobody's signature.
	Checkpoints int
	Signed      int64
	Root        tlog.Hash
	// Torn is the number of bytes at the end of a directory's files that belong to no whole record and were never
	// acknowledged.
	Torn  int64
	Fault *Fault
}

// OK reports whether nothing is wrong.
func (r Report) OK() bool { return r.Fault == nil }

// Tree computes an RFC 6962 root record by record. It is written apart from the log's own on purpose.
type tree struct {
	n     int64
	roots []tlog.Hash // of the complete subtrees, one a set bit of n, largest first
}

// add takes a leaf's hash and returns the hashes that it completes, leaf first.
func (t *tree) add(h tlog.Hash) []tlog.Hash {
	done := []tlog.Hash{h}
	t.roots = append(t.roots, h)
	t.n++
	for n := t.n; n%2 == 0; n /= 2 {
		k := len(t.roots)
		h = tlog.NodeHash(t.roots[k-2], t.roots[k-1])
		t.roots = append(t.roots[:k-2], h)
		done = append(done, h)
	}
	return done
}

func (t *tree) root() tlog.Hash {
	if t.n == 0 {
		return emptyRoot()
	}
	h := t.roots[len(t.roots)-1]
	for i := len(t.roots) - 2; i >= 0; i-- {
		h = tlog.NodeHash(t.roots[i], h)
	}
	return h
}

// signatures are the checkpoints to compare with, by size.
type signatures struct {
	bySize map[int64]tlog.Checkpoint
	sizes  []int64 // ascending
	count  int
}

// openAll verifies the checkpoints. Two of one size with different roots are a fork.
func openAll(verifierKey string, signed [][]byte) (*signatures, *Fault) {
	s := &signatures{bySize: map[int64]tlog.Checkpoint{}}
	for _, b := range signed {
		cp, err := tlog.OpenCheckpoint(b, verifierKey)
		if err != nil {
			return s, &Fault{Kind: Unsigned, Index: -1, What: err.Error()}
		}
		if old, ok := s.bySize[cp.Size]; ok && old.Root != cp.Root {
			return s, &Fault{
				Kind: Forked, Index: -1,
				What: fmt.Sprintf("two signed checkpoints of size %d have the roots %s and %s", cp.Size, old.Root, cp.Root),
			}
		}
		s.bySize[cp.Size] = cp
		s.count++
	}
	for size := range s.bySize {
		s.sizes = append(s.sizes, size)
	}
	slices.Sort(s.sizes)
	return s, nil
}

func (s *signatures) largest() int64 {
	if len(s.sizes) == 0 {
		return 0
	}
	return s.sizes[len(s.sizes)-1]
}

// check compares the tree with the checkpoint of its size, if there is one.
func (s *signatures) check(t *tree) *Fault {
	cp, ok := s.bySize[t.n]
	if !ok || cp.Root == t.root() {
		return nil
	}
	good := int64(0)
	for _, size := range s.sizes {
		if size < t.n {
			good = size
		}
	}
	return &Fault{
		Kind: Changed, Index: -1,
		What: fmt.Sprintf("records [%d, %d) are not those of the signed checkpoint: root %s, signed %s",
			good, t.n, t.root(), cp.Root),
	}
}

// Leaves proves an export: every record from index 0 on, against signed checkpoints. An error of the iterator ends the
// proof and is returned; it says nothing about the log.
func Leaves(verifierKey string, leaves iter.Seq2[[]byte, error], signed ...[]byte) (Report, error) {
	r := Report{VerifierKey: verifierKey}
	origin, err := tlog.OriginOf(verifierKey)
	if err != nil {
		r.Fault = &Fault{Kind: Unsigned, Index: -1, What: err.Error()}
		return r, nil
	}
	r.Origin = origin
	sigs, fault := openAll(verifierKey, signed)
	r.Checkpoints, r.Signed = sigs.count, sigs.largest()
	if fault != nil {
		r.Fault = fault
		return r, nil
	}
	var t tree
	r.Fault = sigs.check(&t)
	for leaf, err := range leaves {
		if err != nil {
			return r, fmt.Errorf("read record %d of %s: %w", t.n, origin, err)
		}
		t.add(tlog.LeafHash(leaf))
		if f := sigs.check(&t); f != nil && r.Fault == nil {
			r.Fault = f
		}
	}
	r.Size, r.Root = t.n, t.root()
	if r.Fault == nil && r.Size < r.Signed {
		r.Fault = &Fault{
			Kind: Truncated, Index: r.Size,
			What: fmt.Sprintf("there are %d records, and a signed checkpoint of %d", r.Size, r.Signed),
		}
	}
	return r, nil
}
