package store_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"google.golang.org/protobuf/proto"
)

func envelope(t testing.TB, m proto.Message, sig string) []byte {
	t.Helper()
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	env, err := proto.Marshal(&snapshotv1.Envelope{
		PayloadType: "test", Payload: payload, Signatures: []*snapshotv1.Signature{{KeyId: "k", Sig: []byte(sig)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func payloadDigest(t testing.TB, env []byte) []byte {
	t.Helper()
	var e snapshotv1.Envelope
	if err := proto.Unmarshal(env, &e); err != nil {
		t.Fatal(err)
	}
	d := snapshot.DigestOf(e.GetPayload())
	return d[:]
}

type version struct{ epoch, generation uint64 }

func head(t testing.TB, tenant string, v version, revision uint64, shards ...[]byte) []byte {
	t.Helper()
	h := &snapshotv1.Head{TenantId: tenant, Epoch: v.epoch, Generation: v.generation, Revision: revision}
	for _, s := range shards {
		d := snapshot.DigestOf(s)
		h.Shards = append(h.Shards, &snapshotv1.Shard{Sha256: d[:], Size: uint64(len(s))})
	}
	return envelope(t, h, "a")
}

// update makes an update whose manifest names exactly the heads given.
func update(t testing.TB, sequence uint64, heads ...[]byte) *cellv1.Update {
	t.Helper()
	m := &snapshotv1.Manifest{Cell: "c", Sequence: sequence}
	for _, env := range heads {
		var e snapshotv1.Envelope
		var h snapshotv1.Head
		if err := errors.Join(proto.Unmarshal(env, &e), proto.Unmarshal(e.GetPayload(), &h)); err != nil {
			t.Fatal(err)
		}
		m.Heads = append(m.Heads, &snapshotv1.HeadRef{
			TenantId: h.GetTenantId(), Epoch: h.GetEpoch(), Generation: h.GetGeneration(), HeadSha256: payloadDigest(t, env),
		})
	}
	return &cellv1.Update{Manifest: envelope(t, m, "a"), Heads: heads}
}

func newKey(t testing.TB) store.Key {
	t.Helper()
	var k store.Key
	if _, err := rand.Read(k[:]); err != nil {
		t.Fatal(err)
	}
	return k
}

func open(t testing.TB, dir string, key store.Key) *store.Store {
	t.Helper()
	s, err := store.Open(store.Config{Dir: dir, Key: key, NewerKill: func(_, offered []byte) bool { return bytes.Contains(offered, []byte("newer")) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

func TestWhatWasWrittenIsThereAfterReopening(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	s := open(t, dir, key)
	u := update(t, 7, head(t, "acme", version{1, 3}, 1), head(t, "globex", version{1, 9}, 1))
	u.Roots = envelope(t, &snapshotv1.Roots{Version: 2}, "r")
	must(t, s.PutUpdate(u))
	kill := envelope(t, &snapshotv1.Kill{Id: "k1"}, "a")
	if added, err := s.AddKill("k1", kill); err != nil || !added {
		t.Fatalf("added %v, %v", added, err)
	}
	sessionKey := &cellv1.SessionKey{Id: 1, Key: bytes.Repeat([]byte{7}, 32), CreatedMs: 5}
	must(t, s.PutSessionKey(sessionKey))
	beat := envelope(t, &snapshotv1.Heartbeat{TimeMs: 1000}, "a")
	must(t, s.PutHeartbeat(beat, 1000))
	must(t, s.PutHighWater(99))
	must(t, s.Close())

	s = open(t, dir, key)
	if !proto.Equal(s.LastUpdate(), u) {
		t.Fatalf("the last update changed: %v", s.LastUpdate())
	}
	if len(s.Kills()) != 1 || !bytes.Equal(s.Kills()[0], kill) {
		t.Fatal("the kill is gone")
	}
	if keys := s.SessionKeys(); len(keys) != 1 || !proto.Equal(keys[0], sessionKey) {
		t.Fatal("the session key is gone")
	}
	if env, ms := s.Heartbeat(); !bytes.Equal(env, beat) || ms != 1000 {
		t.Fatal("the heartbeat is gone")
	}
	if s.HighWater() != 99 || s.Floor("globex") != (snapshot.Version{Epoch: 1, Generation: 9}) || len(s.Corrupt()) != 0 {
		t.Fatal("high water or floor is gone")
	}
}

func TestALowerVersionIsRefusedAndChangesNothing(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), newKey(t))
	a2, b5 := head(t, "acme", version{2, 2}, 1), head(t, "globex", version{1, 5}, 1)
	must(t, s.PutUpdate(update(t, 10, a2, b5)))
	before := s.LastUpdate()

	refused(t, s.PutUpdate(update(t, 9, a2, b5)), store.ErrRollback)
	refused(t, s.PutUpdate(update(t, 11, head(t, "acme", version{2, 1}, 1), b5)), store.ErrRollback)
	refused(t, s.PutUpdate(update(t, 11, head(t, "acme", version{1, 99}, 1), b5)), store.ErrRollback)
	// A good head beside a bad one is not taken: it is one transaction.
	refused(t, s.PutUpdate(update(t, 11, head(t, "globex", version{1, 6}, 1), head(t, "acme", version{2, 1}, 1))), store.ErrRollback)
	// Named in the manifest alone.
	low := update(t, 11, head(t, "acme", version{2, 1}, 1), b5)
	low.Heads = nil
	refused(t, s.PutUpdate(low), store.ErrRollback)
	if !proto.Equal(before, s.LastUpdate()) {
		t.Fatal("a refused update changed something")
	}
}

func TestTheFirstBodyOfAVersionStays(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), newKey(t))
	first := head(t, "acme", version{1, 2}, 1)
	must(t, s.PutUpdate(update(t, 10, first)))
	refused(t, s.PutUpdate(update(t, 11, head(t, "acme", version{1, 2}, 2))), store.ErrEquivocation)
	refused(t, s.PutUpdate(update(t, 10)), store.ErrEquivocation)
	if !bytes.Equal(s.Chains()["acme"].Head, first) {
		t.Fatal("the first head did not stay")
	}
	must(t, s.PutUpdate(update(t, 10, first)))
	_, err := s.AddKill("k", envelope(t, &snapshotv1.Kill{Id: "k", Subject: "alice"}, "a"))
	must(t, err)
	_, err = s.AddKill("k", envelope(t, &snapshotv1.Kill{Id: "k", Subject: "bob"}, "a"))
	refused(t, err, store.ErrEquivocation)
	if added, err := s.AddKill("k", envelope(t, &snapshotv1.Kill{Id: "k", Subject: "alice"}, "b")); err != nil || added {
		t.Fatalf("the same kill under another signature: %v, %v", added, err)
	}
	newer := envelope(t, &snapshotv1.Kill{Id: "k", Subject: "alice"}, "newer")
	if added, err := s.AddKill("k", newer); err != nil || !added || !bytes.Equal(s.Kills()[0], newer) {
		t.Fatalf("the same kill under a newer key: %v, %v", added, err)
	}
	must(t, s.PutSessionKey(&cellv1.SessionKey{Id: 1, Key: make([]byte, 32)}))
	refused(t, s.PutSessionKey(&cellv1.SessionKey{Id: 1, Key: bytes.Repeat([]byte{1}, 32)}), store.ErrEquivocation)
	must(t, s.PutRoots(envelope(t, &snapshotv1.Roots{Version: 3, Epoch: 1}, "a")))
	refused(t, s.PutRoots(envelope(t, &snapshotv1.Roots{Version: 3, Epoch: 2}, "a")), store.ErrEquivocation)
	refused(t, s.PutRoots(envelope(t, &snapshotv1.Roots{Version: 2}, "a")), store.ErrRollback)
}

func TestANewerSignatureOnTheSameBodyReplacesTheEnvelope(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), newKey(t))
	h := &snapshotv1.Head{TenantId: "acme", Epoch: 1, Generation: 2}
	must(t, s.PutUpdate(update(t, 10, envelope(t, h, "old"))))
	resigned := envelope(t, h, "new")
	must(t, s.PutUpdate(update(t, 10, resigned)))
	if !bytes.Equal(s.Chains()["acme"].Head, resigned) || len(s.History("acme")) != 1 {
		t.Fatal("the newer signature is not kept")
	}
}

func TestAHeadThatTheManifestDoesNotNameIsRefused(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), newKey(t))
	u := update(t, 1, head(t, "acme", version{1, 2}, 1))
	u.Heads = append(u.Heads, head(t, "globex", version{1, 1}, 1))
	refused(t, s.PutUpdate(u), store.ErrInvalid)
	u.Heads = [][]byte{head(t, "acme", version{1, 3}, 1)}
	refused(t, s.PutUpdate(u), store.ErrInvalid)
	u.Heads = [][]byte{head(t, "acme", version{1, 2}, 77)}
	refused(t, s.PutUpdate(u), store.ErrInvalid)
	// The generation before the one named is taken: the newest may not build.
	u.Heads = [][]byte{head(t, "acme", version{1, 1}, 1)}
	must(t, s.PutUpdate(u))
}

func TestTheLastEightGenerationsAreKept(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	s := open(t, dir, key)
	for g := uint64(1); g <= 12; g++ {
		must(t, s.PutUpdate(update(t, g, head(t, "acme", version{1, g}, g))))
	}
	must(t, s.Close())
	s = open(t, dir, key)
	got := s.History("acme")
	if len(got) != store.KeepGenerations || got[0].Version.Generation != 12 || got[7].Version.Generation != 5 {
		t.Fatalf("kept %v", got)
	}
	// Homed elsewhere: the heads go, the floor stays.
	must(t, s.PutUpdate(update(t, 13)))
	if len(s.Chains()) != 0 || s.Floor("acme").Generation != 12 {
		t.Fatal("heads of a tenant that left are kept, or its floor is not")
	}
}

func TestAnOlderDatabaseIsBeatenByTheFloorFile(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	s := open(t, dir, key)
	must(t, s.PutUpdate(update(t, 1, head(t, "acme", version{1, 1}, 1))))
	must(t, s.Close())
	old, err := os.ReadFile(filepath.Join(dir, "state.db"))
	must(t, err)
	s = open(t, dir, key)
	newest := update(t, 2, head(t, "acme", version{1, 2}, 1))
	must(t, s.PutUpdate(newest))
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(dir, "state.db"), old, 0o600))

	s = open(t, dir, key)
	if len(s.Chains()) != 0 || s.Manifest() != nil || len(s.Corrupt()) == 0 {
		t.Fatal("an older copy of the database is served")
	}
	refused(t, s.PutUpdate(update(t, 1, head(t, "acme", version{1, 1}, 1))), store.ErrRollback)
	must(t, s.PutUpdate(newest))
	if !proto.Equal(s.LastUpdate(), newest) {
		t.Fatal("the newest update did not heal the store")
	}
}

func TestALostFloorFileIsMadeAgain(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(string) error{
		"absent":  os.Remove,
		"flipped": func(p string) error { return flip(p, 20) },
		"cut":     func(p string) error { return os.Truncate(p, 5) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, key := t.TempDir(), newKey(t)
			s := open(t, dir, key)
			must(t, s.PutUpdate(update(t, 1, head(t, "acme", version{1, 4}, 1))))
			must(t, s.Close())
			must(t, spoil(filepath.Join(dir, "floor")))
			s = open(t, dir, key)
			if s.Floor("acme").Generation != 4 || len(s.Chains()) != 1 {
				t.Fatal("the database's own floor does not count")
			}
			if _, err := os.Stat(filepath.Join(dir, "floor")); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func flip(path string, at int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	if err == nil {
		b[0] ^= 0x10
		_, err = f.WriteAt(b[:], at)
	}
	return errors.Join(err, f.Close())
}

// Every byte of the database file is flipped in turn (in steps): the store either does not open, or tells, or shows what
// was written. It never shows anything else.
func TestAFlippedByteIsAnErrorNeverAnotherAnswer(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	s := open(t, dir, key)
	h := head(t, one, version{1, 2}, 1)
	u := withDeltas(update(t, 3, h), run(t, one, h, version{1, 2}, 2)...)
	must(t, s.PutUpdate(u))
	must(t, s.Close())
	good, err := os.ReadFile(filepath.Join(dir, "state.db"))
	must(t, err)
	floor, err := os.ReadFile(filepath.Join(dir, "floor"))
	must(t, err)
	found := 0
	for at := 0; at < len(good); at += 97 {
		d := t.TempDir()
		bad := bytes.Clone(good)
		bad[at] ^= 0x01
		must(t, os.WriteFile(filepath.Join(d, "state.db"), bad, 0o600))
		must(t, os.WriteFile(filepath.Join(d, "floor"), floor, 0o600))
		s, err := store.Open(store.Config{Dir: d, Key: key})
		if err != nil {
			found++
			continue
		}
		if len(s.Corrupt()) > 0 {
			found++
		} else if !proto.Equal(s.LastUpdate(), u) {
			t.Errorf("byte %d flipped: other answer and no error", at)
		}
		must(t, s.Close())
	}
	if found == 0 {
		t.Error("no flip was found")
	}
}

func TestATruncatedDatabaseDoesNotOpen(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	s := open(t, dir, key)
	must(t, s.PutUpdate(update(t, 3, head(t, "acme", version{1, 2}, 1))))
	must(t, s.Close())
	path := filepath.Join(dir, "state.db")
	info, err := os.Stat(path)
	must(t, err)
	whole, err := os.ReadFile(path)
	must(t, err)
	for _, size := range []int64{info.Size() / 2, 5 * 4096, 3*4096 + 1, 100} {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "state.db"), whole[:size], 0o600))
		if s, err := store.Open(store.Config{Dir: dir, Key: key}); err == nil {
			_ = s.Close()
			t.Errorf("a database cut to %d bytes opens", size)
		} else if !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("cut to %d: %v", size, err)
		}
	}
}

func TestAnotherKeyDoesNotOpenTheStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, open(t, dir, newKey(t)).Close())
	_, err := store.Open(store.Config{Dir: dir, Key: newKey(t)})
	refused(t, err, store.ErrKey)
}

func TestOneProcessAtATime(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	open(t, dir, key)
	_, err := store.Open(store.Config{Dir: dir, Key: key})
	refused(t, err, store.ErrInUse)
}

func TestNothingReadableIsOnTheDisk(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	s := open(t, dir, key)
	canary := []byte("canary-5d41402abc4b2a76b9719d911017c592")
	must(t, s.PutSessionKey(&cellv1.SessionKey{Id: 1, Key: canary[:32]}))
	must(t, s.PutBlob(snapshot.DigestOf(canary), canary))
	must(t, s.Close())
	must(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, canary[:20]) {
			t.Errorf("%s shows the value", path)
		}
		if info, ierr := e.Info(); ierr != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	}))
	if shown := fmt.Sprintf("%v %+v %#v %s", key, key, store.Config{Key: key}, key); !strings.Contains(shown, "[secret]") ||
		strings.Contains(shown, fmt.Sprintf("%d %d %d", key[0], key[1], key[2])) {
		t.Errorf("the key is printed: %s", shown)
	}
}

func TestKeyFileIsMadeOnceAndGuarded(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys", "seal.key")
	k, err := store.KeyFile(path)
	must(t, err)
	again, err := store.KeyFile(path)
	must(t, err)
	if k != again || k == (store.Key{}) {
		t.Fatal("the key is not the same at the second time")
	}
	must(t, os.Chmod(path, 0o640))
	if _, err := store.KeyFile(path); err == nil {
		t.Fatal("a key that others may read is used")
	}
	must(t, os.Chmod(path, 0o600))
	must(t, os.Truncate(path, 31))
	if _, err := store.KeyFile(path); err == nil {
		t.Fatal("a short key is used")
	}
}

func TestBlobsAreCheckedWhenRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir, newKey(t))
	body := []byte("a shard")
	d := snapshot.DigestOf(body)
	if _, err := s.GetBlob(d, 100); !errors.Is(err, store.ErrNotFound) || s.HasBlob(d) {
		t.Fatalf("got %v", err)
	}
	refused(t, s.PutBlob(d, []byte("other")), store.ErrInvalid)
	must(t, s.PutBlob(d, body))
	got, err := s.GetBlob(d, int64(len(body)))
	must(t, err)
	if !bytes.Equal(got, body) || !s.HasBlob(d) {
		t.Fatal("the blob changed")
	}
	_, err = s.GetBlob(d, int64(len(body))-1)
	refused(t, err, store.ErrTooBig)
	must(t, flip(filepath.Join(dir, "blobs", d.String()[:2], d.String()), 15))
	_, err = s.GetBlob(d, 100)
	refused(t, err, store.ErrCorrupt)
	must(t, s.PutBlob(d, body))
	_, err = s.GetBlob(d, 100)
	must(t, err)
	// Under another name it does not open, though the bytes are whole.
	other := snapshot.DigestOf([]byte("x"))
	must(t, os.MkdirAll(filepath.Join(dir, "blobs", other.String()[:2]), 0o700))
	must(t, os.Link(filepath.Join(dir, "blobs", d.String()[:2], d.String()), filepath.Join(dir, "blobs", other.String()[:2], other.String())))
	_, err = s.GetBlob(other, 100)
	refused(t, err, store.ErrCorrupt)
}

func TestOnlyUnnamedOldBlobsAreCollected(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s, err := store.Open(store.Config{Dir: t.TempDir(), Key: newKey(t), Now: func() time.Time { return now }})
	must(t, err)
	defer s.Close()
	used, unused := []byte("used"), []byte("unused")
	must(t, s.PutBlob(snapshot.DigestOf(used), used))
	must(t, s.PutBlob(snapshot.DigestOf(unused), unused))
	must(t, s.PutUpdate(update(t, 1, head(t, "acme", version{1, 1}, 1, used))))
	if n, err := s.CollectBlobs(t.Context()); err != nil || n != 0 {
		t.Fatalf("young blobs: removed %d, %v", n, err)
	}
	now = now.Add(2 * time.Hour)
	if n, err := s.CollectBlobs(t.Context()); err != nil || n != 1 {
		t.Fatalf("removed %d, %v", n, err)
	}
	if !s.HasBlob(snapshot.DigestOf(used)) || s.HasBlob(snapshot.DigestOf(unused)) {
		t.Fatal("the wrong blob went")
	}
}

func FuzzPutUpdate(f *testing.F) {
	good := update(f, 1, head(f, "acme", version{1, 1}, 1))
	f.Add(good.GetManifest(), good.GetHeads()[0], []byte{})
	f.Add([]byte{}, []byte{}, []byte{0x12})
	s := open(f, f.TempDir(), newKey(f))
	f.Fuzz(func(t *testing.T, manifest, head, roots []byte) {
		before := s.Floor("acme")
		_ = s.PutUpdate(&cellv1.Update{Manifest: manifest, Heads: [][]byte{head}, Roots: roots})
		if before.Newer(s.Floor("acme")) {
			t.Fatal("a floor went down")
		}
	})
}
