package feed_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/feed"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	"github.com/mcpvault/mcpvault/snapshot"
)

// hub is a control plane with any number of nodes: to each it sends the head and the deltas behind it, and then each new one.
type hub struct {
	*authority
	mu      sync.Mutex
	now     *cellv1.Update
	changed chan struct{}
}

// show makes an update what is in force. Its deltas are those of the one before and more, or its head is another one.
func (h *hub) show(u *cellv1.Update) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = u
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *hub) Watch(ctx context.Context, _ *cellv1.WatchRequest, out cellv1connect.CellServiceWatchServerStream) error {
	var manifest string
	sent := 0
	for {
		h.mu.Lock()
		u, changed := h.now, h.changed
		h.mu.Unlock()
		if string(u.GetManifest()) != manifest {
			if err := out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Update{Update: u}}); err != nil {
				return err
			}
			manifest, sent = string(u.GetManifest()), len(u.GetDeltas())
		}
		for ; sent < len(u.GetDeltas()); sent++ {
			if err := out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Delta{Delta: u.GetDeltas()[sent]}}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// members are the feeds of a whole cell with a real log between them.
type members struct {
	cell  *celltest.Cell
	hub   *hub
	url   string
	http  *http.Client
	feeds map[string]*atomic.Pointer[feed.Feed]
	logs  map[string]*atomic.Pointer[consensus.Node]
	pdps  map[string]*pdp.PDP
	stops map[string]func()
}

func newMembers(t *testing.T) *members {
	t.Helper()
	m := &members{feeds: map[string]*atomic.Pointer[feed.Feed]{}, logs: map[string]*atomic.Pointer[consensus.Node]{}, pdps: map[string]*pdp.PDP{}, stops: map[string]func(){}}
	for _, name := range []string{"n1", "n2", "n3"} {
		m.feeds[name], m.logs[name] = &atomic.Pointer[feed.Feed]{}, &atomic.Pointer[consensus.Node]{}
	}
	m.cell = celltest.New(t, 3, func(cfg *consensus.Config) {
		at, told := m.feeds[cfg.Node], cfg.OnApply
		cfg.OnApply = func(a consensus.Applied) {
			told(a)
			if f := at.Load(); f != nil {
				f.Applied()
			}
		}
	})
	auth := m.cell.Authority
	m.hub = &hub{changed: make(chan struct{}), authority: &authority{
		head: auth.Head, beat: auth.Heartbeat, kill: auth.Kill, roots: auth.Roots, cell: celltest.CellName,
		blobs: map[snapshot.Digest][]byte{},
	}}
	server := connect.NewServer()
	cellv1connect.RegisterCellServiceHandler(server, m.hub)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	ts := httptest.NewUnstartedServer(mux)
	ts.EnableHTTP2 = true
	ts.StartTLS()
	m.url, m.http = ts.URL, ts.Client()
	t.Cleanup(func() {
		for _, stop := range m.stops {
			stop()
		}
		ts.CloseClientConnections()
		ts.Close()
	})
	return m
}

// start gives a node its feed, which first puts into force what the disk proves.
func (m *members) start(t *testing.T, name string) {
	t.Helper()
	n := m.cell.Node(name)
	m.logs[name].Store(n.Log)
	p := pdp.New("acme")
	f := feed.New(feed.Config{
		Cell: celltest.CellName, Log: memberLog{m, name}, Store: n.Store, Sources: []feed.Source{m.hub}, PDP: p,
		ControlPlane: cellv1connect.NewCellServiceClient(connect.NewClient(connecthttp.NewTransport(m.http, m.url))),
		Trust:        feed.NewTrust(m.hub.roots, openRoots(t, m.hub.roots), n.Store.PutRoots),
		Logger:       slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	f.Boot(ctx)
	m.feeds[name].Store(f)
	done := make(chan struct{})
	go func() { defer close(done); _ = f.Run(ctx) }()
	m.pdps[name] = p
	m.stops[name] = sync.OnceFunc(func() { cancel(); <-done })
}

type memberLog struct {
	m    *members
	name string
}

func (l memberLog) Leads() bool { return l.m.logs[l.name].Load().Leads() }

// Propose asks whoever leads, as a node does through its peers.
func (l memberLog) Propose(ctx context.Context, e *cellv1.RaftEntry) error {
	for _, log := range l.m.logs {
		if n := log.Load(); n != nil && n.Leads() {
			_, err := n.Propose(ctx, e)
			if problem.CodeOf(err) == problem.Conflict {
				return nil
			}
			return err
		}
	}
	return problem.New(problem.Unavailable, "the cell has no leader", "")
}

// serves waits until every node decides by the newest generation of a line, and by nothing else.
func (m *members) serves(t *testing.T, l *line) {
	t.Helper()
	want := compiled(t, l.policy).StateHash()
	for _, name := range m.cell.Names {
		m.cell.Eventually(name+" serves the newest generation", func() bool {
			tenant := m.pdps[name].Current().Tenant(l.policy.Tenant)
			return tenant != nil && uint64(tenant.Version.Generation) == l.gen
		})
		tenant := m.pdps[name].Current().Tenant(l.policy.Tenant)
		if tenant.Digest != l.parent || tenant.State != want || tenant.Index.StateHash() != want {
			t.Fatalf("%s serves another policy under generation %s", name, tenant.Version)
		}
	}
}

func TestEveryNodeComesToTheStateThatACompilerMakes(t *testing.T) {
	t.Parallel()
	m := newMembers(t)
	l := m.hub.begin(t, acme, "acme", 1)
	first := l.update(t)
	m.hub.show(first)
	for _, name := range m.cell.Names {
		m.start(t, name)
	}
	m.serves(t, l)
	edits := []func(*snapshot.Policy){
		give("role:reader"), give(),
		func(p *snapshot.Policy) { p.Principals = append(p.Principals, snapshot.Principal{Name: "dave"}) },
		func(p *snapshot.Policy) {
			p.Grants = append(p.Grants, snapshot.Grant{ID: "g3", Deny: true, Subject: "user:dave", Server: "demo"})
		},
		func(p *snapshot.Policy) { p.Principals[1].Disabled = true },
		func(p *snapshot.Policy) { p.Grants = p.Grants[:2] },
		func(p *snapshot.Policy) { p.Principals = p.Principals[:2] },
	}
	for i := range 2 * len(edits) {
		l.next(t, edits[i%len(edits)])
		m.hub.show(&cellv1.Update{Manifest: first.GetManifest(), Heads: first.GetHeads(), Roots: first.GetRoots(), Deltas: l.deltas})
	}
	m.serves(t, l)
}

// A node dies, again and again, while deltas come: in the middle of staging, of applying, of activating. What it serves after
// the restart is what the others serve, and its floor does not go down.
func TestNodesThatDieWhileDeltasComeConvergeToOneState(t *testing.T) {
	t.Parallel()
	m := newMembers(t)
	l := m.hub.begin(t, acme, "acme", 1)
	first := l.update(t)
	m.hub.show(first)
	for _, name := range m.cell.Names {
		m.start(t, name)
	}
	m.serves(t, l)
	for round := range 6 {
		victim := m.cell.Names[round%3]
		for i := range 4 {
			if i%2 == 0 {
				l.next(t, give("role:reader"))
			} else {
				l.next(t, give())
			}
			m.hub.show(&cellv1.Update{Manifest: first.GetManifest(), Heads: first.GetHeads(), Roots: first.GetRoots(), Deltas: l.deltas})
			if i == round%4 {
				time.Sleep(time.Duration(round) * time.Millisecond) // the moment of death differs from round to round
				floor := m.cell.Node(victim).Store.Floor(acme)
				m.feeds[victim].Store(nil)
				m.cell.KillNode(victim)
				m.stops[victim]()
				m.cell.RestartNode(victim)
				if again := m.cell.Node(victim).Store.Floor(acme); floor.Newer(again) {
					t.Fatalf("the floor went down from %s to %s", floor, again)
				}
				m.start(t, victim)
			}
		}
		if round == 3 {
			l.rebase(t, "acme", l.gen+1)
			first = l.update(t)
			m.hub.show(first)
		}
	}
	m.serves(t, l)
	var roots []string
	for _, name := range m.cell.Names {
		u := m.cell.Node(name).Store.LastUpdate()
		roots = append(roots, string(u.GetManifest()))
		if len(u.GetDeltas()) != len(l.deltas) || roots[0] != string(u.GetManifest()) {
			t.Errorf("%s has %d deltas on its disk, %d were made", name, len(u.GetDeltas()), len(l.deltas))
		}
	}
}
