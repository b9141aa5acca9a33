package feed_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

const globex = "018f0000-0000-7000-8000-000000000002"

func update(u *cellv1.Update) *cellv1.WatchResponse {
	return &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Update{Update: u}}
}

func heartbeat(env []byte) *cellv1.WatchResponse {
	return &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Heartbeat{Heartbeat: env}}
}

func killed(env []byte) *cellv1.WatchResponse {
	return &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Kill{Kill: env}}
}

func (a *authority) killOf(t testing.TB, id, subject string, by *seal.Signer) []byte {
	t.Helper()
	env, err := seal.SignKill(&snapshotv1.Kill{
		Id: id, Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: acme, Subject: subject, IssuedMs: 1,
	}, by)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// rooted makes roots from scratch: of nobody whom the node believes.
func rooted(t testing.TB) []byte {
	t.Helper()
	return newAuthority(t).roots
}

// with returns a copy of an update, changed.
func with(u *cellv1.Update, change func(*cellv1.Update)) *cellv1.Update {
	c := proto.CloneOf(u)
	change(c)
	return c
}

// serving is a node that serves generation 5 of acme, and the update that brought it.
func serving(t testing.TB) (*authority, *node, *cellv1.Update) {
	t.Helper()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	_, good := a.generation(t, 5, a.head, nil)
	a.push(good)
	eventually(t, "generation 5 is live", func() bool { return n.generation() == 5 })
	return a, n, good
}

// unharmed says what is wrong with a node that should serve generation 5 and nothing else.
func (n *node) unharmed(t testing.TB) {
	t.Helper()
	// A good manifest beside a bad head is taken: the other tenants' heads are.
	state := n.pdp.Current()
	m, err := openRoots(t, n.auth.roots).OpenManifest(n.store.Manifest(), cellName)
	switch {
	case err != nil || m.GetSequence() < 1:
		t.Errorf("the manifest on the disk: %v", err)
	case n.generation() != 5 || len(state.Tenants()) != 1:
		t.Errorf("generation %d of %d tenants is live", n.generation(), len(state.Tenants()))
	case state.Kills() != 0:
		t.Errorf("%d kills are in force", state.Kills())
	case n.store.Floor(acme) != (snapshot.Version{Epoch: 1, Generation: 5}):
		t.Errorf("the floor is %s", n.store.Floor(acme))
	case !bytes.Equal(n.store.Roots(), n.auth.roots) && n.store.Roots() != nil:
		t.Error("other roots are on the disk")
	}
}

func TestNothingHostileReplacesTheLastGoodAndEveryReasonIsReported(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		event func(t *testing.T, a *authority, good *cellv1.Update) *cellv1.WatchResponse
		// gen is answered with words in the reason; 0 means that the node says them of itself.
		gen   uint64
		words string
	}{
		"a forged head": {func(t *testing.T, a *authority, _ *cellv1.Update) *cellv1.WatchResponse {
			_, u := a.generation(t, 6, a.stranger, nil)
			return update(u)
		}, 6, "no valid signature"},
		"a head signed by a heartbeat key": {func(t *testing.T, a *authority, _ *cellv1.Update) *cellv1.WatchResponse {
			_, u := a.generation(t, 6, a.beat, nil)
			return update(u)
		}, 6, "another role"},
		"a forged manifest": {func(t *testing.T, a *authority, _ *cellv1.Update) *cellv1.WatchResponse {
			head := a.head
			a.head = a.stranger
			_, u := a.generation(t, 6, head, nil)
			a.head = head
			return update(u)
		}, 0, "manifest"},
		"another cell's manifest": {func(t *testing.T, a *authority, _ *cellv1.Update) *cellv1.WatchResponse {
			root, err := seal.ManifestRoot(nil)
			if err != nil {
				t.Fatal(err)
			}
			m, err := seal.SignManifest(&snapshotv1.Manifest{Cell: "other", Sequence: 9, IssuedMs: 1, Root: root[:]}, a.head)
			if err != nil {
				t.Fatal(err)
			}
			return update(&cellv1.Update{Manifest: m})
		}, 0, "another cell"},
		"a heartbeat for a manifest": {func(t *testing.T, a *authority, good *cellv1.Update) *cellv1.WatchResponse {
			return update(with(good, func(u *cellv1.Update) { u.Manifest = a.heartbeat(t, good, time.Now()) }))
		}, 0, "another type"},
		"an epoch that no roots know": {func(t *testing.T, a *authority, good *cellv1.Update) *cellv1.WatchResponse {
			env := resealed(t, good.GetHeads()[0], a.head, func(h *snapshotv1.Head) { h.Epoch = 2 })
			return update(with(good, func(u *cellv1.Update) { u.Heads = [][]byte{env} }))
		}, 5, "epoch"},
		"too big a head": {func(_ *testing.T, _ *authority, good *cellv1.Update) *cellv1.WatchResponse {
			return update(with(good, func(u *cellv1.Update) {
				u.Heads = [][]byte{append(bytes.Clone(good.GetHeads()[0]), make([]byte, seal.MaxHead)...)}
			}))
		}, 0, "too large"},
		"too big a manifest": {func(_ *testing.T, _ *authority, good *cellv1.Update) *cellv1.WatchResponse {
			return update(with(good, func(u *cellv1.Update) { u.Manifest = append(u.Manifest, make([]byte, seal.MaxManifest)...) }))
		}, 0, "too large"},
		"roots of another installation": {func(t *testing.T, _ *authority, good *cellv1.Update) *cellv1.WatchResponse {
			return update(with(good, func(u *cellv1.Update) { u.Roots = rooted(t) }))
		}, 0, "roots"},
		"a heartbeat of a stranger": {func(t *testing.T, a *authority, good *cellv1.Update) *cellv1.WatchResponse {
			beat := a.beat
			a.beat = a.stranger
			defer func() { a.beat = beat }()
			return heartbeat(a.heartbeat(t, good, time.Now()))
		}, 0, "heartbeat"},
		"a kill of a stranger": {func(t *testing.T, a *authority, _ *cellv1.Update) *cellv1.WatchResponse {
			return killed(a.killOf(t, "k1", "alice", a.stranger))
		}, 0, "kill"},
		"a kill signed by the head key": {func(t *testing.T, a *authority, _ *cellv1.Update) *cellv1.WatchResponse {
			return killed(a.killOf(t, "k1", "alice", a.head))
		}, 0, "kill"},
		"nothing at all": {func(*testing.T, *authority, *cellv1.Update) *cellv1.WatchResponse {
			return update(&cellv1.Update{})
		}, 0, "manifest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, n, good := serving(t)
			a.events <- row.event(t, a, good)
			eventually(t, "the refusal is reported", func() bool {
				if row.gen != 0 {
					return a.rejected(row.gen, row.words)
				}
				p := n.feed.Problem()
				return p != nil && strings.Contains(p.Error(), row.words) && strings.Contains(p.Error(), "last good one stays")
			})
			n.unharmed(t)
			// What is good is taken as if nothing had been.
			_, next := a.generation(t, 7, a.head, nil)
			a.push(next)
			eventually(t, "a good generation follows", func() bool { return n.generation() == 7 })
			a.events <- heartbeat(a.heartbeat(t, next, time.Now()))
			a.events <- killed(a.killOf(t, "k2", "mallory", a.kill))
			eventually(t, "nothing is left to report", func() bool { return n.feed.Problem() == nil && n.pdp.Current().Kills() == 1 })
		})
	}
}

// resealed changes a head and signs it again.
func resealed(t testing.TB, env []byte, by *seal.Signer, change func(*snapshotv1.Head)) []byte {
	t.Helper()
	var e snapshotv1.Envelope
	var h snapshotv1.Head
	if err := proto.Unmarshal(env, &e); err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(e.GetPayload(), &h); err != nil {
		t.Fatal(err)
	}
	change(&h)
	out, err := seal.SignHead(&h, by)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAHeadThatTheManifestDoesNotNameHoldsUpNobody(t *testing.T) {
	t.Parallel()
	a, n, good := serving(t)
	stray := a.signed(t, globex, "globex", 3, a.head, nil)
	a.push(with(good, func(u *cellv1.Update) { u.Heads = append(u.Heads, stray) }))
	_, next := a.generation(t, 7, a.head, nil)
	a.push(with(next, func(u *cellv1.Update) { u.Heads = append(u.Heads, stray) }))
	eventually(t, "the tenant's own generation is live", func() bool { return n.generation() == 7 })
	if n.pdp.Current().Tenant(globex) != nil || n.store.Floor(globex) != (snapshot.Version{}) {
		t.Error("a tenant that is homed elsewhere is served")
	}
}

func TestAnyFlippedByteOfWhatTheStreamBringsIsRefused(t *testing.T) {
	t.Parallel()
	a, n, good := serving(t)
	beat := a.heartbeat(t, good, time.Now().Add(time.Hour))
	kill := a.killOf(t, "k1", "alice", a.kill)
	confirmed := n.pdp.Current().Tenant(acme).ConfirmedMS()
	_, next := a.generation(t, 6, a.head, nil)
	flip := func(b []byte, i int) []byte {
		c := bytes.Clone(b)
		c[i] ^= 1
		return c
	}
	events := 0
	send := func(ev *cellv1.WatchResponse) { a.events <- ev; events++ }
	for i := range beat {
		send(heartbeat(flip(beat, i)))
	}
	for i := range kill {
		send(killed(flip(kill, i)))
	}
	for i := range next.GetManifest() {
		send(update(with(next, func(u *cellv1.Update) { u.Manifest = flip(u.Manifest, i); u.Heads = nil })))
	}
	for i := range a.roots {
		send(update(with(next, func(u *cellv1.Update) { u.Roots = flip(u.Roots, i) })))
	}
	eventually(t, "the stream is at its end", func() bool { return len(a.events) == 0 })
	eventually(t, "each kind is reported", func() bool {
		p := n.feed.Problem()
		return p != nil && strings.Contains(p.Error(), "a heartbeat") && strings.Contains(p.Error(), "a kill") && strings.Contains(p.Error(), "an update")
	})
	n.unharmed(t)
	if got := n.pdp.Current().Tenant(acme).ConfirmedMS(); got != confirmed {
		t.Errorf("a heartbeat with a flipped byte has renewed the lease: %d, %d before", got, confirmed)
	}
	t.Logf("%d events with a flipped byte", events)
}

func TestAnyFlippedByteOfAShardIsRefused(t *testing.T) {
	t.Parallel()
	a, n, _ := serving(t)
	var e snapshotv1.Envelope
	var h snapshotv1.Head
	env := a.signed(t, acme, "acme", 6, a.head, nil)
	if err := proto.Unmarshal(env, &e); err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(e.GetPayload(), &h); err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, s := range h.GetShards() {
		d, _ := snapshot.DigestFrom(s.GetSha256())
		a.mu.Lock()
		whole := a.blobs[d]
		a.mu.Unlock()
		for i := 0; i < len(whole); i += max(1, len(whole)/400) {
			spoilt := bytes.Clone(whole)
			spoilt[i] ^= 0x20
			if err := n.store.PutBlob(d, spoilt); err == nil {
				t.Fatalf("byte %d of shard %s is taken", i, d)
			}
			tried++
		}
	}
	n.unharmed(t)
	t.Logf("%d flipped bytes of %d shards", tried, len(h.GetShards()))
}
