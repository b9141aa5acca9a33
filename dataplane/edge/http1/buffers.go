package http1

import "sync"

const (
	smallBuffer = 8 << 10
	// largeBuffer takes the largest head there may be, or the part of an answer that is held back for its length to be known.
	largeBuffer = 64 << 10
)

// The pools hold pointers to arrays, so that putting one back allocates nothing.
var (
	smallPool = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largePool = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

func getSmall() []byte { return smallPool.Get().(*[smallBuffer]byte)[:] }
func getLarge() []byte { return largePool.Get().(*[largeBuffer]byte)[:] }

// enlarge moves what is in b to a large buffer.
func enlarge(b []byte) []byte {
	large := getLarge()
	n := copy(large, b)
	put(b)
	return large[:n]
}

// put gives a buffer back, from its beginning, whichever pool it is from; any other slice is left to the collector.
func put(b []byte) {
	switch cap(b) {
	case smallBuffer:
		smallPool.Put((*[smallBuffer]byte)(b[:smallBuffer]))
	case largeBuffer:
		largePool.Put((*[largeBuffer]byte)(b[:largeBuffer]))
	}
}
