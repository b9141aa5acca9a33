package limit_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/limit"
)

func TestOfAFloodOneASecondIsKeptAndNoneIsLostFromTheCount(t *testing.T) {
	t.Parallel()
	f := limit.NewFlood[int](time.Second, 1000)
	now := time.Unix(1_800_000_000, 0)
	k := limit.Key{Tenant: "acme", Name: "mallory"}
	kept, counted := 0, uint64(0)
	for i := range 5000 {
		id, skipped, keep := f.Keep(k, fmt.Sprint(i), now, func() int { return i })
		if want := fmt.Sprint(i / 1000 * 1000); id != want {
			t.Fatalf("%d is told the record %s, which is not the %s that was kept", i, id, want)
		}
		counted += skipped
		if keep {
			kept++
		}
		now = now.Add(time.Millisecond)
	}
	if kept != 5 {
		t.Fatalf("%d kept of 5 s", kept)
	}
	if due := f.Due(now, false); len(due) != 0 {
		t.Fatal("collected while the flood goes on:", due)
	}
	now = now.Add(2 * time.Second)
	for _, d := range f.Due(now, false) {
		counted += d.Count
		if d.First != 4001 {
			t.Error("the first of the last second is", d.First)
		}
	}
	if kept+int(counted) != 5000 {
		t.Fatalf("%d kept and %d counted of 5000", kept, counted)
	}
	if due := f.Due(now, true); len(due) != 0 {
		t.Fatal("counted twice:", due)
	}
}

func TestManySourcesOfAFloodTakeNoMoreMemory(t *testing.T) {
	t.Parallel()
	f := limit.NewFlood[int](time.Second, 10)
	now := time.Unix(1_800_000_000, 0)
	kept := 0
	for i := range 1000 {
		if _, _, keep := f.Keep(limit.Key{Name: fmt.Sprint(i)}, "id", now, func() int { return i }); keep {
			kept++
		}
	}
	counted := uint64(0)
	for _, d := range f.Due(now, true) {
		counted += d.Count
	}
	if kept != 11 || counted != 1000-11 {
		t.Fatalf("%d kept, %d counted", kept, counted)
	}
}

func TestPlacesAreCountedPerCallerAndGivenBack(t *testing.T) {
	t.Parallel()
	s := limit.NewSlots()
	alice, bob := limit.Key{Tenant: "a", Name: "alice"}, limit.Key{Tenant: "a", Name: "bob"}
	for place := range 3 {
		if got := s.Enter(alice, 2); got != (place < 2) {
			t.Fatalf("place %d of 2: %t", place, got)
		}
	}
	if !s.Enter(bob, 2) {
		t.Fatal("one caller's places count for another")
	}
	s.Leave(alice)
	if !s.Enter(alice, 2) {
		t.Fatal("a place that was given back is still taken")
	}
	s.Leave(alice)
	s.Leave(alice)
	s.Leave(bob)
	if n := s.Callers(); n != 0 {
		t.Fatalf("%d callers are remembered", n)
	}
}
