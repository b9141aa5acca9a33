package breakglass_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/breakglass"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// glass is a break-glass key, named beside the control plane's own kill key.
func glass(t testing.TB) (*snapshottest.Authority, *seal.Signer, *seal.Trust) {
	t.Helper()
	a, key := snapshottest.NewAuthority(t), snapshottest.Signer("break-glass")
	body := a.Body(2, 1)
	body.Keys = append(body.Keys, &snapshotv1.PublicKey{KeyId: key.KeyID(), Role: snapshotv1.KeyRole_KEY_ROLE_KILL, Ed25519: key.Public(), Since: 2})
	env, err := seal.SignRoots(body, a.Root[0], a.Root[1])
	if err != nil {
		t.Fatal(err)
	}
	trust, err := a.Trust.OpenRoots(env)
	if err != nil {
		t.Fatal(err)
	}
	return a, key, trust
}

func kill(t testing.TB, id string, by *seal.Signer) []byte {
	t.Helper()
	env, err := seal.SignKill(&snapshotv1.Kill{Id: id, Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: "acme", Subject: "mallory", IssuedMs: 1}, by)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func file(t testing.TB, envelopes ...[]byte) []byte {
	t.Helper()
	b, err := breakglass.Encode(envelopes...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAFileOfKillsComesBackAsItWasWritten(t *testing.T) {
	t.Parallel()
	a, key, trust := glass(t)
	b := file(t, kill(t, "k1", key), kill(t, "k2", a.Kill))
	got, err := breakglass.Read(bytes.NewReader(b), trust)
	if err != nil || len(got) != 2 || got[0].Body.GetId() != "k1" || got[1].Body.GetSubject() != "mallory" {
		t.Fatalf("%v %v", got, err)
	}
	if string(file(t, got[0].Envelope, got[1].Envelope)) != string(b) {
		t.Error("written again it is another file")
	}
}

func TestAFileWithOneBadBlockIsRefusedWholeAndSaysWhich(t *testing.T) {
	t.Parallel()
	a, key, trust := glass(t)
	one, two := kill(t, "k1", key), kill(t, "k2", key)
	heartbeat, err := seal.SignHeartbeat(&snapshotv1.Heartbeat{Cell: "eu", Root: make([]byte, 32), TimeMs: 1}, key)
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(two)
	forged[len(forged)-1] ^= 1
	for name, c := range map[string]struct {
		second []byte
		want   error
	}{
		"a flipped bit in the signature": {forged, seal.ErrSignature},
		"another kind of envelope":       {heartbeat, seal.ErrType},
		"a key that the roots name not":  {kill(t, "k2", snapshottest.Signer("stranger")), seal.ErrSignature},
		"a key of another role":          {kill(t, "k2", a.Head), seal.ErrRole},
		"the same kill twice":            {one, breakglass.ErrFormat},
		"no envelope":                    {[]byte("x"), seal.ErrFormat},
	} {
		got, err := breakglass.Open(file(t, one, c.second), trust)
		var block *breakglass.BlockError
		if !errors.Is(err, c.want) || !errors.As(err, &block) || block.Block != 2 || got != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestOnlyTheOneFormIsRead(t *testing.T) {
	t.Parallel()
	_, key, trust := glass(t)
	good := string(file(t, kill(t, "k1", key)))
	for name, bad := range map[string]string{
		"empty":             "",
		"a comment":         "# call the office\n" + good,
		"an empty line":     good + "\n",
		"text behind":       good + "x",
		"a space":           strings.Replace(good, "\n", " \n", 1),
		"CRLF":              strings.ReplaceAll(good, "\n", "\r\n"),
		"a header":          strings.Replace(good, "\n", "\nSubject: alice\n\n", 1),
		"another type":      strings.ReplaceAll(good, "MCPVAULT KILL", "CERTIFICATE"),
		"one long line":     strings.Replace(good, "\n"+strings.Split(good, "\n")[2], strings.Split(good, "\n")[2], 1),
		"no last line feed": good[:len(good)-1],
		"cut short":         good[:len(good)/2],
		"an empty block":    "-----BEGIN MCPVAULT KILL-----\n-----END MCPVAULT KILL-----\n",
	} {
		if _, err := breakglass.Open([]byte(bad), trust); !errors.Is(err, breakglass.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnyFlippedBitOfAFileIsRefused(t *testing.T) {
	t.Parallel()
	_, key, trust := glass(t)
	good := file(t, kill(t, "k1", key))
	for i := range good {
		for bit := range 8 {
			good[i] ^= 1 << bit
			if _, err := breakglass.Open(good, trust); err == nil {
				t.Fatalf("byte %d bit %d", i, bit)
			}
			good[i] ^= 1 << bit
		}
	}
}

func TestAFileIsBounded(t *testing.T) {
	t.Parallel()
	_, _, trust := glass(t)
	if _, err := breakglass.Read(endless{}, trust); !errors.Is(err, breakglass.ErrSize) {
		t.Errorf("a file without an end: %v", err)
	}
	small := bytes.Repeat([]byte{1}, 8)
	var many [][]byte
	for range breakglass.MaxKills + 1 {
		many = append(many, small)
	}
	if _, err := breakglass.Encode(many...); !errors.Is(err, breakglass.ErrSize) {
		t.Errorf("too many are written: %v", err)
	}
	over := append(file(t, many[1:]...), file(t, small)...)
	if _, err := breakglass.Parse(over); !errors.Is(err, breakglass.ErrSize) {
		t.Errorf("too many are read: %v", err)
	}
	if _, err := breakglass.Encode(make([]byte, seal.MaxKill+1)); !errors.Is(err, breakglass.ErrSize) {
		t.Errorf("a large one is written: %v", err)
	}
}

// endless is a reader that never ends, of zeroes.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestABreakGlassKeySignsNothingButKills(t *testing.T) {
	t.Parallel()
	a, key, trust := glass(t)
	digest := make([]byte, 32)
	head, err := seal.SignHead(&snapshotv1.Head{
		TenantId: "t", Tenant: "acme", Epoch: 1, Generation: 1, NotAfterMs: 2, NotBeforeMs: 1, Shards: []*snapshotv1.Shard{
			{Kind: snapshotv1.ShardKind_SHARD_KIND_INDEX, Sha256: digest, Size: 1}, {Kind: snapshotv1.ShardKind_SHARD_KIND_CATALOGUE, Sha256: digest, Size: 1},
		},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.OpenHead(head); !errors.Is(err, seal.ErrRole) {
		t.Errorf("a head: %v", err)
	}
	root, err := seal.ManifestRoot(nil)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := seal.SignManifest(&snapshotv1.Manifest{Cell: "eu", Sequence: 1, IssuedMs: 1, Root: root[:]}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.OpenManifest(manifest, "eu"); !errors.Is(err, seal.ErrRole) {
		t.Errorf("a manifest: %v", err)
	}
	beat, err := seal.SignHeartbeat(&snapshotv1.Heartbeat{Cell: "eu", Root: digest, TimeMs: 1}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.OpenHeartbeat(beat, "eu"); !errors.Is(err, seal.ErrRole) {
		t.Errorf("a heartbeat: %v", err)
	}
	roots, err := seal.SignRoots(a.Body(3, 1), key, a.Root[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.OpenRoots(roots); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("roots: %v", err)
	}
	delta, err := seal.SignDelta(&snapshotv1.Delta{TenantId: make([]byte, 16), Epoch: 1, Generation: 2, Parent: digest, StateHash: digest}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := trust.OpenDelta(delta); !errors.Is(err, seal.ErrSignature) {
		t.Errorf("a delta: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	_, key, trust := glass(f)
	f.Add(file(f, kill(f, "k1", key), kill(f, "k2", key)))
	f.Add([]byte("-----BEGIN MCPVAULT KILL-----\nAAAA\n-----END MCPVAULT KILL-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		envelopes, err := breakglass.Parse(b)
		if err != nil {
			return
		}
		if again := file(t, envelopes...); !bytes.Equal(again, b) {
			t.Fatalf("two forms of one file:\n%q\n%q", b, again)
		}
		if kills, err := breakglass.Open(b, trust); err == nil {
			for _, k := range kills {
				if _, err := trust.OpenKill(k.Envelope); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
