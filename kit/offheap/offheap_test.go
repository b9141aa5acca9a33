//go:build linux

package offheap_test

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/offheap"
)

func TestBlockIsWrittenOnceAndReadForEver(t *testing.T) {
	t.Parallel()
	b, err := offheap.New(10_000)
	if err != nil {
		t.Fatal(err)
	}
	copy(b.Bytes(), "policy")
	if err := b.Seal(); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	if got := string(b.Bytes()[:6]); got != "policy" || len(b.Bytes()) != 10_000 || cap(b.Bytes()) != 10_000 {
		t.Errorf("%q of %d", got, len(b.Bytes()))
	}
	runtime.KeepAlive(b)
}

func TestBlockIsNotOnTheHeap(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b, err := offheap.New(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.HeapAlloc - before.HeapAlloc; grown > 1<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	runtime.KeepAlive(b)
}

func TestNothingIsNoBlock(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, -1} {
		if _, err := offheap.New(n); err == nil {
			t.Errorf("%d bytes given", n)
		}
	}
}

const writeAfterSeal = "MCPVAULT_TEST_WRITE_AFTER_SEAL"

// The process that writes to sealed memory ends: better no answer than one from policy that somebody has changed.
func TestSealedMemoryCannotBeWritten(t *testing.T) {
	t.Parallel()
	if os.Getenv(writeAfterSeal) != "" {
		b, err := offheap.New(4096)
		if err == nil && b.Seal() == nil {
			b.Bytes()[0] = 1
		}
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSealedMemoryCannotBeWritten$")
	cmd.Env = append(os.Environ(), writeAfterSeal+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "fault") {
		t.Errorf("%v: %.200s", err, out)
	}
}
