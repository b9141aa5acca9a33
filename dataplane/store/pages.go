package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// The layout of a bbolt file, version 2, in the byte order of the machine.
const (
	pageHeader  = 16
	elementSize = 16
	bucketSize  = 16
	metaSize    = 64

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagFreelist = 0x10
	leafIsBucket = 0x01

	noFreelist = ^uint64(0)
)

// checkPages proves that the pages of a bbolt file form trees: each page is what its header says, is used once, has its
// keys in order and its records within its bounds. bbolt itself takes all that for granted: one flipped bit in a page
// number can make it walk in circles until the memory is gone, which no caller can stop.
//
// The records' contents are not judged here: they are sealed.
func checkPages(path string, pageSize int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	w := &walker{file: f, pageSize: pageSize, filePages: uint64(info.Size()) / uint64(pageSize), used: map[uint64]bool{0: true, 1: true}}
	root, freelist, err := w.meta()
	if err == nil {
		_, err = w.tree(root, nil, nil)
	}
	if err == nil && freelist != noFreelist {
		err = w.freelist(freelist)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

type walker struct {
	file      io.ReaderAt
	pageSize  int
	filePages uint64
	// pages is how many there are, as the newest head page says.
	pages uint64
	used  map[uint64]bool
}

// meta reads the newer of the two head pages that is whole.
func (w *walker) meta() (root, freelist uint64, err error) {
	var newest []byte
	for id := range int64(2) {
		b := make([]byte, metaSize)
		if _, err := w.file.ReadAt(b, id*int64(w.pageSize)+pageHeader); err != nil {
			return 0, 0, fmt.Errorf("head page %d: %w", id, err)
		}
		sum := fnv.New64a()
		_, _ = sum.Write(b[:metaSize-8])
		if sum.Sum64() != binary.NativeEndian.Uint64(b[metaSize-8:]) {
			continue
		}
		if newest == nil || binary.NativeEndian.Uint64(b[48:]) > binary.NativeEndian.Uint64(newest[48:]) {
			newest = b
		}
	}
	if newest == nil {
		return 0, 0, fmt.Errorf("no head page is whole")
	}
	w.pages = binary.NativeEndian.Uint64(newest[40:])
	if w.pages > w.filePages {
		return 0, 0, fmt.Errorf("%d pages in a file of %d", w.pages, w.filePages)
	}
	return binary.NativeEndian.Uint64(newest[16:]), binary.NativeEndian.Uint64(newest[32:]), nil
}

// page reads a page with what overflows from it, and marks it used.
func (w *walker) page(id uint64) ([]byte, error) {
	if id < 2 || id >= w.pages || w.used[id] {
		return nil, fmt.Errorf("page %d of %d is not there or used twice", id, w.pages)
	}
	b := make([]byte, w.pageSize)
	if _, err := w.file.ReadAt(b, int64(id)*int64(w.pageSize)); err != nil {
		return nil, err
	}
	more := uint64(binary.NativeEndian.Uint32(b[12:]))
	if binary.NativeEndian.Uint64(b) != id || id+more >= w.pages {
		return nil, fmt.Errorf("page %d has another header", id)
	}
	for i := id; i <= id+more; i++ {
		if w.used[i] {
			return nil, fmt.Errorf("page %d is used twice", i)
		}
		w.used[i] = true
	}
	if more > 0 {
		b = make([]byte, (1+more)*uint64(w.pageSize))
		if _, err := w.file.ReadAt(b, int64(id)*int64(w.pageSize)); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// tree walks the pages below id, whose keys are from low, included, to high, excluded; nil means no bound. It returns the
// last key.
func (w *walker) tree(id uint64, low, high []byte) (last []byte, err error) {
	b, err := w.page(id)
	if err != nil {
		return nil, err
	}
	switch flags := binary.NativeEndian.Uint16(b[8:]); flags {
	case flagLeaf:
		return w.leaf(b, id, low, high)
	case flagBranch:
		return w.branch(b, id, low, high)
	default:
		return nil, fmt.Errorf("page %d has flags %#x", id, flags)
	}
}

func (w *walker) branch(b []byte, id uint64, low, high []byte) (last []byte, err error) {
	count := int(binary.NativeEndian.Uint16(b[10:]))
	if count == 0 || pageHeader+count*elementSize > len(b) {
		return nil, fmt.Errorf("page %d has %d branches", id, count)
	}
	key := func(i int) ([]byte, error) {
		at := pageHeader + i*elementSize
		return within(b, at, binary.NativeEndian.Uint32(b[at:]), binary.NativeEndian.Uint32(b[at+4:]))
	}
	last = low
	for i := range count {
		k, err := key(i)
		if err != nil {
			return nil, fmt.Errorf("page %d: %w", id, err)
		}
		if err := inOrder(last, k, high, i > 0); err != nil {
			return nil, fmt.Errorf("page %d: %w", id, err)
		}
		end := high
		if i+1 < count {
			if end, err = key(i + 1); err != nil {
				return nil, fmt.Errorf("page %d: %w", id, err)
			}
		}
		child := binary.NativeEndian.Uint64(b[pageHeader+i*elementSize+8:])
		if last, err = w.tree(child, k, end); err != nil {
			return nil, err
		}
	}
	return last, nil
}

func (w *walker) leaf(b []byte, id uint64, low, high []byte) (last []byte, err error) {
	count := int(binary.NativeEndian.Uint16(b[10:]))
	if pageHeader+count*elementSize > len(b) {
		return nil, fmt.Errorf("page %d has %d records", id, count)
	}
	last = low
	for i := range count {
		at := pageHeader + i*elementSize
		pos, keySize := binary.NativeEndian.Uint32(b[at+4:]), binary.NativeEndian.Uint32(b[at+8:])
		size := binary.NativeEndian.Uint32(b[at+12:])
		k, err := within(b, at, pos, keySize)
		if err != nil {
			return nil, fmt.Errorf("page %d: %w", id, err)
		}
		v, err := within(b, at+int(pos)+int(keySize), 0, size)
		if err != nil {
			return nil, fmt.Errorf("page %d: %w", id, err)
		}
		if err := inOrder(last, k, high, i > 0); err != nil {
			return nil, fmt.Errorf("page %d: %w", id, err)
		}
		last = k
		switch flags := binary.NativeEndian.Uint32(b[at:]); flags {
		case 0:
		case leafIsBucket:
			err = w.bucket(v)
		default:
			err = fmt.Errorf("page %d: a record with flags %#x", id, flags)
		}
		if err != nil {
			return nil, err
		}
	}
	return last, nil
}

// bucket walks a bucket's own pages, or the one page that lies within its record.
func (w *walker) bucket(v []byte) error {
	if len(v) < bucketSize {
		return fmt.Errorf("a bucket of %d bytes", len(v))
	}
	if root := binary.NativeEndian.Uint64(v); root != 0 {
		_, err := w.tree(root, nil, nil)
		return err
	}
	inline := v[bucketSize:]
	if len(inline) < pageHeader || binary.NativeEndian.Uint16(inline[8:]) != flagLeaf || binary.NativeEndian.Uint64(inline) != 0 {
		return fmt.Errorf("a bucket without a page")
	}
	_, err := w.leaf(inline, 0, nil, nil)
	return err
}

// freelist wants free pages to be pages that nothing uses: a used one would be overwritten.
func (w *walker) freelist(id uint64) error {
	b, err := w.page(id)
	if err != nil {
		return err
	}
	if binary.NativeEndian.Uint16(b[8:]) != flagFreelist {
		return fmt.Errorf("page %d is no free list", id)
	}
	count, at := uint64(binary.NativeEndian.Uint16(b[10:])), pageHeader
	if count == 0xffff {
		count, at = binary.NativeEndian.Uint64(b[at:]), at+8
	}
	if count > uint64(len(b)-at)/8 {
		return fmt.Errorf("a free list of %d pages", count)
	}
	for ; count > 0; count, at = count-1, at+8 {
		free := binary.NativeEndian.Uint64(b[at:])
		if free >= w.pages || w.used[free] {
			return fmt.Errorf("page %d is free and used", free)
		}
		w.used[free] = true
	}
	return nil
}

// within cuts size bytes at from+pos out of a page.
func within(b []byte, from int, pos, size uint32) ([]byte, error) {
	start := uint64(from) + uint64(pos)
	if end := start + uint64(size); end <= uint64(len(b)) {
		return b[start:end], nil
	}
	return nil, fmt.Errorf("a record reaches beyond its page")
}

// inOrder wants a key after the one before it (or at it, for the first of a page) and below the bound.
func inOrder(before, key, high []byte, strictly bool) error {
	c := bytes.Compare(before, key)
	if before != nil && (c > 0 || strictly && c == 0) || high != nil && bytes.Compare(key, high) >= 0 {
		return fmt.Errorf("key %q is out of order", key)
	}
	return nil
}
