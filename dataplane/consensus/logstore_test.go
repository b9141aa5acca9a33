package consensus

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
)

var testKey = store.Key{1, 2, 3}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openTestLog(t testing.TB, path string, before func() error) (*logStore, *writer) {
	t.Helper()
	w := startWriter(5*time.Second, before, func(error) {})
	s, err := openLog(path, testKey, w)
	must(t, err)
	t.Cleanup(func() { _ = release(context.Background(), w, s) })
	return s, w
}

func entries(from, to uint64) []*raft.Log {
	var all []*raft.Log
	for i := from; i <= to; i++ {
		all = append(all, &raft.Log{
			Index: i, Term: i / 3, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(i)}, int(i)),
			Extensions: []byte("x"), AppendedAt: time.Unix(int64(i), 7),
		})
	}
	return all
}

func TestTheLogGivesBackWhatItTook(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "raft.db")
	s, w := openTestLog(t, path, nil)
	if first, err := s.FirstIndex(); err != nil || first != 0 {
		t.Fatalf("an empty log begins at %d, %v", first, err)
	}
	must(t, s.StoreLogs(entries(1, 20)))
	must(t, s.SetUint64([]byte("n"), 42))
	must(t, s.Set([]byte("k"), []byte("v")))
	must(t, s.DeleteRange(1, 4))
	must(t, s.DeleteRange(18, 20))
	must(t, release(t.Context(), w, s))

	s, _ = openTestLog(t, path, nil)
	first, err := s.FirstIndex()
	must(t, err)
	last, err := s.LastIndex()
	must(t, err)
	if first != 5 || last != 17 {
		t.Fatalf("the log goes from %d to %d", first, last)
	}
	for _, want := range entries(5, 17) {
		var got raft.Log
		must(t, s.GetLog(want.Index, &got))
		if got.Term != want.Term || got.Type != want.Type || !bytes.Equal(got.Data, want.Data) ||
			!bytes.Equal(got.Extensions, want.Extensions) || !got.AppendedAt.Equal(want.AppendedAt) || got.Index != want.Index {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
	if err := s.GetLog(4, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("got %v", err)
	}
	if n, err := s.GetUint64([]byte("n")); err != nil || n != 42 {
		t.Fatalf("got %d, %v", n, err)
	}
	if n, err := s.GetUint64([]byte("none")); err != nil || n != 0 {
		t.Fatalf("got %d, %v", n, err)
	}
	if v, err := s.Get([]byte("none")); err != nil || len(v) != 0 {
		t.Fatalf("got %q, %v", v, err)
	}
}

// spoil flips one bit of a sealed value without bbolt's knowledge of it being wrong.
func spoil(t testing.TB, db *bbolt.DB, bucket, key []byte) {
	t.Helper()
	must(t, db.Update(func(tx *bbolt.Tx) error {
		v := bytes.Clone(tx.Bucket(bucket).Get(key))
		v[len(v)/2] ^= 4
		return tx.Bucket(bucket).Put(key, v)
	}))
}

func TestAFlippedBitInTheLogIsFoundAtReadAndAtOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "raft.db")
	s, w := openTestLog(t, path, nil)
	must(t, s.StoreLogs(entries(1, 9)))
	spoil(t, s.db, bucketLogs, indexKey(5))
	if err := s.GetLog(5, &raft.Log{}); !errors.Is(err, store.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
	must(t, s.GetLog(6, &raft.Log{}))
	must(t, release(t.Context(), w, s))
	w = startWriter(time.Second, nil, func(error) {})
	s, err := openLog(path, testKey, w)
	if !errors.Is(err, store.ErrCorrupt) {
		t.Fatalf("a damaged log opens: %v", err)
	}
	must(t, release(t.Context(), w, s))
}

func TestARecordCannotBeMoved(t *testing.T) {
	t.Parallel()
	s, _ := openTestLog(t, filepath.Join(t.TempDir(), "raft.db"), nil)
	must(t, s.StoreLogs(entries(1, 2)))
	must(t, s.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketLogs)
		return b.Put(indexKey(2), bytes.Clone(b.Get(indexKey(1))))
	}))
	if err := s.GetLog(2, &raft.Log{}); !errors.Is(err, store.ErrCorrupt) {
		t.Fatalf("got %v", err)
	}
}

func TestAMissingEntryKeepsTheLogClosed(t *testing.T) {
	t.Parallel()
	s, _ := openTestLog(t, filepath.Join(t.TempDir(), "raft.db"), nil)
	must(t, s.StoreLogs(entries(5, 9)))
	must(t, s.checkGap(4))
	must(t, s.checkGap(7))
	must(t, s.checkGap(100))
	if err := s.checkGap(3); !errors.Is(err, store.ErrCorrupt) {
		t.Fatalf("a gap after the snapshot: %v", err)
	}
	must(t, s.DeleteRange(7, 7))
	if err := s.checkGap(4); !errors.Is(err, store.ErrCorrupt) {
		t.Fatalf("a gap in the log: %v", err)
	}
	must(t, s.checkGap(7))
}

// Raft panics when it cannot read an entry or write its term; the guard ends one goroutine or nothing instead.
func TestTheGuardNeverLetsRaftPanic(t *testing.T) {
	t.Parallel()
	var broken error
	s, w := openTestLog(t, filepath.Join(t.TempDir(), "raft.db"), func() error { return broken })
	must(t, s.StoreLogs(entries(1, 3)))
	spoil(t, s.db, bucketLogs, indexKey(2))
	g := guard{s}
	returned, deferred := false, make(chan struct{})
	go func() {
		defer close(deferred)
		_ = g.GetLog(2, &raft.Log{})
		returned = true
	}()
	<-deferred
	if returned || !errors.Is(w.err(), store.ErrCorrupt) {
		t.Fatalf("returned %v, failure %v", returned, w.err())
	}
	must(t, g.SetUint64(keyCurrentTerm, 9))
	if err := g.SetUint64([]byte("LastVoteTerm"), 9); err == nil {
		t.Fatal("a vote was promised that is not on disk")
	}
	if err := g.StoreLogs(entries(4, 4)); err == nil {
		t.Fatal("an entry was promised that is not on disk")
	}
}

func TestASlowWriteIsAnErrorAndTheLast(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	failures := make(chan error, 2)
	w := startWriter(20*time.Millisecond, func() error { <-gate; return nil }, func(err error) { failures <- err })
	if err := w.write(func() error { return nil }); !errors.Is(err, errStalled) {
		t.Fatalf("got %v", err)
	}
	if err := <-failures; !errors.Is(err, errStore) {
		t.Fatalf("got %v", err)
	}
	ran := false
	if err := w.write(func() error { ran = true; return nil }); !errors.Is(err, errStalled) || ran {
		t.Fatalf("a write after the failure: %v", err)
	}
	close(gate)
	w.stop()
	<-w.ended
}

func testSnapshots(t testing.TB) *snapshotStore {
	t.Helper()
	s, err := openSnapshots(filepath.Join(t.TempDir(), "snapshots"), testKey, slog.New(slog.DiscardHandler))
	must(t, err)
	return s
}

func writeSnapshot(t testing.TB, s *snapshotStore, index uint64, data []byte) string {
	t.Helper()
	conf := raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1"}}}
	out, err := s.Create(raft.SnapshotVersionMax, index, 2, conf, 1, nil)
	must(t, err)
	_, err = out.Write(data)
	must(t, err)
	must(t, out.Close())
	must(t, out.Close())
	return out.ID()
}

func TestTheNewestTwoSnapshotsStayAndADamagedOneIsLeftOut(t *testing.T) {
	t.Parallel()
	s := testSnapshots(t)
	data := []byte("session-key-canary")
	for i := uint64(9); i <= 12; i++ {
		writeSnapshot(t, s, i, data)
	}
	list, err := s.List()
	must(t, err)
	if len(list) != 2 || list[0].Index != 12 || list[1].Index != 11 {
		t.Fatalf("kept %v", list)
	}
	path := filepath.Join(s.dir, list[0].ID+snapshotSuffix)
	sealed, err := os.ReadFile(path)
	must(t, err)
	if bytes.Contains(sealed, data) {
		t.Fatal("the snapshot is readable on disk")
	}
	meta, r, err := s.Open(list[0].ID)
	must(t, err)
	got := new(bytes.Buffer)
	_, err = got.ReadFrom(r)
	must(t, err)
	if !bytes.Equal(got.Bytes(), data) || meta.Size != int64(len(data)) || len(meta.Configuration.Servers) != 1 {
		t.Fatalf("got %q, %+v", got, meta)
	}
	sealed[len(sealed)/2] ^= 1
	must(t, os.WriteFile(path, sealed, 0o600))
	list, err = s.List()
	must(t, err)
	if len(list) != 1 || list[0].Index != 11 {
		t.Fatalf("a damaged snapshot is listed: %v", list)
	}
	cancelled, err := s.Create(raft.SnapshotVersionMax, 13, 2, raft.Configuration{}, 1, nil)
	must(t, err)
	must(t, cancelled.Cancel())
	must(t, cancelled.Close())
	if list, err = s.List(); err != nil || len(list) != 1 {
		t.Fatalf("a cancelled snapshot is listed: %v, %v", list, err)
	}
}

func FuzzDecodeEntry(f *testing.F) {
	seed, err := proto.Marshal(&cellv1.RaftEntry{Command: &cellv1.RaftEntry_Kill{Kill: []byte("k")}})
	must(f, err)
	f.Add(seed)
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0x0a}, MaxEntry+1))
	f.Fuzz(func(t *testing.T, data []byte) {
		entry, err := decodeEntry(data)
		if (entry == nil) == (err == nil) || err != nil && !errors.Is(err, errEntry) {
			t.Fatalf("got %v, %v", entry, err)
		}
		if err == nil && len(data) > MaxEntry {
			t.Fatal("an entry over the limit was taken")
		}
	})
}

func FuzzReadState(f *testing.F) {
	var good bytes.Buffer
	must(f, (&state{entries: []*cellv1.RaftEntry{
		{Command: &cellv1.RaftEntry_SessionKey{SessionKey: &cellv1.SessionKey{Id: 1, Key: make([]byte, 32)}}},
		{Command: &cellv1.RaftEntry_Kill{Kill: []byte("k")}},
		{Command: &cellv1.RaftEntry_SessionState{SessionState: &cellv1.SessionState{Index: 7, First: true, Last: true}}},
	}}).write(&good))
	read := func(data []byte) (all []*cellv1.RaftEntry, err error) {
		err = readState(bytes.NewReader(data), func(e *cellv1.RaftEntry) error {
			all = append(all, e)
			return nil
		})
		return all, err
	}
	f.Add(good.Bytes())
	f.Add(good.Bytes()[:good.Len()-1])
	f.Add(append([]byte(stateMagic), 0xff, 0xff, 0xff, 0x1f))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := read(data)
		if err != nil {
			return
		}
		var again bytes.Buffer
		must(t, (&state{entries: all}).write(&again))
		back, err := read(again.Bytes())
		must(t, err)
		if len(back) != len(all) {
			t.Fatalf("%d entries became %d", len(all), len(back))
		}
	})
}

func FuzzDecodeLog(f *testing.F) {
	f.Add(indexKey(3), encodeLog(entries(3, 3)[0]))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		var l raft.Log
		if decodeLog(key, value, &l) != nil {
			return
		}
		if got := encodeLog(&l); !bytes.Equal(got, value) {
			t.Fatalf("%x became %x", value, got)
		}
	})
}
