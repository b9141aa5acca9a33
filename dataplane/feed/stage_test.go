package feed

import "testing"

func TestEveryEntryHasRoomForItsHeads(t *testing.T) {
	t.Parallel()
	var heads []*openedHead
	for range 300 {
		heads = append(heads, &openedHead{envelope: make([]byte, 700)})
	}
	const room = 30 << 10
	total := 0
	for _, batch := range batches(heads, room) {
		size := 0
		for _, p := range batch {
			size += len(p.envelope)
		}
		if total += len(batch); size > room || len(batch) == 0 {
			t.Errorf("%d heads of %d bytes in one entry", len(batch), size)
		}
	}
	if total != len(heads) {
		t.Errorf("%d of %d heads", total, len(heads))
	}
	if got := batches(nil, room); len(got) != 1 || len(got[0]) != 0 {
		t.Errorf("a manifest alone needs one entry, got %d", len(got))
	}
	if got := batches(heads[:3], -1); len(got) != 3 {
		t.Errorf("%d entries of heads that do not fit together", len(got))
	}
}
