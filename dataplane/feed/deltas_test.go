package feed_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"google.golang.org/protobuf/proto"
)

// line is one tenant's generations as the control plane makes them: a head, and deltas on it.
type line struct {
	a      *authority
	policy *snapshot.Policy
	gen    uint64
	parent snapshot.Digest
	index  *index.Index
	head   []byte
	deltas []*snapshotv1.SignedDelta
}

// begin makes a head of the tenant as it is now.
func (a *authority) begin(t testing.TB, id, name string, gen uint64) *line {
	t.Helper()
	return (&line{a: a, policy: basePolicy(id)}).rebase(t, name, gen)
}

// rebase makes a head of what the policy is now.
func (l *line) rebase(t testing.TB, name string, gen uint64) *line {
	t.Helper()
	l.index = compiled(t, l.policy)
	l.head = l.a.signed(t, string(l.policy.Tenant), name, gen, l.a.head, func(x, _ *[]byte) {
		raw, err := builder.Build(l.policy)
		if err != nil {
			t.Fatal(err)
		}
		*x = raw
	})
	digest, err := seal.HeadDigest(l.head)
	if err != nil {
		t.Fatal(err)
	}
	l.gen, l.parent, l.deltas = gen, digest, nil
	return l
}

func compiled(t testing.TB, p *snapshot.Policy) *index.Index {
	t.Helper()
	raw, err := builder.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// body is the next delta after a change, unsigned.
func (l *line) body(t testing.TB, change func(*snapshot.Policy)) *snapshotv1.Delta {
	t.Helper()
	change(l.policy)
	next := compiled(t, l.policy)
	d, err := index.Diff(l.index, next)
	if err != nil {
		t.Fatal(err)
	}
	id, ok := seal.TenantBytes(l.policy.Tenant)
	if !ok {
		t.Fatalf("%s is no UUID", l.policy.Tenant)
	}
	state := next.StateHash()
	d.TenantId, d.Epoch, d.Generation, d.Revision = id, 1, l.gen+1, l.gen+101
	d.Parent, d.StateHash = bytes.Clone(l.parent[:]), state[:]
	return d
}

func sign(t testing.TB, d *snapshotv1.Delta, s *seal.Signer) *snapshotv1.SignedDelta {
	t.Helper()
	signed, err := seal.SignDelta(d, s)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// take makes a delta the newest generation of the line.
func (l *line) take(t testing.TB, signed *snapshotv1.SignedDelta) {
	t.Helper()
	d := &snapshotv1.Delta{}
	if err := proto.Unmarshal(signed.GetBody(), d); err != nil {
		t.Fatal(err)
	}
	x, err := index.Apply(l.index, d)
	if err != nil {
		t.Fatal(err)
	}
	l.index, l.gen, l.parent = x, d.GetGeneration(), seal.DeltaDigest(signed)
	l.deltas = append(l.deltas, signed)
}

// next is the delta of a change.
func (l *line) next(t testing.TB, change func(*snapshot.Policy)) *snapshotv1.SignedDelta {
	t.Helper()
	signed := sign(t, l.body(t, change), l.a.head)
	l.take(t, signed)
	return signed
}

// give changes the roles of alice.
func give(roles ...snapshot.Ref) func(*snapshot.Policy) {
	return func(p *snapshot.Policy) { p.Principals[0].Nodes = roles }
}

func (l *line) update(t testing.TB, others ...[]byte) *cellv1.Update {
	t.Helper()
	u := l.a.update(t, append([][]byte{l.head}, others...)...)
	u.Deltas = l.deltas
	return u
}

// beat is a heartbeat over the newest generation of the line alone.
func (l *line) beat(t testing.TB, at time.Time) []byte {
	t.Helper()
	root, err := seal.ManifestRoot([]*snapshotv1.HeadRef{{
		TenantId: string(l.policy.Tenant), Epoch: 1, Generation: l.gen, HeadSha256: l.parent[:],
	}})
	if err != nil {
		t.Fatal(err)
	}
	env, err := seal.SignHeartbeat(&snapshotv1.Heartbeat{Cell: l.a.cell, Root: root[:], TimeMs: at.UnixMilli(), Sequence: 1}, l.a.beat)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func (a *authority) pushDelta(d *snapshotv1.SignedDelta) {
	a.events <- &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Delta{Delta: d}}
}

func (a *authority) pushBeat(env []byte) {
	a.events <- &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Heartbeat{Heartbeat: env}}
}

// rejected reports whether a generation was answered with a reason that has these words.
func (a *authority) rejected(gen uint64, words string) bool {
	return a.acked(func(r *cellv1.AcknowledgeRequest) bool {
		return r.GetGeneration() == gen && r.GetStatus() == cellv1.AckStatus_ACK_STATUS_REJECTED && strings.Contains(r.GetReason(), words)
	})
}

func (n *node) serves(t testing.TB, l *line) {
	t.Helper()
	eventually(t, "the newest generation is live", func() bool {
		tenant := n.pdp.Current().Tenant(l.policy.Tenant)
		return tenant != nil && uint64(tenant.Version.Generation) == l.gen
	})
	tenant := n.pdp.Current().Tenant(l.policy.Tenant)
	if want := compiled(t, l.policy).StateHash(); tenant.Index.StateHash() != want || tenant.State != want || tenant.Digest != l.parent {
		t.Fatalf("generation %s is another policy than the compiler made", tenant.Version)
	}
}

func TestOneRoleChangeTravelsAsADeltaAndNoShardIsFetched(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	l := a.begin(t, acme, "acme", 1)
	a.push(l.update(t))
	n.serves(t, l)
	a.mu.Lock()
	fetched := a.fetched
	a.mu.Unlock()
	before := n.pdp.Current().Tenant(acme)

	d := l.next(t, give("role:reader"))
	if size := len(d.GetBody()) + len(d.GetSignature()); size > 200 {
		t.Errorf("one role change is %d bytes", size)
	}
	a.pushDelta(d)
	n.serves(t, l)
	eventually(t, "the delta is acknowledged with its revision", func() bool {
		return a.acked(func(r *cellv1.AcknowledgeRequest) bool {
			return r.GetGeneration() == 2 && r.GetRevision() == 102 && r.GetStatus() == cellv1.AckStatus_ACK_STATUS_APPLIED
		})
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fetched != fetched {
		t.Errorf("%d shards were fetched for a delta", a.fetched-fetched)
	}
	after := n.pdp.Current().Tenant(acme)
	if after.HeadDigest != before.HeadDigest || after.Servers[0] != before.Servers[0] || before.Version.Generation != 1 {
		t.Error("the catalogue was read again, or what readers hold was written to")
	}
}

func TestANodeThatWasAwayCatchesUpFromTheHeadAndItsDeltas(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	l := a.begin(t, acme, "acme", 1)
	for i := range 10 {
		if i%2 == 0 {
			l.next(t, give("role:reader"))
		} else {
			l.next(t, give())
		}
	}
	n := startNode(t, a, t.TempDir(), a)
	a.push(l.update(t))
	n.serves(t, l)
	// One that was away for the last few is sent those alone.
	for range 3 {
		a.pushDelta(l.next(t, func(p *snapshot.Policy) { p.Principals[1].Disabled = !p.Principals[1].Disabled }))
	}
	n.serves(t, l)
	// And a new head follows the deltas.
	l.policy.Grants = l.policy.Grants[:1]
	l.rebase(t, "acme", l.gen+1)
	a.push(l.update(t))
	n.serves(t, l)
	a.pushDelta(l.next(t, give("role:reader")))
	n.serves(t, l)
}

func TestDeltasComeBackFromTheDiskAlone(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := t.TempDir()
	l := a.begin(t, acme, "acme", 1)
	t.Run("first life", func(t *testing.T) {
		n := startNode(t, a, dir, a)
		a.push(l.update(t))
		for _, change := range []func(*snapshot.Policy){give("role:reader"), give(), give("role:reader")} {
			a.pushDelta(l.next(t, change))
		}
		n.serves(t, l)
		a.pushBeat(l.beat(t, time.Now()))
		eventually(t, "the heartbeat is on the disk", func() bool { _, ms := n.store.Heartbeat(); return ms > 0 })
	})
	n := startNode(t, a, dir) // no source of shards, and nothing is pushed
	n.serves(t, l)
	s := n.pdp.Current()
	if !s.Fresh(s.Tenant(acme), s.Tenant(acme).Bound(snapshotv1.Effect_EFFECT_READ), time.Now().UnixMilli()-1000) {
		t.Error("the lease that covers the deltas was forgotten")
	}
}

func TestADeltaThatIsNotGoodIsRefusedAndTheReasonGoesBack(t *testing.T) {
	t.Parallel()
	const globex = "018f0000-0000-7000-8000-000000000002"
	for name, tc := range map[string]struct {
		spoil  func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta
		gen    uint64
		reason string
	}{
		"forged": {func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta {
			return sign(t, d, l.a.stranger)
		}, 3, "signature"},
		"signed by a heartbeat key": {func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta {
			return sign(t, d, l.a.beat)
		}, 3, "signature"},
		"of another tenant": {func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta {
			d.TenantId, _ = seal.TenantBytes(globex)
			return sign(t, d, l.a.head)
		}, 3, "does not follow"},
		"gapped": {func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta {
			d.Generation = 4
			return sign(t, d, l.a.head)
		}, 4, "does not follow"},
		"on another parent": {func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta {
			d.Parent[0] ^= 1
			return sign(t, d, l.a.head)
		}, 3, "does not follow"},
		"of another epoch": {func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta {
			d.Epoch = 9
			return sign(t, d, l.a.head)
		}, 3, "epoch"},
		"equivocating": {func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta {
			d.Generation = 2
			return sign(t, d, l.a.head)
		}, 2, "taken before"},
		"to another state": {func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta {
			d.StateHash[0] ^= 1
			return sign(t, d, l.a.head)
		}, 3, "state"},
		"of what is not there": {func(t *testing.T, l *line, d *snapshotv1.Delta) *snapshotv1.SignedDelta {
			d.Users = []*snapshotv1.DeltaUser{{Id: 99999, Nodes: []uint32{1}}}
			return sign(t, d, l.a.head)
		}, 3, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t)
			n := startNode(t, a, t.TempDir(), a)
			l := a.begin(t, acme, "acme", 1)
			a.push(l.update(t))
			a.pushDelta(l.next(t, give("role:reader")))
			n.serves(t, l)

			a.pushDelta(tc.spoil(t, l, l.body(t, give())))
			eventually(t, "the reason goes back", func() bool { return a.rejected(tc.gen, tc.reason) })
			if n.generation() != 2 || n.store.Floor(acme).Generation != 2 {
				t.Fatal("a delta that is not good changed something")
			}
			// The control plane makes a head of it then, and deltas go on from there.
			l.rebase(t, "acme", 4)
			a.push(l.update(t))
			n.serves(t, l)
			a.pushDelta(l.next(t, give("role:reader")))
			n.serves(t, l)
		})
	}
}

func TestEveryFlippedByteOfADeltaIsRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	l := a.begin(t, acme, "acme", 1)
	a.push(l.update(t))
	n.serves(t, l)
	good := l.next(t, give("role:reader"))
	flip := func(part func(*snapshotv1.SignedDelta) []byte) {
		for i := range part(good) {
			bad := proto.CloneOf(good)
			part(bad)[i] ^= 1 << (i % 8)
			a.pushDelta(bad)
		}
	}
	flip((*snapshotv1.SignedDelta).GetBody)
	flip((*snapshotv1.SignedDelta).GetSignature)
	large := &snapshotv1.SignedDelta{Body: make([]byte, seal.MaxDelta+1), Signature: good.GetSignature()}
	a.pushDelta(large)
	eventually(t, "the reason goes back", func() bool { return a.rejected(2, "signature") })
	if n.generation() != 1 || n.store.Floor(acme).Generation != 1 {
		t.Fatal("a flipped byte changed something")
	}
	// The genuine one is none the worse for it.
	a.pushDelta(good)
	n.serves(t, l)
	// Said again it changes nothing.
	a.pushDelta(good)
	a.pushDelta(l.next(t, give()))
	n.serves(t, l)
}

func TestATenantWhoseDeltaDoesNotApplyHoldsUpNobody(t *testing.T) {
	t.Parallel()
	const globex = "018f0000-0000-7000-8000-000000000002"
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	l, other := a.begin(t, acme, "acme", 1), a.begin(t, globex, "globex", 1)
	a.push(l.update(t, other.head))
	n.serves(t, l)
	n.serves(t, other)
	bad := l.body(t, give("role:reader"))
	bad.StateHash[3] ^= 1
	a.pushDelta(sign(t, bad, a.head))
	a.pushDelta(other.next(t, give("role:reader")))
	n.serves(t, other)
	eventually(t, "the reason goes back", func() bool { return a.rejected(2, "state") })
	if n.generation() != 1 {
		t.Fatal("a delta that does not apply is served")
	}
}

// The cell has committed a delta that this node cannot apply: as when another node proposed it.
func TestANodeThatCannotApplyWhatTheCellHasHoldsWritesBack(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := t.TempDir()
	l := a.begin(t, acme, "acme", 1)
	fresh := func(n *node, effect snapshotv1.Effect) bool {
		s := n.pdp.Current()
		n.pdp.RenewLease(acme, time.Now().UnixMilli())
		return s.Fresh(s.Tenant(acme), s.Tenant(acme).Bound(effect), time.Now().UnixMilli())
	}
	t.Run("first life", func(t *testing.T) {
		n := startNode(t, a, dir, a)
		a.push(l.update(t))
		a.pushDelta(l.next(t, give("role:reader")))
		n.serves(t, l)
		bad := l.body(t, give())
		bad.StateHash[3] ^= 1
		if err := n.store.PutDeltas([]*snapshotv1.SignedDelta{sign(t, bad, a.head)}); err != nil {
			t.Fatal(err)
		}
		n.feed.Applied()
		eventually(t, "writes are held back", func() bool { return !fresh(n, snapshotv1.Effect_EFFECT_WRITE) })
		eventually(t, "the reason goes back", func() bool { return a.rejected(3, "state") })
		if n.generation() != 2 || !fresh(n, snapshotv1.Effect_EFFECT_READ) {
			t.Fatal("the last good generation goes on serving reads")
		}
	})
	// After a restart it serves what it can prove, and no more than before.
	n := startNode(t, a, dir, a)
	if n.generation() != 2 || fresh(n, snapshotv1.Effect_EFFECT_WRITE) || !fresh(n, snapshotv1.Effect_EFFECT_READ) {
		t.Fatalf("generation %d is served after the restart", n.generation())
	}
	l.rebase(t, "acme", 4)
	a.push(l.update(t))
	n.serves(t, l)
	if !fresh(n, snapshotv1.Effect_EFFECT_WRITE) {
		t.Fatal("writes are held back though the next head is live")
	}
}

func TestAHeartbeatConfirmsTheRootOverHeadsAndDeltas(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	l := a.begin(t, acme, "acme", 1)
	a.push(l.update(t))
	n.serves(t, l)
	now := time.Now()
	old := l.beat(t, now)
	a.pushDelta(l.next(t, give("role:reader")))
	n.serves(t, l)
	fresh := func() bool {
		s := n.pdp.Current()
		return s.Fresh(s.Tenant(acme), s.Tenant(acme).Bound(snapshotv1.Effect_EFFECT_READ), now.UnixMilli())
	}
	if err := n.feed.TakeHeartbeat(old); err != nil || fresh() {
		t.Fatalf("a heartbeat over the generation before renewed the lease, or %v", err)
	}
	if err := n.feed.TakeHeartbeat(l.beat(t, now.Add(time.Millisecond))); err != nil || !fresh() {
		t.Fatalf("a heartbeat over the delta did not renew the lease: %v", err)
	}
}

func TestAControlPlaneWithFewerDeltasIsRefusedAndToldSo(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	l := a.begin(t, acme, "acme", 4)
	first := l.update(t)
	a.push(first)
	a.pushDelta(l.next(t, give("role:reader")))
	restored := &cellv1.Update{Manifest: first.GetManifest(), Heads: first.GetHeads(), Roots: first.GetRoots(), Deltas: l.deltas}
	a.pushDelta(l.next(t, give()))
	n.serves(t, l)
	a.push(restored)
	for i := range 3 {
		a.pushBeat(l.beat(t, time.Now().Add(time.Duration(i)*time.Second)))
	}
	eventually(t, "the node says so", func() bool {
		err := n.feed.Problem()
		return err != nil && strings.Contains(err.Error(), "1.6")
	})
	eventually(t, "the reason goes back", func() bool { return a.rejected(5, "1.6") })
	if n.generation() != 6 {
		t.Fatalf("generation %d is served", n.generation())
	}
	// The manifest alone, which names the head that the deltas rest on, is nothing to complain of.
	a.push(&cellv1.Update{Manifest: first.GetManifest(), Roots: first.GetRoots()})
	eventually(t, "the node is content", func() bool { return n.feed.Problem() == nil })
}

func TestADiskThatLostADeltaIsMendedByTheControlPlane(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := t.TempDir()
	l := a.begin(t, acme, "acme", 1)
	t.Run("first life", func(t *testing.T) {
		n := startNode(t, a, dir, a)
		a.push(l.update(t))
		a.pushDelta(l.next(t, give("role:reader")))
		n.serves(t, l)
	})
	path := filepath.Join(dir, "state.db")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("second life", func(t *testing.T) {
		n := startNode(t, a, dir, a)
		n.serves(t, l)
		a.pushDelta(l.next(t, give()))
		n.serves(t, l)
	})
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, a, dir, a)
	if n.generation() != 0 || n.store.Floor(acme).Generation != 3 {
		t.Fatalf("generation %d is served under floor %s", n.generation(), n.store.Floor(acme))
	}
	a.push(l.update(t))
	n.serves(t, l)
	a.pushDelta(l.next(t, give("role:reader")))
	n.serves(t, l)
}

func TestDeltasThatTheLogDoesNotTakeWaitInBoundedNumber(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	l := a.begin(t, acme, "acme", 1)
	a.push(l.update(t))
	n.serves(t, l)
	n.log.shut.Store(true)
	const waiting = 128
	for i := range waiting + 1 {
		if i%2 == 0 {
			a.pushDelta(l.next(t, give("role:reader")))
		} else {
			a.pushDelta(l.next(t, give()))
		}
	}
	eventually(t, "one too many is refused", func() bool { return a.rejected(waiting+2, "wait already") })
	if n.generation() != 1 {
		t.Fatal("something is live that the log did not take")
	}
	n.log.shut.Store(false)
	eventually(t, "those that waited are live", func() bool { return n.generation() == waiting+1 })
	l.rebase(t, "acme", waiting+3)
	a.push(l.update(t))
	n.serves(t, l)
}
