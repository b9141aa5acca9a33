package limit_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/limit"
)

func TestAStreamIsResumedTenTimesASecond(t *testing.T) {
	t.Parallel()
	r := limit.NewResumes(10)
	now := time.Unix(100, 0)
	for i := range 100 {
		if got := r.Take([16]byte{1}, now.Add(time.Duration(i)*9*time.Millisecond)); got != (i < 10) {
			t.Fatalf("C22: reconnect %d: %v", i, got)
		}
	}
	if !r.Take([16]byte{2}, now) || !r.Take([16]byte{1}, now.Add(time.Second)) {
		t.Fatal("another stream, or the next second, has to wait")
	}
}

func TestManyStreamsAreCountedInBoundedMemory(t *testing.T) {
	t.Parallel()
	r := limit.NewResumes(1)
	var taken int
	for i := range uint64(1 << 17) {
		var stream [16]byte
		binary.BigEndian.PutUint64(stream[:], i)
		if r.Take(stream, time.Unix(1, 0)) {
			taken++
		}
	}
	if taken != 1<<16 {
		t.Fatalf("%d streams are counted at once", taken)
	}
}
