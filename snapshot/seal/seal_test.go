package seal_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func head() *snapshotv1.Head {
	d := snapshot.DigestOf([]byte("shard"))
	return &snapshotv1.Head{
		TenantId: "0198c0de-0000-7000-8000-000000000001", Tenant: "acme", Epoch: 1, Generation: 7, Revision: 42,
		NotBeforeMs: 1000, NotAfterMs: 2000, Compiler: "test",
		Shards: []*snapshotv1.Shard{
			{Kind: snapshotv1.ShardKind_SHARD_KIND_INDEX, Sha256: d[:], Size: 5},
			{Kind: snapshotv1.ShardKind_SHARD_KIND_CATALOGUE, Sha256: d[:], Size: 5},
		},
	}
}

func heartbeat() *snapshotv1.Heartbeat {
	d := snapshot.DigestOf([]byte("root"))
	return &snapshotv1.Heartbeat{Cell: "eu-1", Root: d[:], TimeMs: snapshottest.Now, Sequence: 3}
}

func kill() *snapshotv1.Kill {
	return &snapshotv1.Kill{
		Id: "k1", Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: "t1", Subject: "alice", IssuedMs: snapshottest.Now, Reason: "left",
	}
}

// sealed is one envelope of every type and how a node opens it.
type sealed struct {
	env  []byte
	open func([]byte) error
}

func all(t testing.TB) map[string]sealed {
	a := snapshottest.NewAuthority(t)
	ok := must[[]byte](t)
	h := ok(seal.SignHead(head(), a.Head))
	pin := must[snapshot.Digest](t)(seal.RootsDigest(a.Roots))
	return map[string]sealed{
		"head":      {h, func(b []byte) error { _, err := a.Trust.OpenHead(b); return err }},
		"manifest":  {a.Manifest(t, "eu-1", 9, h), func(b []byte) error { _, err := a.Trust.OpenManifest(b, "eu-1"); return err }},
		"heartbeat": {ok(seal.SignHeartbeat(heartbeat(), a.Heartbeat)), func(b []byte) error { _, err := a.Trust.OpenHeartbeat(b, "eu-1"); return err }},
		"kill":      {ok(seal.SignKill(kill(), a.Kill)), func(b []byte) error { _, err := a.Trust.OpenKill(b); return err }},
		"roots":     {a.Roots, func(b []byte) error { _, err := seal.OpenRoots(b, pin); return err }},
		"new roots": {ok(seal.SignRoots(a.Body(2, 2), a.Root[1], a.Root[2])), func(b []byte) error { _, err := a.Trust.OpenRoots(b); return err }},
	}
}

func TestOpenTakesWhatWasSealed(t *testing.T) {
	t.Parallel()
	for name, s := range all(t) {
		if err := s.open(s.env); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpenRefusesEveryFlippedByte(t *testing.T) {
	t.Parallel()
	for name, s := range all(t) {
		for i := range s.env {
			for _, change := range []byte{1 << (i % 8), 0xff} {
				b := bytes.Clone(s.env)
				b[i] ^= change
				if s.open(b) == nil {
					t.Errorf("%s: byte %d changed by %#x and accepted", name, i, change)
				}
			}
		}
	}
}

func TestOpenRefusesEveryLength(t *testing.T) {
	t.Parallel()
	for name, s := range all(t) {
		for n := range s.env {
			if s.open(s.env[:n]) == nil {
				t.Errorf("%s: %d of %d bytes accepted", name, n, len(s.env))
			}
		}
	}
}

func TestOpenRefusesOtherTypes(t *testing.T) {
	t.Parallel()
	envs := all(t)
	for name, s := range envs {
		for other, o := range envs {
			if strings.TrimPrefix(name, "new ") != strings.TrimPrefix(other, "new ") {
				if err := s.open(o.env); !errors.Is(err, seal.ErrType) && !errors.Is(err, seal.ErrSize) {
					t.Errorf("%s opened as %s: %v", other, name, err)
				}
			}
		}
	}
}

// envelope takes an envelope apart, changes it and puts it together without signing again.
func envelope(t testing.TB, env []byte, change func(*snapshotv1.Envelope)) []byte {
	t.Helper()
	e := &snapshotv1.Envelope{}
	if err := proto.Unmarshal(env, e); err != nil {
		t.Fatal(err)
	}
	change(e)
	return must[[]byte](t)(proto.Marshal(e))
}

func TestRelabelledPayloadIsRefused(t *testing.T) {
	t.Parallel()
	// A heartbeat key signs bytes that are also a valid head, under its own type.
	a := snapshottest.NewAuthority(t)
	env := must[[]byte](t)(seal.SignHead(head(), a.Heartbeat))
	if _, err := a.Trust.OpenHead(env); !errors.Is(err, seal.ErrRole) {
		t.Errorf("head by a heartbeat key: %v", err)
	}
	hb := must[[]byte](t)(seal.SignHeartbeat(heartbeat(), a.Head))
	if _, err := a.Trust.OpenHeartbeat(hb, "eu-1"); !errors.Is(err, seal.ErrRole) {
		t.Errorf("heartbeat by a head key: %v", err)
	}
	env = envelope(t, must[[]byte](t)(seal.SignHead(head(), a.Head)), func(e *snapshotv1.Envelope) { e.PayloadType = seal.TypeHeartbeat })
	if _, err := a.Trust.OpenHeartbeat(env, "eu-1"); err == nil {
		t.Error("head relabelled as heartbeat accepted")
	}
}

func TestRolesAreKeptApart(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	for name, s := range map[string]*seal.Signer{"root": a.Root[0], "kill": a.Kill, "heartbeat": a.Heartbeat} {
		if _, err := a.Trust.OpenHead(must[[]byte](t)(seal.SignHead(head(), s))); !errors.Is(err, seal.ErrRole) {
			t.Errorf("head by %s: %v", name, err)
		}
	}
	if _, err := a.Trust.OpenKill(must[[]byte](t)(seal.SignKill(kill(), a.Root[0]))); !errors.Is(err, seal.ErrRole) {
		t.Errorf("kill by root: %v", err)
	}
	stranger := snapshottest.Signer("stranger")
	if _, err := a.Trust.OpenHead(must[[]byte](t)(seal.SignHead(head(), stranger))); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("head by a stranger: %v", err)
	}
	forged := envelope(t, must[[]byte](t)(seal.SignHead(head(), stranger)), func(e *snapshotv1.Envelope) {
		e.Signatures[0].KeyId = a.Head.KeyID()
	})
	if _, err := a.Trust.OpenHead(forged); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("head by a stranger under the head key's id: %v", err)
	}
}

func TestUnknownSignaturesAreIgnored(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	env := must[[]byte](t)(seal.SignHead(head(), snapshottest.Signer("new key"), a.Heartbeat, a.Head))
	if _, err := a.Trust.OpenHead(env); err != nil {
		t.Error(err)
	}
	many := envelope(t, env, func(e *snapshotv1.Envelope) {
		for range 20 {
			e.Signatures = append(e.Signatures, e.Signatures[2])
		}
	})
	if _, err := a.Trust.OpenHead(many); !errors.Is(err, seal.ErrSize) {
		t.Errorf("23 signatures: %v", err)
	}
}

func TestUnknownFieldsAreTaken(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	h := head()
	h.ProtoReflect().SetUnknown([]byte{0xfa, 0x3e, 1, 'x'}) // field 1007
	if got, err := a.Trust.OpenHead(must[[]byte](t)(seal.SignHead(h, a.Head))); err != nil || got.GetGeneration() != 7 {
		t.Errorf("%v %v", got, err)
	}
}

func TestTooLargeIsRefusedBeforeDecoding(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	for name, s := range all(t) {
		if err := s.open(make([]byte, 1<<20+1)); !errors.Is(err, seal.ErrSize) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h := head()
	h.Compiler = strings.Repeat("x", seal.MaxHead)
	if _, err := seal.SignHead(h, a.Head); !errors.Is(err, seal.ErrSize) {
		t.Errorf("sign: %v", err)
	}
}

func TestRootsNeedTheThreshold(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	ok := must[[]byte](t)
	pinOf := must[snapshot.Digest](t)
	body := a.Body(1, 1)
	one := ok(seal.SignRoots(body, a.Root[0]))
	if _, err := seal.OpenRoots(one, pinOf(seal.RootsDigest(one))); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("one of two: %v", err)
	}
	twice := ok(seal.SignRoots(body, a.Root[0], a.Root[0]))
	if _, err := seal.OpenRoots(twice, pinOf(seal.RootsDigest(twice))); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("the same key twice: %v", err)
	}
	wrong := ok(seal.SignRoots(body, a.Root[0], a.Head))
	if _, err := seal.OpenRoots(wrong, pinOf(seal.RootsDigest(wrong))); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("a root and a head key: %v", err)
	}
	if _, err := seal.OpenRoots(a.Roots, snapshot.DigestOf(nil)); !errors.Is(err, seal.ErrPin) {
		t.Errorf("another pin: %v", err)
	}
	if _, err := seal.OpenRoots(a.Roots, snapshot.Digest{}); !errors.Is(err, seal.ErrPin) {
		t.Errorf("no pin: %v", err)
	}
}

func TestNewRootsNeedOldAndNewKeys(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	ok := must[[]byte](t)
	var keys []seal.RoleKey
	fresh := []*seal.Signer{snapshottest.Signer("n1"), snapshottest.Signer("n2"), snapshottest.Signer("n3")}
	for _, s := range fresh {
		keys = append(keys, seal.RoleKey{Role: snapshotv1.KeyRole_KEY_ROLE_ROOT, Key: s.Public()})
	}
	body := seal.BuildRoots(2, 2, 2, keys...)
	for name, signers := range map[string][]*seal.Signer{
		"old only":   {a.Root[0], a.Root[1]},
		"new only":   {fresh[0], fresh[1]},
		"one of old": {a.Root[0], fresh[0], fresh[1]},
		"one of new": {a.Root[0], a.Root[1], fresh[2]},
	} {
		if _, err := a.Trust.OpenRoots(ok(seal.SignRoots(body, signers...))); !errors.Is(err, seal.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	next, err := a.Trust.OpenRoots(ok(seal.SignRoots(body, a.Root[2], a.Root[1], fresh[0], fresh[2])))
	if err != nil {
		t.Fatal(err)
	}
	if next.Version() != 2 || next.Epoch() != 2 || len(next.KeyIDs(snapshotv1.KeyRole_KEY_ROLE_ROOT)) != 3 {
		t.Errorf("%+v", next)
	}
	if _, err := next.OpenHead(ok(seal.SignHead(head(), a.Head))); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("head by a key that the new roots dropped: %v", err)
	}
	both := []*seal.Signer{fresh[0], fresh[1], a.Root[0], a.Root[1]}
	for name, old := range map[string]*snapshotv1.Roots{"lower": a.Body(1, 9), "same version": seal.BuildRoots(2, 3, 2, keys...), "lower epoch": seal.BuildRoots(3, 1, 2, keys...)} {
		if _, err := next.OpenRoots(ok(seal.SignRoots(old, both...))); !errors.Is(err, seal.ErrRollback) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if same, err := a.Trust.OpenRoots(a.Roots); err != nil || same != a.Trust {
		t.Errorf("its own roots: %v", err)
	}
}

func TestSignRootsRefusesWhatNobodyCouldTrust(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	for name, spoil := range map[string]func(*snapshotv1.Roots){
		"no version":     func(r *snapshotv1.Roots) { r.Version = 0 },
		"no epoch":       func(r *snapshotv1.Roots) { r.Epoch = 0 },
		"no threshold":   func(r *snapshotv1.Roots) { r.Threshold = 0 },
		"threshold of 4": func(r *snapshotv1.Roots) { r.Threshold = 4 },
		"huge threshold": func(r *snapshotv1.Roots) { r.Threshold = 1<<32 - 1 },
		"key twice":      func(r *snapshotv1.Roots) { r.Keys = append(r.Keys, r.Keys[0]) },
		"key in two roles": func(r *snapshotv1.Roots) {
			k := proto.CloneOf(r.Keys[0])
			k.Role = snapshotv1.KeyRole_KEY_ROLE_KILL
			r.Keys = append(r.Keys, k)
		},
		"id of another key": func(r *snapshotv1.Roots) { r.Keys[0].KeyId = r.Keys[1].KeyId },
		"short key":         func(r *snapshotv1.Roots) { r.Keys[0].Ed25519 = r.Keys[0].Ed25519[:31] },
		"no role":           func(r *snapshotv1.Roots) { r.Keys[0].Role = 0 },
	} {
		body := a.Body(1, 1)
		spoil(body)
		if _, err := seal.SignRoots(body, a.Root[:]...); !errors.Is(err, seal.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBodiesAreChecked(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	for name, spoil := range map[string]func(*snapshotv1.Head){
		"no tenant":      func(h *snapshotv1.Head) { h.TenantId = "" },
		"no epoch":       func(h *snapshotv1.Head) { h.Epoch = 0 },
		"no generation":  func(h *snapshotv1.Head) { h.Generation = 0 },
		"short parent":   func(h *snapshotv1.Head) { h.Parent = []byte{1} },
		"no end":         func(h *snapshotv1.Head) { h.NotAfterMs = 0 },
		"no shards":      func(h *snapshotv1.Head) { h.Shards = nil },
		"one shard":      func(h *snapshotv1.Head) { h.Shards = h.Shards[:1] },
		"shard twice":    func(h *snapshotv1.Head) { h.Shards = append(h.Shards, h.Shards[0]) },
		"short digest":   func(h *snapshotv1.Head) { h.Shards[0].Sha256 = []byte{1} },
		"no size":        func(h *snapshotv1.Head) { h.Shards[0].Size = 0 },
		"absurd size":    func(h *snapshotv1.Head) { h.Shards[0].Size = 1 << 40 },
		"65 more shards": func(h *snapshotv1.Head) { h.Shards = append(h.Shards, make([]*snapshotv1.Shard, 65)...) },
	} {
		h := head()
		spoil(h)
		if _, err := seal.SignHead(h, a.Head); !errors.Is(err, seal.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h := head()
	h.Epoch = 2
	if _, err := a.Trust.OpenHead(must[[]byte](t)(seal.SignHead(h, a.Head))); !errors.Is(err, seal.ErrEpoch) {
		t.Errorf("an epoch that the roots do not know: %v", err)
	}
}

func TestOtherCellIsRefused(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	m := a.Manifest(t, "eu-1", 1)
	if _, err := a.Trust.OpenManifest(m, "us-1"); !errors.Is(err, seal.ErrCell) {
		t.Errorf("manifest: %v", err)
	}
	if _, err := a.Trust.OpenHeartbeat(must[[]byte](t)(seal.SignHeartbeat(heartbeat(), a.Heartbeat)), "us-1"); !errors.Is(err, seal.ErrCell) {
		t.Errorf("heartbeat: %v", err)
	}
}

func TestManifestIsSortedAndHasItsRoot(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	d := snapshot.DigestOf(nil)
	m := &snapshotv1.Manifest{Cell: "eu-1", Sequence: 1, IssuedMs: 1}
	for i := range 5 {
		m.Heads = append(m.Heads, &snapshotv1.HeadRef{TenantId: fmt.Sprint("t", i), Epoch: 1, Generation: 1, HeadSha256: d[:]})
	}
	root := must[snapshot.Digest](t)(seal.ManifestRoot(m.Heads))
	m.Root = root[:]
	env := must[[]byte](t)(seal.SignManifest(m, a.Head))
	if got, err := a.Trust.OpenManifest(env, "eu-1"); err != nil || !proto.Equal(got, m) {
		t.Errorf("%v %v", got, err)
	}
	m.Heads[3].Generation++
	if _, err := seal.SignManifest(m, a.Head); !errors.Is(err, seal.ErrDigest) {
		t.Errorf("another root: %v", err)
	}
	m.Heads[3].Generation--
	m.Heads[0], m.Heads[1] = m.Heads[1], m.Heads[0]
	if _, err := seal.SignManifest(m, a.Head); !errors.Is(err, seal.ErrFormat) {
		t.Errorf("out of order: %v", err)
	}
	empty := must[snapshot.Digest](t)(seal.ManifestRoot(nil))
	if empty != snapshot.DigestOf(nil) {
		t.Errorf("root over nothing: %v", empty)
	}
}

func TestTimeIsJudgedApart(t *testing.T) {
	t.Parallel()
	h := head()
	for ms, want := range map[int64]error{999: seal.ErrNotYet, 1000: nil, 1999: nil, 2000: seal.ErrExpired} {
		if err := seal.CheckTime(h, time.UnixMilli(ms)); !errors.Is(err, want) {
			t.Errorf("at %d: %v", ms, err)
		}
	}
}

func TestHeadDigestIsThatOfThePayload(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	one := must[[]byte](t)(seal.SignHead(head(), a.Head))
	two := must[[]byte](t)(seal.SignHead(head(), a.Head, a.Root[0]))
	d1, d2 := must[snapshot.Digest](t)(seal.HeadDigest(one)), must[snapshot.Digest](t)(seal.HeadDigest(two))
	if d1 != d2 || !seal.SamePayload(one, two) || bytes.Equal(one, two) {
		t.Error("who signs changes what is named")
	}
}

func TestKeyFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "head.pem")
	key := must[*seal.Signer](t)(seal.GenerateKey())
	if err := seal.WriteKey(path, key); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v %v", st.Mode(), err)
	}
	if got := must[*seal.Signer](t)(seal.ReadKey(path)); got.KeyID() != key.KeyID() || !got.Public().Equal(key.Public()) {
		t.Error("another key came back")
	}
	if err := seal.WriteKey(path, key); !errors.Is(err, os.ErrExist) {
		t.Errorf("overwrite: %v", err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.ReadKey(path); !errors.Is(err, os.ErrPermission) {
		t.Errorf("readable by the group: %v", err)
	}
	bad := filepath.Join(t.TempDir(), "bad.pem")
	for _, s := range []string{"", "junk", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if err := os.WriteFile(bad, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.ReadKey(bad); !errors.Is(err, seal.ErrFormat) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestSignerNeverPrintsItsKey(t *testing.T) {
	t.Parallel()
	s := snapshottest.Signer("head")
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "signer", s)
	out := fmt.Sprintf("%v %+v %#v %s %x %q %d", s, s, s, s, s, s, s) + log.String()
	seed := s.Private().Seed()
	if strings.Contains(out, hex.EncodeToString(seed)) || strings.Contains(out, fmt.Sprint(seed[0], seed[1])) || !strings.Contains(out, s.KeyID()) {
		t.Error(out)
	}
}

func TestSignatureCoversThePreAuthenticationEncoding(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	e := &snapshotv1.Envelope{}
	if err := proto.Unmarshal(must[[]byte](t)(seal.SignKill(kill(), a.Kill)), e); err != nil {
		t.Fatal(err)
	}
	msg := fmt.Sprintf("DSSEv1 %d %s %d %s", len(e.GetPayloadType()), e.GetPayloadType(), len(e.GetPayload()), e.GetPayload())
	if !ed25519.Verify(a.Kill.Public(), []byte(msg), e.GetSignatures()[0].GetSig()) {
		t.Error("the signature is over something else")
	}
}

func TestAKillSignedAnewReplacesTheOlderSignatureAndNeverTheOtherWayRound(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	next := snapshottest.Signer("kill-2")
	body := a.Body(2, 1)
	body.Keys = append(body.Keys, &snapshotv1.PublicKey{KeyId: next.KeyID(), Role: snapshotv1.KeyRole_KEY_ROLE_KILL, Ed25519: next.Public(), Since: 2})
	env, err := seal.SignRoots(body, a.Root[0], a.Root[2])
	if err != nil {
		t.Fatal(err)
	}
	trust, err := a.Trust.OpenRoots(env)
	if err != nil {
		t.Fatal(err)
	}
	if got := trust.Newest(snapshotv1.KeyRole_KEY_ROLE_KILL); len(got) != 2 || got[0] != next.KeyID() {
		t.Fatalf("newest first: %v", got)
	}
	old, err := seal.SignKill(&snapshotv1.Kill{Id: "k", Kind: snapshotv1.KillKind_KILL_KIND_KEY, Subject: "x", IssuedMs: 1}, a.Kill)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := trust.ResignKill(old, next)
	if err != nil {
		t.Fatal(err)
	}
	if !seal.SamePayload(old, fresh) || !trust.NewerKill(old, fresh) || trust.NewerKill(fresh, old) || trust.NewerKill(old, old) {
		t.Error("the newer key's signature does not win")
	}
	// A key id that is claimed and not proved is worth nothing.
	claimed := &snapshotv1.Envelope{}
	if err := proto.Unmarshal(old, claimed); err != nil {
		t.Fatal(err)
	}
	claimed.Signatures[0].KeyId = next.KeyID()
	lie, err := proto.Marshal(claimed)
	if err != nil {
		t.Fatal(err)
	}
	if trust.NewerKill(old, lie) {
		t.Error("a claimed key id wins")
	}
	if _, err := trust.ResignKill(lie, next); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("a kill that does not verify was signed: %v", err)
	}
	if got := seal.Signers(fresh); len(got) != 1 || got[0] != next.KeyID() {
		t.Errorf("signers: %v", got)
	}
	body.Version, body.Keys[0].Since = 3, 4
	if _, err := seal.SignRoots(body, a.Root[0], a.Root[1]); !errors.Is(err, seal.ErrFormat) {
		t.Errorf("a key of a later version: %v", err)
	}
}

func TestRootsAreSignedByHoldersWhoDoNotMeet(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	body := a.Body(2, 2)
	one, err := seal.SignPart(body, a.Root[0])
	if err != nil {
		t.Fatal(err)
	}
	two, err := seal.SignPart(body, a.Root[1])
	if err != nil {
		t.Fatal(err)
	}
	if !seal.SignsRoots(body, one, a.Root[0].Public()) || seal.SignsRoots(body, one, a.Root[1].Public()) {
		t.Error("whose signature it is")
	}
	alone, err := seal.JoinRoots(body, one)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Trust.OpenRoots(alone); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("one of two: %v", err)
	}
	both, err := seal.JoinRoots(body, one, two)
	if err != nil {
		t.Fatal(err)
	}
	if next, err := a.Trust.OpenRoots(both); err != nil || next.Version() != 2 || next.Epoch() != 2 {
		t.Errorf("%v", err)
	}
	whole, err := seal.SignRoots(body, a.Root[0], a.Root[1])
	if err != nil || string(whole) != string(both) {
		t.Errorf("joined and signed together are not the same bytes: %v", err)
	}
	if read, err := seal.RootsBody(both); err != nil || !proto.Equal(read, body) {
		t.Errorf("%v %v", read, err)
	}
}
