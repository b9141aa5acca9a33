package feed_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/mcpvault/mcpvault/dataplane/feed"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/shard"
	"google.golang.org/protobuf/proto"
)

const (
	cellName = "test"
	acme     = "018f0000-0000-7000-8000-000000000001"
)

// authority is the control plane's half: keys, and a service that pushes what a test tells it to.
type authority struct {
	cellv1connect.UnimplementedCellServiceHandler
	head, beat, kill, stranger *seal.Signer
	roots                      []byte
	root                       [2]*seal.Signer

	mu     sync.Mutex
	blobs  map[snapshot.Digest][]byte
	acks   []*cellv1.AcknowledgeRequest
	events chan *cellv1.WatchResponse
	seq    uint64
	// cell is whom manifests and heartbeats are for.
	cell string
	// fetched counts the shards that were asked for; guarded by mu.
	fetched int
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := func() *seal.Signer {
		s, err := seal.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a := &authority{
		head: key(), beat: key(), kill: key(), stranger: key(), cell: cellName,
		blobs: map[snapshot.Digest][]byte{}, events: make(chan *cellv1.WatchResponse, 16),
	}
	r1, r2, r3 := key(), key(), key()
	role := func(r snapshotv1.KeyRole, s *seal.Signer) seal.RoleKey {
		return seal.RoleKey{Role: r, Key: s.Public()}
	}
	body := seal.BuildRoots(1, 1, 2,
		role(snapshotv1.KeyRole_KEY_ROLE_ROOT, r1), role(snapshotv1.KeyRole_KEY_ROLE_ROOT, r2),
		role(snapshotv1.KeyRole_KEY_ROLE_ROOT, r3), role(snapshotv1.KeyRole_KEY_ROLE_HEAD, a.head),
		role(snapshotv1.KeyRole_KEY_ROLE_HEARTBEAT, a.beat), role(snapshotv1.KeyRole_KEY_ROLE_KILL, a.kill))
	env, err := seal.SignRoots(body, r1, r2)
	if err != nil {
		t.Fatal(err)
	}
	a.roots, a.root = env, [2]*seal.Signer{r1, r2}
	return a
}

func (a *authority) Watch(ctx context.Context, _ *cellv1.WatchRequest, out cellv1connect.CellServiceWatchServerStream) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev := <-a.events:
			if err := out.Send(ev); err != nil {
				return err
			}
		}
	}
}

func (a *authority) Acknowledge(_ context.Context, r *cellv1.AcknowledgeRequest) (*cellv1.AcknowledgeResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.acks = append(a.acks, r)
	return &cellv1.AcknowledgeResponse{}, nil
}

// Fetch makes the authority a source of shards.
func (a *authority) Fetch(_ context.Context, d snapshot.Digest, _ int64) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fetched++
	b, ok := a.blobs[d]
	if !ok {
		return nil, errors.New("no such shard")
	}
	return b, nil
}

func (a *authority) acked(match func(*cellv1.AcknowledgeRequest) bool) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.acks, match)
}

// generation makes a signed generation of acme in which alice may call demo's tools; spoil may break the shards first.
func (a *authority) generation(t testing.TB, gen uint64, signer *seal.Signer, spoil func(index, catalogue *[]byte)) (env []byte, update *cellv1.Update) {
	t.Helper()
	env = a.signed(t, acme, "acme", gen, signer, spoil)
	return env, a.update(t, env)
}

func basePolicy(id string) *snapshot.Policy {
	return &snapshot.Policy{
		Tenant:     snapshot.TenantID(id),
		Principals: []snapshot.Principal{{Name: "alice"}, {Name: "carol", Nodes: []snapshot.Ref{"role:reader"}}},
		Nodes:      []snapshot.Node{{Ref: "role:reader"}},
		Servers:    []snapshot.Server{{Name: "demo", Items: []string{snapshot.ItemOther, "echo"}}},
		Grants: []snapshot.Grant{
			{ID: "g1", Subject: "user:alice", Server: "demo"}, {ID: "g2", Subject: "role:reader", Server: "demo", Tool: "echo"},
		},
	}
}

// signed makes the head of one tenant and keeps its shards.
func (a *authority) signed(t testing.TB, id, name string, gen uint64, signer *seal.Signer, spoil func(index, catalogue *[]byte)) []byte {
	t.Helper()
	x, err := builder.Build(basePolicy(id))
	if err != nil {
		t.Fatal(err)
	}
	digest := snapshot.DigestOf([]byte("surface"))
	c, err := shard.EncodeCatalogue(&snapshotv1.Catalogue{
		TenantId: id, Tenant: name, Hosts: []string{name + ".localhost"},
		Settings: &snapshotv1.Settings{MaxStalenessReadMs: 1000, MaxStalenessWriteMs: 500},
		Servers: []*snapshotv1.CatalogueServer{{
			Id: "s1", Name: "demo", Url: "http://127.0.0.1:1/mcp", ProtocolVersions: []string{"2026-07-28"},
			VersionDigest: digest[:], Version: 1,
			Tools: []*snapshotv1.CatalogueTool{{Name: "echo", Raw: []byte(`{"name":"echo","inputSchema":{"type":"object"}}`), Effect: snapshotv1.Effect_EFFECT_READ}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if spoil != nil {
		spoil(&x, &c)
	}
	a.mu.Lock()
	a.blobs[snapshot.DigestOf(x)], a.blobs[snapshot.DigestOf(c)] = x, c
	a.mu.Unlock()
	now := time.Now()
	head := &snapshotv1.Head{
		TenantId: id, Tenant: name, Epoch: 1, Generation: gen, Revision: gen + 100, Compiler: "test",
		NotBeforeMs: now.Add(-time.Hour).UnixMilli(), NotAfterMs: now.Add(time.Hour).UnixMilli(),
		Shards: []*snapshotv1.Shard{
			shard.Of(snapshotv1.ShardKind_SHARD_KIND_INDEX, x),
			shard.Of(snapshotv1.ShardKind_SHARD_KIND_CATALOGUE, c),
		},
	}
	env, err := seal.SignHead(head, signer)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// update lists heads, sorted by tenant id, in a manifest.
func (a *authority) update(t testing.TB, heads ...[]byte) *cellv1.Update {
	t.Helper()
	var refs []*snapshotv1.HeadRef
	for _, env := range heads {
		var e snapshotv1.Envelope
		var h snapshotv1.Head
		if err := errors.Join(proto.Unmarshal(env, &e), proto.Unmarshal(e.GetPayload(), &h)); err != nil {
			t.Fatal(err)
		}
		d := snapshot.DigestOf(e.GetPayload())
		refs = append(refs, &snapshotv1.HeadRef{TenantId: h.GetTenantId(), Epoch: h.GetEpoch(), Generation: h.GetGeneration(), HeadSha256: d[:]})
	}
	root, err := seal.ManifestRoot(refs)
	if err != nil {
		t.Fatal(err)
	}
	a.seq++
	m, err := seal.SignManifest(&snapshotv1.Manifest{
		Cell: a.cell, Sequence: a.seq, Heads: refs, Root: root[:], IssuedMs: time.Now().UnixMilli(),
	}, a.head)
	if err != nil {
		t.Fatal(err)
	}
	return &cellv1.Update{Manifest: m, Heads: heads, Roots: a.roots}
}

func (a *authority) push(u *cellv1.Update) {
	a.events <- &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Update{Update: u}}
}

func (a *authority) heartbeat(t testing.TB, u *cellv1.Update, at time.Time) []byte {
	t.Helper()
	trust := openRoots(t, a.roots)
	m, err := trust.OpenManifest(u.GetManifest(), cellName)
	if err != nil {
		t.Fatal(err)
	}
	env, err := seal.SignHeartbeat(&snapshotv1.Heartbeat{Cell: cellName, Root: m.GetRoot(), TimeMs: at.UnixMilli(), Sequence: 1}, a.beat)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func openRoots(t testing.TB, env []byte) *seal.Trust {
	t.Helper()
	d, err := seal.RootsDigest(env)
	if err != nil {
		t.Fatal(err)
	}
	trust, err := seal.OpenRoots(env, d)
	if err != nil {
		t.Fatal(err)
	}
	return trust
}

// directLog stands for a cell of one node whose log takes everything at once.
type directLog struct {
	store *store.Store
	feed  *feed.Feed
	// shut makes it take nothing, as a cell without a majority does.
	shut atomic.Bool
}

func (l *directLog) Leads() bool { return true }

func (l *directLog) Propose(_ context.Context, e *cellv1.RaftEntry) error {
	if l.shut.Load() {
		return errors.New("no majority")
	}
	if u := e.GetUpdate(); u != nil {
		if err := l.store.PutUpdate(u); err != nil {
			return err
		}
	}
	if d := e.GetDeltas(); d != nil {
		if err := l.store.PutDeltas(d.GetDeltas()); err != nil {
			return err
		}
	}
	l.feed.Applied()
	return nil
}

type node struct {
	auth  *authority
	pdp   *pdp.PDP
	store *store.Store
	feed  *feed.Feed
	log   *directLog
}

// startNode runs a feed on a disk; with no source of shards it has only that disk.
func startNode(t testing.TB, a *authority, dir string, sources ...feed.Source) *node {
	t.Helper()
	return startNodeAt(t, a, dir, time.Now, sources...)
}

func startNodeAt(t testing.TB, a *authority, dir string, now func() time.Time, sources ...feed.Source) *node {
	t.Helper()
	return startNodeOn(t, a, store.Config{Dir: dir}, now, sources...)
}

func startNodeOn(t testing.TB, a *authority, disk store.Config, now func() time.Time, sources ...feed.Source) *node {
	t.Helper()
	st, err := store.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	server := connect.NewServer()
	cellv1connect.RegisterCellServiceHandler(server, a)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	ts := httptest.NewUnstartedServer(mux)
	ts.EnableHTTP2 = true
	ts.StartTLS()
	client := cellv1connect.NewCellServiceClient(connect.NewClient(connecthttp.NewTransport(ts.Client(), ts.URL)))
	n := &node{auth: a, pdp: pdp.New("acme"), store: st}
	log := &directLog{store: st}
	n.feed = feed.New(feed.Config{
		Cell: cellName, ControlPlane: client, Log: log, Store: st, Sources: sources, PDP: n.pdp,
		Trust:  feed.NewTrust(a.roots, openRoots(t, a.roots), st.PutRoots),
		Logger: slog.New(slog.DiscardHandler), Now: now,
	})
	log.feed, n.log = n.feed, log
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.feed.Boot(ctx)
	go func() { defer close(done); _ = n.feed.Run(ctx) }()
	t.Cleanup(func() { cancel(); ts.CloseClientConnections(); ts.Close(); <-done; _ = st.Close() })
	return n
}

func (n *node) generation() snapshot.Generation {
	if t := n.pdp.Current().Tenant(acme); t != nil {
		return t.Version.Generation
	}
	return 0
}

// eventually polls: the other side is a real socket.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("not within 10 s: " + what)
}

func TestFeedBringsAGenerationIntoForceAndAcknowledgesIt(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	_, u := a.generation(t, 1, a.head, nil)
	a.push(u)
	eventually(t, "generation 1 is live", func() bool { return n.generation() == 1 })
	eventually(t, "generation 1 is acknowledged with its revision", func() bool {
		return a.acked(func(r *cellv1.AcknowledgeRequest) bool {
			return r.GetGeneration() == 1 && r.GetRevision() == 101 && r.GetStatus() == cellv1.AckStatus_ACK_STATUS_APPLIED
		})
	})
}

func TestFeedKeepsLastGoodOnBadSignature(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	_, good := a.generation(t, 1, a.head, nil)
	a.push(good)
	eventually(t, "generation 1 is live", func() bool { return n.generation() == 1 })
	_, forged := a.generation(t, 2, a.stranger, nil)
	a.push(forged)
	eventually(t, "the forged generation is answered with a reason", func() bool {
		return a.acked(func(r *cellv1.AcknowledgeRequest) bool {
			return r.GetGeneration() == 2 && r.GetStatus() == cellv1.AckStatus_ACK_STATUS_REJECTED && r.GetReason() != ""
		})
	})
	if n.generation() != 1 {
		t.Fatalf("generation %d is live after a forged one", n.generation())
	}
	_, next := a.generation(t, 3, a.head, nil)
	a.push(next)
	eventually(t, "a good generation follows", func() bool { return n.generation() == 3 })
}

func TestFeedRefusesAGenerationThatDoesNotBuild(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(x, c *[]byte){
		"index cut":       func(x, _ *[]byte) { *x = (*x)[:len(*x)-100] },
		"index flipped":   func(x, _ *[]byte) { (*x)[len(*x)/2] ^= 1 },
		"catalogue noise": func(_, c *[]byte) { *c = bytes.Repeat([]byte{0xff}, 64) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newAuthority(t)
			n := startNode(t, a, t.TempDir(), a)
			_, good := a.generation(t, 1, a.head, nil)
			a.push(good)
			eventually(t, "generation 1 is live", func() bool { return n.generation() == 1 })
			_, bad := a.generation(t, 2, a.head, spoil)
			a.push(bad)
			eventually(t, "the reason goes back", func() bool {
				return a.acked(func(r *cellv1.AcknowledgeRequest) bool {
					return r.GetGeneration() == 2 && r.GetStatus() == cellv1.AckStatus_ACK_STATUS_REJECTED
				})
			})
			if n.generation() != 1 || n.store.Floor(acme).Generation != 1 {
				t.Fatal("a generation that does not build changed something")
			}
		})
	}
}

func TestFeedNeverGoesBack(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	_, old := a.generation(t, 1, a.head, nil)
	_, next := a.generation(t, 2, a.head, nil)
	a.push(next)
	eventually(t, "generation 2 is live", func() bool { return n.generation() == 2 })
	a.push(old)
	_, last := a.generation(t, 3, a.head, nil)
	a.push(last)
	eventually(t, "generation 3 is live", func() bool { return n.generation() == 3 })
	if a.acked(func(r *cellv1.AcknowledgeRequest) bool { return r.GetGeneration() == 1 }) {
		t.Fatal("an older generation was answered as if it had been applied")
	}
}

func TestAControlPlaneOnAnOlderDatabaseIsRefusedAndToldSo(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	for gen := range uint64(2) {
		_, u := a.generation(t, 4+gen, a.head, nil)
		a.push(u)
	}
	eventually(t, "generation 5 is live", func() bool { return n.generation() == 5 })
	a.seq = 0
	_, restored := a.generation(t, 3, a.head, nil)
	a.push(restored)
	for i := range 3 {
		beat := a.heartbeat(t, restored, time.Now().Add(time.Duration(i)*time.Second))
		a.events <- &cellv1.WatchResponse{Event: &cellv1.WatchResponse_Heartbeat{Heartbeat: beat}}
	}
	eventually(t, "the node says so", func() bool {
		err := n.feed.Problem()
		return err != nil && strings.Contains(err.Error(), "database") && strings.Contains(err.Error(), "1.5")
	})
	eventually(t, "the reason goes back", func() bool {
		return a.acked(func(r *cellv1.AcknowledgeRequest) bool {
			return r.GetGeneration() == 3 && r.GetStatus() == cellv1.AckStatus_ACK_STATUS_REJECTED && strings.Contains(r.GetReason(), "1.5")
		})
	})
	if n.generation() != 5 {
		t.Fatalf("generation %d is served", n.generation())
	}
	a.seq = 10
	_, next := a.generation(t, 6, a.head, nil)
	a.push(next)
	eventually(t, "generation 6 is live", func() bool { return n.generation() == 6 })
	if err := n.feed.Problem(); err != nil {
		t.Error(err)
	}
}

func TestAHeadThatAWrongClockRefusedComesIntoForceWhenTheClockIsRight(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	var wrong atomic.Int64
	wrong.Store(int64(-48 * time.Hour))
	n := startNodeAt(t, a, t.TempDir(), func() time.Time { return time.Now().Add(time.Duration(wrong.Load())) }, a)
	_, u := a.generation(t, 1, a.head, nil)
	a.push(u)
	eventually(t, "the reason goes back", func() bool {
		return a.acked(func(r *cellv1.AcknowledgeRequest) bool { return strings.Contains(r.GetReason(), "not in force yet") })
	})
	if n.generation() != 0 {
		t.Fatal("it is in force before its time")
	}
	wrong.Store(0)
	eventually(t, "generation 1 is live", func() bool { return n.generation() == 1 })
}

func TestANodeBootsFromItsOwnDisk(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := t.TempDir()
	t.Run("first life", func(t *testing.T) {
		n := startNode(t, a, dir, a)
		_, u := a.generation(t, 7, a.head, nil)
		a.push(u)
		eventually(t, "generation 7 is live", func() bool { return n.generation() == 7 })
	})
	n := startNode(t, a, dir) // no source of shards, and nothing is pushed
	eventually(t, "generation 7 is live again", func() bool { return n.generation() == 7 })
}

func TestOnlyAHeartbeatForWhatIsServedRenewsTheLease(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	_, u := a.generation(t, 1, a.head, nil)
	_, newer := a.generation(t, 2, a.head, nil)
	a.push(u)
	eventually(t, "generation 1 is live", func() bool { return n.generation() == 1 })
	now := time.Now()
	if err := n.feed.TakeHeartbeat(a.heartbeat(t, newer, now)); err != nil {
		t.Fatal(err)
	}
	state := n.pdp.Current()
	if state.Fresh(state.Tenant(acme), state.Tenant(acme).Bound(snapshotv1.Effect_EFFECT_READ), now.UnixMilli()) {
		t.Fatal("a heartbeat for another generation renewed the lease")
	}
	if err := n.feed.TakeHeartbeat(a.heartbeat(t, u, now.Add(time.Second))); err != nil {
		t.Fatal(err)
	}
	at := now.Add(time.Second).UnixMilli()
	tenant := state.Tenant(acme)
	if !state.Fresh(tenant, tenant.Bound(snapshotv1.Effect_EFFECT_READ), at+1000) || state.Fresh(tenant, tenant.Bound(snapshotv1.Effect_EFFECT_READ), at+1001) {
		t.Fatal("reads must be served for exactly their bound")
	}
	if !state.Fresh(tenant, tenant.Bound(snapshotv1.Effect_EFFECT_WRITE), at+500) || state.Fresh(tenant, tenant.Bound(snapshotv1.Effect_EFFECT_UNSPECIFIED), at+501) {
		t.Fatal("a call without an effect class is held to the bound of those with effects")
	}
}

func TestAKillIsInForceAtOnceAndSurvivesARestart(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	dir := t.TempDir()
	kill := &snapshotv1.Kill{Id: "01J00000000000000000000000", Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: acme, Subject: "alice", IssuedMs: 1}
	inForce := func(n *node) bool {
		s := n.pdp.Current()
		return s.Killed(snapshotv1.KillKind_KILL_KIND_USER, acme, "alice") && !s.Killed(snapshotv1.KillKind_KILL_KIND_USER, acme, "bob")
	}
	t.Run("first life", func(t *testing.T) {
		n := startNode(t, a, dir, a)
		forged, err := seal.SignKill(kill, a.stranger)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.feed.TakeKill(forged); err == nil || inForce(n) {
			t.Fatal("a kill signed by a stranger was taken")
		}
		env, err := seal.SignKill(kill, a.kill)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.feed.TakeKill(env); err != nil || !inForce(n) {
			t.Fatalf("the kill must hit alice and nobody else: %v", err)
		}
	})
	if n := startNode(t, a, dir); !inForce(n) {
		t.Fatal("the kill was forgotten")
	}
}

func TestANodeThatLacksTheNewestGenerationHoldsWritesBack(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	n := startNode(t, a, t.TempDir(), a)
	_, u := a.generation(t, 1, a.head, nil)
	a.push(u)
	eventually(t, "generation 1 is live", func() bool { return n.generation() == 1 })
	// The cell commits generation 2 while nobody gives this node its shards.
	_, next := a.generation(t, 2, a.head, func(x, _ *[]byte) {
		raw, err := builder.Build(&snapshot.Policy{
			Tenant: acme, Servers: []snapshot.Server{{Name: "demo", Items: []string{snapshot.ItemOther, "echo"}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		*x = raw
	})
	a.mu.Lock()
	held := a.blobs
	a.blobs = map[snapshot.Digest][]byte{}
	a.mu.Unlock()
	if err := n.store.PutUpdate(next); err != nil {
		t.Fatal(err)
	}
	n.feed.Applied()
	fresh := func(effect snapshotv1.Effect) bool {
		s := n.pdp.Current()
		tenant := s.Tenant(acme)
		n.pdp.RenewLease(acme, time.Now().UnixMilli())
		return s.Fresh(tenant, tenant.Bound(effect), time.Now().UnixMilli())
	}
	eventually(t, "writes are held back", func() bool { return !fresh(snapshotv1.Effect_EFFECT_WRITE) })
	if n.generation() != 1 || !fresh(snapshotv1.Effect_EFFECT_READ) {
		t.Fatal("the last good generation goes on serving reads")
	}
	a.mu.Lock()
	a.blobs = held
	a.mu.Unlock()
	eventually(t, "generation 2 is live and writes are served", func() bool {
		return n.generation() == 2 && fresh(snapshotv1.Effect_EFFECT_WRITE)
	})
}

// stuck is a source that never answers for some shards.
type stuck struct {
	*authority
	held map[snapshot.Digest]bool
}

func (s stuck) Fetch(ctx context.Context, d snapshot.Digest, size int64) ([]byte, error) {
	if s.held[d] {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.authority.Fetch(ctx, d, size)
}

func TestATenantWhoseShardsDoNotComeHoldsUpNobody(t *testing.T) {
	t.Parallel()
	const globex = "018f0000-0000-7000-8000-000000000002"
	a := newAuthority(t)
	slow := a.signed(t, acme, "acme", 1, a.head, nil)
	bad := stuck{a, map[snapshot.Digest]bool{}}
	a.mu.Lock()
	for d := range a.blobs {
		bad.held[d] = true
	}
	a.mu.Unlock()
	fine := a.signed(t, globex, "globex", 1, a.head, nil)
	n := startNode(t, a, t.TempDir(), bad)
	if err := n.store.PutUpdate(a.update(t, slow, fine)); err != nil {
		t.Fatal(err)
	}
	n.feed.Applied()
	eventually(t, "globex is live while acme waits", func() bool { return n.pdp.Current().Tenant(globex) != nil })
	if n.generation() != 0 {
		t.Fatal("acme is live without its shards")
	}
}
