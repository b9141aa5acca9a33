package store_test

import (
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
)

func TestGenerationsAreKeptWhileTheyAreYoungOrFew(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Truncate(time.Millisecond)
	s := storetest.OpenAt(t, storetest.URL(t), func() time.Time { return now })
	tenant := storetest.Tenant(t, s, "acme")
	insert := func(n uint64) {
		t.Helper()
		_, err := s.Write(t.Context(), tenant.ID, "test", func(tx *store.Tx) error {
			if err := tx.InsertGeneration(t.Context(), store.Generation{
				Epoch: 1, Generation: n, Revision: n, Envelope: []byte{1}, PayloadSHA256: make([]byte, 32), CommittedAt: now,
			}, nil); err != nil {
				return err
			}
			return tx.Change(t.Context(), "x", "x", nil)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	kept := func(keep int, before time.Time) (n int) {
		t.Helper()
		_, err := s.Write(t.Context(), tenant.ID, "test", func(tx *store.Tx) error {
			if err := tx.ForgetGenerations(t.Context(), keep, before); err != nil {
				return err
			}
			list, err := tx.Generations(t.Context(), 100)
			n = len(list)
			if err == nil && list[0].Generation != 6 {
				t.Errorf("the newest is gone: %d", list[0].Generation)
			}
			if err == nil {
				err = tx.Change(t.Context(), "x", "x", nil)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	start := now
	for n := range uint64(6) {
		insert(n + 1)
		now = now.Add(time.Hour)
	}
	for _, tc := range []struct {
		keep   int
		before time.Time
		want   int
	}{
		{2, start, 6}, {6, now, 6}, {2, start.Add(2 * time.Hour), 4}, {2, now, 2},
	} {
		if got := kept(tc.keep, tc.before); got != tc.want {
			t.Errorf("%d kept, want %d: %+v", got, tc.want, tc)
		}
	}
}
