package cell

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/store"
	"github.com/mcpvault/mcpvault/kit/nearest"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// lonely is a node of cell eu that knows what its disk says.
func lonely(t *testing.T, dir string) *Node {
	t.Helper()
	n := &Node{
		cfg: Config{Cell: "eu", Node: "n1", Region: "europe", PublicURLs: []string{"https://eu1.test/mcp"}, Listen: Listen{TLS: "0.0.0.0:443"}},
		pdp: pdp.New(""), log: slog.New(slog.DiscardHandler), clock: newClock(time.Now, 0, 0),
	}
	if err := n.cells.open(dir, store.Key{1}); err != nil {
		t.Fatal(err)
	}
	return n
}

func said(at time.Time, cells ...string) *cellv1.CellDirectory {
	dir := &cellv1.CellDirectory{AsOfMs: at.UnixMilli()}
	for _, name := range cells {
		dir.Cells = append(dir.Cells, &cellv1.CellEntry{Name: name, Nodes: []*cellv1.NodeEntry{
			{Name: "n1", Urls: []string{"https://" + name + "1.test/mcp"}, Healthy: true, SeenMs: at.UnixMilli()},
			{Name: "n2", Urls: []string{"https://" + name + "2.test/mcp"}, Healthy: true, SeenMs: at.UnixMilli()},
		}})
	}
	return dir
}

func TestWhereTheCellsAreSurvivesTheControlPlaneAndARestart(t *testing.T) {
	t.Parallel()
	dir, long := t.TempDir(), time.Now().Add(-time.Hour)
	n := lonely(t, dir)
	n.toldOfCells(said(long, "eu", "us"))
	again := lonely(t, dir)
	again.cells.ready.Store(true)
	whole := again.wholeDirectory()
	if len(whole.GetCells()) != 2 || whole.GetAsOfMs() != long.UnixMilli() {
		t.Fatalf("%v", whole)
	}
	eu, us := whole.GetCells()[0], whole.GetCells()[1]
	if us.GetName() != "us" || !us.GetNodes()[0].GetHealthy() {
		t.Errorf("what the control plane said last of another cell: %v", us)
	}
	if eu.GetRegion() != "europe" || !eu.GetNodes()[0].GetHealthy() || eu.GetNodes()[1].GetHealthy() {
		t.Errorf("this node is well, and nobody has heard of the other for an hour: %v", eu)
	}
	raw, err := os.ReadFile(again.cells.path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	if err := os.WriteFile(again.cells.path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := lonely(t, dir).cells.directory(); got != nil {
		t.Errorf("a file that was changed is believed: %v", got)
	}
}

func TestOlderWordAndWordFromTheFutureAreNotTaken(t *testing.T) {
	t.Parallel()
	n, now := lonely(t, t.TempDir()), time.Now()
	n.toldOfCells(said(now, "eu", "us"))
	n.toldOfCells(said(now.Add(-time.Minute), "eu"))
	n.toldOfCells(said(now.Add(time.Hour), "eu", "moon"))
	if got := n.cells.directory(); len(got.GetCells()) != 2 || got.GetCells()[1].GetName() != "us" {
		t.Errorf("%v", got)
	}
}

func TestPeersAreAsTheySayThemselvesAndKilledOnesAreNotNamed(t *testing.T) {
	t.Parallel()
	n := lonely(t, t.TempDir())
	n.toldOfCells(said(time.Now().Add(-time.Minute), "eu"))
	tell := func(node string, ready bool, url string) *cellv1.GetStatusResponse {
		return &cellv1.GetStatusResponse{Status: &cellv1.NodeStatus{Node: node, Reach: &cellv1.Reach{Urls: []string{url}, Ready: ready}}}
	}
	n.cells.heard([]*cellv1.GetStatusResponse{tell("n2", true, "https://eu2.test/moved"), tell("n3", true, "https://thief.test/mcp")})
	n.pdp.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_NODE, Subject: "eu/n3"})
	nodes := n.wholeDirectory().GetCells()[0].GetNodes()
	if len(nodes) != 2 || nodes[1].GetUrls()[0] != "https://eu2.test/moved" || !nodes[1].GetHealthy() {
		t.Errorf("%v", nodes)
	}
}

func TestOnlyTheDocumentIsAnsweredBesideThePipeline(t *testing.T) {
	t.Parallel()
	n := lonely(t, t.TempDir())
	for i := range n.cells.pages {
		if err := n.cells.pages[i].Set(nearest.Of(n.wholeDirectory(), nearest.FromNode, &nearest.Here{Cell: "eu", Node: "n1", Serving: i == 1})); err != nil {
			t.Fatal(err)
		}
	}
	h := n.withCells(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for _, c := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, nearest.Path, http.StatusOK},
		{http.MethodHead, nearest.Path, http.StatusOK},
		{http.MethodPost, nearest.Path, http.StatusTeapot},
		{http.MethodGet, nearest.Path + "/x", http.StatusTeapot},
		{http.MethodGet, "/mcp", http.StatusTeapot},
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(c.method, c.path, nil))
		if rec.Code != c.want {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, rec.Code, c.want)
		}
		if c.method == http.MethodGet && rec.Code == http.StatusOK {
			doc, err := nearest.Parse(rec.Body.Bytes())
			if err != nil || doc.Here.Serving {
				t.Errorf("a node without a policy serves: %v %+v", err, doc)
			}
		}
	}
}

// Whoever asks in the second between a node's becoming ready and its next look at itself must not be sent elsewhere.
func TestANodeThatHasJustBecomeReadyIsAskedAnew(t *testing.T) {
	t.Parallel()
	n := lonely(t, t.TempDir())
	ready, looks := false, 0
	n.cells.look = func() bool {
		looks++
		n.cells.ready.Store(ready)
		return ready
	}
	for range 2 {
		if n.takesCalls() {
			t.Error("a node that is not ready takes calls")
		}
	}
	ready = true
	for range 2 {
		if !n.takesCalls() {
			t.Error("a node that has become ready takes none")
		}
	}
	if looks != 3 {
		t.Errorf("%d looks: one that is ready is not looked at again", looks)
	}
}
