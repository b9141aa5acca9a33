package tlog

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	sumdb "golang.org/x/mod/sumdb/tlog"
)

// Hash is a SHA-256 of the tree.
type Hash = sumdb.Hash

// HashReader reads hashes by their place in the stored order.
type HashReader = sumdb.HashReader

// HashReaderFunc is a function that is a HashReader.
type HashReaderFunc = sumdb.HashReaderFunc

// LeafHash is RFC 6962's hash of a record.
func LeafHash(rec []byte) Hash { return leafHash(rec) }

// NodeHash is RFC 6962's hash of two subtrees.
func NodeHash(left, right Hash) Hash { return sumdb.NodeHash(left, right) }

// StoredHashIndex is the place of the n-th hash of a level in the stored order, which is that of the hash file.
func StoredHashIndex(level int, n int64) int64 { return sumdb.StoredHashIndex(level, n) }

// SplitStoredHashIndex is the inverse of StoredHashIndex.
func SplitStoredHashIndex(index int64) (level int, n int64) { return sumdb.SplitStoredHashIndex(index) }

// StoredHashCount is how many hashes a tree of n records stores.
func StoredHashCount(n int64) int64 { return sumdb.StoredHashCount(n) }

// TreeRoot computes the root of the first n records.
func TreeRoot(n int64, r HashReader) (Hash, error) { return sumdb.TreeHash(n, r) }

// ProveRecord proves that the tree of the given size holds the record at index.
func ProveRecord(size, index int64, r HashReader) ([]Hash, error) {
	if size < 1 || index < 0 || index >= size {
		return nil, ErrRange
	}
	return sumdb.ProveRecord(size, index, r)
}

// CheckRecord verifies a proof of ProveRecord.
func CheckRecord(proof []Hash, size int64, root Hash, index int64, leaf Hash) error {
	return sumdb.CheckRecord(proof, size, root, index, leaf)
}

// ProveTree proves that the tree of size to begins with the tree of size from.
func ProveTree(to, from int64, r HashReader) ([]Hash, error) {
	if from < 1 || from > to {
		return nil, ErrRange
	}
	return sumdb.ProveTree(to, from, r)
}

// CheckTree verifies a proof of ProveTree.
func CheckTree(proof []Hash, to int64, toRoot Hash, from int64, fromRoot Hash) error {
	return sumdb.CheckTree(proof, to, toRoot, from, fromRoot)
}

// HashesToBytes is the wire form of a proof.
func HashesToBytes(hs []Hash) [][]byte {
	out := make([][]byte, len(hs))
	for i, h := range hs {
		out[i] = append([]byte(nil), h[:]...)
	}
	return out
}

// HashesFromBytes reads the wire form of a proof; each item must be 32 bytes.
func HashesFromBytes(bs [][]byte) ([]Hash, error) {
	out := make([]Hash, len(bs))
	for i, b := range bs {
		if len(b) != len(out[i]) {
			return nil, fmt.Errorf("tlog: hash %d has %d bytes", i, len(b))
		}
		copy(out[i][:], b)
	}
	return out, nil
}

// Tree is the right edge of a Merkle tree: the roots of the complete subtrees, largest first. With it records can be added
// without reading the rest. The zero value is the empty tree.
type Tree struct {
	size  int64
	edge  [64]Hash
	depth int
}

// Size is the number of records.
func (t *Tree) Size() int64 { return t.size }

// Push adds a record's leaf hash and returns the hashes that this completes, in stored order.
func (t *Tree) Push(leaf Hash) []Hash {
	raw := t.push(nil, leaf)
	out := make([]Hash, len(raw)/sha256.Size)
	for i := range out {
		copy(out[i][:], raw[i*sha256.Size:])
	}
	return out
}

// push appends the completed hashes to dst.
func (t *Tree) push(dst []byte, h Hash) []byte {
	dst = append(dst, h[:]...)
	for n := t.size; n&1 == 1; n >>= 1 {
		t.depth--
		h = sumdb.NodeHash(t.edge[t.depth], h)
		dst = append(dst, h[:]...)
	}
	t.edge[t.depth] = h
	t.depth++
	t.size++
	return dst
}

// Root is the tree's hash.
func (t *Tree) Root() Hash {
	if t.depth == 0 {
		return sha256.Sum256(nil)
	}
	h := t.edge[t.depth-1]
	for i := t.depth - 2; i >= 0; i-- {
		h = sumdb.NodeHash(t.edge[i], h)
	}
	return h
}

// LoadTree reads the right edge of the tree with n records.
func LoadTree(n int64, r HashReader) (Tree, error) {
	t := Tree{size: n}
	if n < 0 {
		return Tree{}, ErrRange
	}
	var at []int64
	for level, lo := 62, int64(0); level >= 0; level-- {
		if n&(1<<level) != 0 {
			at = append(at, sumdb.StoredHashIndex(level, lo>>level))
			lo += 1 << level
		}
	}
	hs, err := r.ReadHashes(at)
	if err != nil {
		return Tree{}, err
	}
	if len(hs) != len(at) {
		return Tree{}, errors.New("tlog: hash reader returned another number of hashes")
	}
	t.depth = copy(t.edge[:], hs)
	return t, nil
}

// scratch holds buffers in which a leaf's hash input is put together.
var scratch = sync.Pool{New: func() any { b := make([]byte, 0, 4096); return &b }}

func leafHash(rec []byte) Hash {
	var small [1024]byte
	if len(rec) < len(small) {
		n := copy(small[1:], rec)
		return sha256.Sum256(small[:1+n])
	}
	p := scratch.Get().(*[]byte)
	b := append(append((*p)[:0], 0), rec...)
	h := sha256.Sum256(b)
	*p = b
	scratch.Put(p)
	return h
}
