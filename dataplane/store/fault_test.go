package store_test

import (
	"syscall"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

func TestAFullDiskRefusesEveryWriteAndLosesNothing(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	var full error
	s, err := store.Open(store.Config{Dir: dir, Key: key, BeforeWrite: func() error { return full }})
	must(t, err)
	first := update(t, 1, head(t, "acme", version{1, 1}, 1))
	must(t, s.PutUpdate(first))
	must(t, s.PutHighWater(1000))

	full = syscall.ENOSPC
	one := lease(1000, 1, "acme", "alice")
	shard := []byte("a shard")
	writes := map[string]func() error{
		"update":      func() error { return s.PutUpdate(update(t, 2, head(t, "acme", version{1, 2}, 2))) },
		"kill":        func() error { _, err := s.AddKill("k1", envelope(t, first, "a")); return err },
		"heartbeat":   func() error { return s.PutHeartbeat(envelope(t, &snapshotv1.Heartbeat{TimeMs: 5}, "a"), 5) },
		"session key": func() error { return s.PutSessionKey(&cellv1.SessionKey{Id: 1, Key: make([]byte, 32)}) },
		"clock":       func() error { return s.PutHighWater(2000) },
		"shard":       func() error { return s.PutBlob(snapshot.DigestOf(shard), shard) },
		"session": func() error {
			_, err := s.Leases().Apply(1, &cellv1.SessionBatch{AtMs: 1, Opened: []*cellv1.SessionOpening{opening(one)}})
			return err
		},
	}
	for name, write := range writes {
		t.Run(name, func(t *testing.T) { refused(t, write(), syscall.ENOSPC) })
	}
	acme := snapshot.TenantID("acme")
	if s.Floor(acme).Generation != 1 || s.HighWater() != 1000 || len(s.Kills()) != 0 || s.Leases().Len() != 0 {
		t.Error("what could not be written is in force")
	}
	full = nil
	for name, write := range writes {
		if err := write(); err != nil {
			t.Errorf("%s, with room again: %v", name, err)
		}
	}
	must(t, s.Close())
	s = open(t, dir, key)
	if s.Floor(acme).Generation != 2 || s.HighWater() != 2000 || len(s.Kills()) != 1 || s.Leases().Len() != 1 {
		t.Error("what was written is not there after a restart")
	}
}
