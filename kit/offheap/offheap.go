// Package offheap gives memory that the garbage collector neither scans nor moves, and that cannot be written to once it
// is sealed: for what is large, read by everybody and replaced as a whole.
//
// A Block gives its memory back by itself some time after nobody refers to it any more. Slices of it do not count as
// references: whoever keeps one keeps the Block.
package offheap

import (
	"fmt"
	"runtime"
	"time"
)

// Grace is how long memory stays after the last reference to its Block is gone: a reader may have dropped the Block while
// it still reads the last of its bytes.
const Grace = 10 * time.Second

// Block is memory outside the heap.
type Block struct {
	mem []byte
	n   int
}

// New returns a block of n zero bytes that may be written to until it is sealed.
func New(n int) (*Block, error) {
	if n <= 0 {
		return nil, fmt.Errorf("memory of %d bytes", n)
	}
	mem, err := take(n)
	if err != nil {
		return nil, fmt.Errorf("take %d bytes of memory: %w", n, err)
	}
	b := &Block{mem: mem, n: n}
	runtime.AddCleanup(b, func(mem []byte) { time.AfterFunc(Grace, func() { give(mem) }) }, mem)
	return b, nil
}

// Bytes is the memory. It is valid as long as the block is referred to.
func (b *Block) Bytes() []byte { return b.mem[:b.n:b.n] }

// Seal makes the memory read-only for good: who writes to it afterwards ends the process.
func (b *Block) Seal() error {
	if err := protect(b.mem); err != nil {
		return fmt.Errorf("make memory read-only: %w", err)
	}
	return nil
}
