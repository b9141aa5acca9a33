package store_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
)

// Tenants of deltas have ids in canonical form.
const (
	one = "0198c0de-0000-7000-8000-000000000001"
	two = "0198c0de-0000-7000-8000-000000000002"
)

// delta makes the next generation out of one whose digest is parent.
func delta(t testing.TB, tenant string, v version, parent []byte, revision uint64) *snapshotv1.SignedDelta {
	t.Helper()
	id, ok := seal.TenantBytes(snapshot.TenantID(tenant))
	if !ok {
		t.Fatalf("%s is no UUID", tenant)
	}
	state := snapshot.DigestOf([]byte("state"))
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&snapshotv1.Delta{
		TenantId: id, Epoch: v.epoch, Generation: v.generation, Revision: revision, Parent: parent, StateHash: state[:],
	})
	must(t, err)
	return &snapshotv1.SignedDelta{Body: body, Signature: make([]byte, 64)}
}

func digestOf(d *snapshotv1.SignedDelta) []byte {
	sum := seal.DeltaDigest(d)
	return sum[:]
}

// run makes n deltas behind a head.
func run(t testing.TB, tenant string, head []byte, at version, n int) []*snapshotv1.SignedDelta {
	t.Helper()
	var all []*snapshotv1.SignedDelta
	parent := payloadDigest(t, head)
	for range n {
		at.generation++
		d := delta(t, tenant, at, parent, at.generation)
		all, parent = append(all, d), digestOf(d)
	}
	return all
}

func generations(s *store.Store, tenant snapshot.TenantID) (all []uint64) {
	for _, g := range s.History(tenant) {
		all = append(all, uint64(g.Version.Generation))
	}
	return all
}

func TestDeltasGoBeyondTheHeadAndSurviveReopening(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	s := open(t, dir, key)
	h1, h2 := head(t, one, version{1, 5}, 1), head(t, two, version{1, 2}, 1)
	u := update(t, 1, h1, h2)
	must(t, s.PutUpdate(u))
	ds := run(t, one, h1, version{1, 5}, 3)
	must(t, s.PutDeltas(ds[:2]))
	must(t, s.PutDeltas(ds[1:])) // the second one is there already
	want := proto.CloneOf(u)
	want.Deltas = ds
	for range 2 {
		if got := s.LastUpdate(); !proto.Equal(got, want) {
			t.Fatalf("the last update is %v", got)
		}
		if s.Floor(one) != (snapshot.Version{Epoch: 1, Generation: 8}) || len(s.Corrupt()) != 0 {
			t.Fatalf("floor %s, %v", s.Floor(one), s.Corrupt())
		}
		must(t, s.Close())
		s = open(t, dir, key)
	}
	// The root is that of the references after the deltas.
	refs := s.Refs()
	last := digestOf(ds[2])
	if refs[0].GetGeneration() != 8 || !bytes.Equal(refs[0].GetHeadSha256(), last) || refs[1].GetGeneration() != 2 {
		t.Fatalf("references %v", refs)
	}
	// A manifest that comes for the sake of another tenant names the same head still.
	must(t, s.PutUpdate(withHeads(update(t, 2, h1, head(t, two, version{1, 3}, 2)), 1)))
	if s.Floor(one).Generation != 8 || s.Floor(two).Generation != 3 || len(s.Chains()[one].Deltas) != 3 {
		t.Fatal("another tenant's head took the deltas away")
	}
	// The next head follows the deltas.
	next := head(t, one, version{1, 9}, 9)
	must(t, s.PutUpdate(update(t, 3, next, head(t, two, version{1, 3}, 2))))
	if c := s.Chains()[one]; len(c.Deltas) != 0 || !bytes.Equal(c.Head, next) || s.Refs()[0].GetGeneration() != 9 {
		t.Fatalf("after a new head: %v", c)
	}
}

func TestADeltaThatIsNotTheNextOneIsRefused(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), newKey(t))
	h1, h2 := head(t, one, version{2, 5}, 1), head(t, two, version{1, 2}, 1)
	must(t, s.PutUpdate(update(t, 1, h1, h2)))
	ds := run(t, one, h1, version{2, 5}, 4)
	must(t, s.PutDeltas(ds[:2]))
	before := s.LastUpdate()
	parent := digestOf(ds[1])
	for name, tc := range map[string]struct {
		d    *snapshotv1.SignedDelta
		want error
	}{
		"rolled back":           {ds[0], store.ErrRollback},
		"equivocating":          {delta(t, one, version{2, 7}, digestOf(ds[0]), 99), store.ErrEquivocation},
		"gapped":                {ds[3], store.ErrInvalid},
		"on another parent":     {delta(t, one, version{2, 8}, digestOf(ds[0]), 8), store.ErrInvalid},
		"of an older epoch":     {delta(t, one, version{1, 8}, parent, 8), store.ErrRollback},
		"of a newer epoch":      {delta(t, one, version{3, 8}, parent, 8), store.ErrInvalid},
		"of another tenant":     {delta(t, two, version{1, 3}, parent, 8), store.ErrInvalid},
		"of a tenant elsewhere": {delta(t, "0198c0de-0000-7000-8000-000000000003", version{1, 3}, parent, 8), store.ErrInvalid},
		"too large":             {&snapshotv1.SignedDelta{Body: make([]byte, seal.MaxDelta+1)}, store.ErrInvalid},
		"no delta":              {&snapshotv1.SignedDelta{Body: []byte{0xff}}, store.ErrInvalid},
		"empty":                 {&snapshotv1.SignedDelta{}, store.ErrInvalid},
	} {
		if err := s.PutDeltas([]*snapshotv1.SignedDelta{tc.d}); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			refused(t, err, tc.want)
		}
	}
	if !proto.Equal(before, s.LastUpdate()) {
		t.Fatal("a refused delta changed something")
	}
	// One that is refused holds up no other tenant.
	refused(t, s.PutDeltas([]*snapshotv1.SignedDelta{ds[3], run(t, two, h2, version{1, 2}, 1)[0]}), store.ErrInvalid)
	if s.Floor(two).Generation != 3 || s.Floor(one).Generation != 7 {
		t.Fatal("a refused delta held up another tenant")
	}
	// The manifest named another head of that number, so a delta cannot take its place.
	must(t, s.PutUpdate(withHeads(update(t, 2, head(t, one, version{2, 8}, 8), h2))))
	refused(t, s.PutDeltas([]*snapshotv1.SignedDelta{ds[2]}), store.ErrInvalid)
}

func TestAManifestBelowTheDeltasIsARollbackUnlessItNamesTheirHead(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), newKey(t))
	h := head(t, one, version{1, 5}, 1)
	must(t, s.PutUpdate(update(t, 1, h)))
	must(t, s.PutDeltas(run(t, one, h, version{1, 5}, 2)))
	refused(t, s.PutUpdate(withHeads(update(t, 2, head(t, one, version{1, 4}, 1)))), store.ErrRollback)
	refused(t, s.PutUpdate(withHeads(update(t, 2, head(t, one, version{1, 6}, 1)))), store.ErrRollback)
	refused(t, s.PutUpdate(withHeads(update(t, 2, head(t, one, version{1, 7}, 1)))), store.ErrEquivocation)
	refused(t, s.PutUpdate(update(t, 2, h)), store.ErrRollback) // the head alone would take the deltas away
	must(t, s.PutUpdate(withHeads(update(t, 2, h))))
}

func TestWhatTheLastEightGenerationsAreMadeOfIsKept(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	now := time.Now()
	s, err := store.Open(store.Config{Dir: dir, Key: key, Now: func() time.Time { return now }})
	must(t, err)
	old, kept := []byte("old"), []byte("kept")
	must(t, s.PutBlob(snapshot.DigestOf(old), old))
	must(t, s.PutBlob(snapshot.DigestOf(kept), kept))
	must(t, s.PutUpdate(update(t, 1, head(t, one, version{1, 1}, 1, old))))
	h := head(t, one, version{1, 2}, 2, kept)
	must(t, s.PutUpdate(update(t, 2, h)))
	must(t, s.PutDeltas(run(t, one, h, version{1, 2}, 12)))
	if got := generations(s, one); len(got) != 13 || got[0] != 14 || got[12] != 2 {
		t.Fatalf("kept %v", got)
	}
	now = now.Add(2 * time.Hour)
	if n, err := s.CollectBlobs(t.Context()); err != nil || n != 1 || !s.HasBlob(snapshot.DigestOf(kept)) {
		t.Fatalf("removed %d, %v", n, err)
	}
	for g := uint64(15); g < 15+store.KeepGenerations; g++ {
		must(t, s.PutUpdate(update(t, g, head(t, one, version{1, g}, g))))
	}
	must(t, s.Close())
	s = open(t, dir, key)
	if got := generations(s, one); len(got) != store.KeepGenerations || got[7] != 15 {
		t.Fatalf("kept %v", got)
	}
}

func TestADamagedDeltaIsNeverServedFromBelowTheFloor(t *testing.T) {
	t.Parallel()
	h := head(t, one, version{1, 5}, 1)
	ds := run(t, one, h, version{1, 5}, 3)
	for at := range ds {
		dir, key := t.TempDir(), newKey(t)
		s := open(t, dir, key)
		other := head(t, two, version{1, 1}, 1)
		must(t, s.PutUpdate(update(t, 1, h, other)))
		must(t, s.PutDeltas(ds))
		must(t, s.Close())
		spoil(t, dir, "deltas", at)

		s = open(t, dir, key)
		if len(s.Corrupt()) == 0 || s.Chains()[one].Head != nil || s.Floor(one).Generation != 8 || s.Chains()[two].Head == nil {
			t.Fatalf("delta %d damaged: %v is served under floor %s", at, s.Chains()[one], s.Floor(one))
		}
		// What leads to less than was accepted does not come back, from whomever.
		refused(t, s.Mend(h, ds[:2]), store.ErrInvalid)
		refused(t, s.PutUpdate(withDeltas(update(t, 2, h, other), ds[:2]...)), store.ErrRollback)
		// A manifest for another tenant's sake goes on, and the next delta alone finds nothing to stand on.
		must(t, s.PutUpdate(withHeads(update(t, 2, h, head(t, two, version{1, 2}, 1)), 1)))
		ninth := delta(t, one, version{1, 9}, digestOf(ds[2]), 9)
		refused(t, s.PutDeltas([]*snapshotv1.SignedDelta{ninth}), store.ErrInvalid)
		if at == 0 {
			must(t, s.Mend(h, ds))
		} else {
			must(t, s.PutUpdate(withDeltas(update(t, 3, h, head(t, two, version{1, 2}, 1)), ds...)))
		}
		must(t, s.PutDeltas([]*snapshotv1.SignedDelta{ninth}))
		must(t, s.Close())
		s = open(t, dir, key)
		if len(s.Corrupt()) != 0 || len(s.Chains()[one].Deltas) != 4 {
			t.Fatalf("after mending: %v, %v", s.Corrupt(), s.Chains()[one])
		}
	}
}

// spoil flips a bit of the nth record of a bucket.
func spoil(t *testing.T, dir, bucket string, n int) {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket([]byte(bucket))
		c := b.Cursor()
		k, v := c.First()
		for range n {
			k, v = c.Next()
		}
		bad := bytes.Clone(v)
		bad[len(bad)/2] ^= 1
		return b.Put(bytes.Clone(k), bad)
	}))
	must(t, db.Close())
}

func TestAnOlderDatabaseWithFewerDeltasIsBeatenByTheFloorFile(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	s := open(t, dir, key)
	h := head(t, one, version{1, 5}, 1)
	ds := run(t, one, h, version{1, 5}, 2)
	must(t, s.PutUpdate(update(t, 1, h)))
	must(t, s.PutDeltas(ds[:1]))
	must(t, s.Close())
	old, err := os.ReadFile(filepath.Join(dir, "state.db"))
	must(t, err)
	s = open(t, dir, key)
	must(t, s.PutDeltas(ds[1:]))
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(dir, "state.db"), old, 0o600))

	s = open(t, dir, key)
	if s.Chains()[one].Head != nil || s.Floor(one).Generation != 7 || len(s.Corrupt()) == 0 {
		t.Fatal("an older copy of the database is served")
	}
	must(t, s.Mend(h, ds))
	if c := s.Chains()[one]; len(c.Deltas) != 2 {
		t.Fatalf("after mending: %v", c)
	}
}

func TestADatabaseOfBeforeDeltasGetsTheirBucket(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), newKey(t)
	s := open(t, dir, key)
	h := head(t, one, version{1, 5}, 1)
	must(t, s.PutUpdate(update(t, 1, h)))
	must(t, s.Close())
	db, err := bbolt.Open(filepath.Join(dir, "state.db"), 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("deltas")) }))
	must(t, db.Close())
	s = open(t, dir, key)
	must(t, s.PutDeltas(run(t, one, h, version{1, 5}, 1)))
	if s.Floor(one).Generation != 6 || len(s.Corrupt()) != 0 {
		t.Fatalf("floor %s, %v", s.Floor(one), s.Corrupt())
	}
}

func FuzzPutDeltas(f *testing.F) {
	s := open(f, f.TempDir(), newKey(f))
	h := head(f, one, version{1, 5}, 1)
	must(f, s.PutUpdate(update(f, 1, h)))
	ds := run(f, one, h, version{1, 5}, 2)
	f.Add(ds[0].GetBody(), ds[1].GetBody())
	f.Add([]byte{0x0a}, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		before := s.Floor(one)
		pair := []*snapshotv1.SignedDelta{{Body: a}, {Body: b}}
		_ = s.PutDeltas(pair)
		_ = s.Mend(h, pair)
		after := s.Floor(one)
		if before.Newer(after) || after.Generation > before.Generation+2 || s.Chains()[one].Version != after {
			t.Fatalf("floor %s after %s, newest %s", after, before, s.Chains()[one].Version)
		}
	})
}

// withHeads keeps only the heads at these places of an update.
func withHeads(u *cellv1.Update, at ...int) *cellv1.Update {
	heads := u.GetHeads()
	u.Heads = nil
	for _, i := range at {
		u.Heads = append(u.Heads, heads[i])
	}
	return u
}

func withDeltas(u *cellv1.Update, ds ...*snapshotv1.SignedDelta) *cellv1.Update {
	u.Deltas = ds
	return u
}
