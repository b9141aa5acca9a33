package audit

import (
	"bufio"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
)

// ids makes ULIDs that only grow, whatever the clock does.
type ids struct {
	now func() time.Time

	mu   sync.Mutex // guards what follows
	src  ulid.MonotonicReader
	last uint64 // milliseconds
}

func newIDs(now func() time.Time) *ids {
	return &ids{now: now, src: ulid.Monotonic(bufio.NewReaderSize(rand.Reader, 1024), 0)}
}

func (g *ids) next() string {
	ms := ulid.Timestamp(g.now())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = max(g.last, ms)
	id, err := ulid.New(g.last, g.src)
	if err != nil { // this millisecond's numbers are used up
		g.last++
		id = ulid.MustNew(g.last, g.src)
	}
	return id.String()
}

// macs hashes under one key without setting it up each time.
type macs struct{ pool sync.Pool }

func newMACs(key []byte) *macs {
	key = append([]byte(nil), key...)
	return &macs{pool: sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}}
}

func (m *macs) sum(b []byte) []byte {
	h, _ := m.pool.Get().(hash.Hash)
	defer m.pool.Put(h)
	h.Reset()
	_, _ = io.Writer(h).Write(b) // a hash never fails
	return h.Sum(nil)
}
