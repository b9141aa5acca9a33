package whereabouts_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/controlplane/whereabouts"
	"github.com/mcpvault/mcpvault/kit/nearest"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

type fleet struct{ killed map[string]bool }

func (fleet) Cells() []string { return []string{"eu", "us"} }

func (f fleet) View(cell string) (publish.View, <-chan struct{}, bool) {
	if cell != "eu" {
		return publish.View{}, nil, false
	}
	return publish.View{KilledNodes: f.killed}, nil, true
}

// lost is a database that can be taken away.
type lost struct {
	*store.Store
	away atomic.Bool
}

func (l *lost) Platform(ctx context.Context, f func(*store.Tx) error) error {
	if l.away.Load() {
		return errors.New("no database")
	}
	return l.Store.Platform(ctx, f)
}

func status(t *testing.T, st *store.Store, cell, node string, ready bool, urls ...string) {
	t.Helper()
	raw, err := proto.Marshal(&cellv1.NodeStatus{
		Cell: cell, Node: node, Reach: &cellv1.Reach{Region: "r-" + cell, Urls: urls, Ready: ready, Http3: true},
		Applied: []*cellv1.AppliedHead{{ConfirmedMs: 5000}, {ConfirmedMs: 3000}},
	})
	if err != nil {
		t.Fatal(err)
	}
	err = st.Platform(t.Context(), func(tx *store.Tx) error {
		if err := tx.EnsureCell(t.Context(), cell); err != nil {
			return err
		}
		return tx.SetNodeStatus(t.Context(), store.NodeStatus{Cell: cell, Node: node, Status: raw})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func page(t *testing.T, d http.Handler) *nearest.Document {
	t.Helper()
	rec := httptest.NewRecorder()
	d.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, nearest.Path, nil))
	if rec.Code != http.StatusOK {
		return nil
	}
	doc, err := nearest.Parse(rec.Body.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// look runs the directory once.
func look(t *testing.T, d *whereabouts.Directory) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	first, changed := d.Cells()
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	if first == nil {
		select {
		case <-changed:
		case <-time.After(20 * time.Second):
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestTheDirectoryIsWhatTheNodesHaveSaidAndOutlivesTheDatabase(t *testing.T) {
	t.Parallel()
	st := storetest.Open(t)
	status(t, st, "eu", "n1", true, "https://mcp.test/mcp", "https://eu1.test/mcp")
	status(t, st, "eu", "n2", false, "https://mcp.test/mcp", "https://eu2.test/mcp")
	status(t, st, "eu", "n3", true, "https://thief.test/mcp")
	status(t, st, "us", "n1", true, "https://mcp.test/mcp", "https://us1.test/mcp")
	status(t, st, "moon", "n1", true, "https://moon.test/mcp")
	db := &lost{Store: st}
	d := whereabouts.New(whereabouts.Config{Store: db, Published: fleet{map[string]bool{"n3": true}}, Logger: slog.New(slog.DiscardHandler)})
	if page(t, d) != nil {
		t.Error("there is a page before anything is known")
	}
	look(t, d)
	check := func() {
		t.Helper()
		doc := page(t, d)
		if doc == nil || len(doc.Cells) != 2 || len(doc.Shared) != 1 || doc.Source != nearest.FromControlPlane {
			t.Fatalf("%+v", doc)
		}
		eu := doc.Cells[0]
		if eu.Name != "eu" || eu.Region != "r-eu" || !eu.Healthy || len(eu.Nodes) != 2 || !eu.Nodes[0].Healthy || eu.Nodes[1].Healthy {
			t.Errorf("a node that was killed is named, or one that is not ready is well: %+v", eu)
		}
		if got := eu.Nodes[0].Confirmed; got.UnixMilli() != 3000 {
			t.Errorf("confirmed at %s", got)
		}
		if len(eu.URLs) != 2 || eu.URLs[0] != "https://eu1.test/mcp" {
			t.Errorf("%v", eu.URLs)
		}
	}
	check()
	db.away.Store(true)
	look(t, d)
	check()
}

func TestANodeThatHasSaidNothingForAWhileIsNotWell(t *testing.T) {
	t.Parallel()
	st := storetest.Open(t)
	status(t, st, "eu", "n1", true, "https://eu1.test/mcp")
	for _, c := range []struct {
		later          time.Duration
		named, healthy bool
	}{{0, true, true}, {10 * time.Second, true, false}, {25 * time.Hour, false, false}} {
		d := whereabouts.New(whereabouts.Config{
			Store: st, Published: fleet{}, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return time.Now().Add(c.later) },
		})
		look(t, d)
		nodes := page(t, d).Cells[0].Nodes
		if named := len(nodes) == 1; named != c.named || named && nodes[0].Healthy != c.healthy {
			t.Errorf("after %s: %+v", c.later, nodes)
		}
	}
}

// still is a database in which nothing happens.
type still struct{}

func (still) Platform(context.Context, func(*store.Tx) error) error { return nil }

func TestNodesAreToldWhatHasChangedAndTheRestNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := whereabouts.New(whereabouts.Config{Store: still{}, Published: fleet{}, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		synctest.Wait()
		first, _ := d.Cells()
		time.Sleep(20 * time.Second)
		if again, _ := d.Cells(); again != first {
			t.Error("nothing has changed, and the nodes are told again")
		}
		time.Sleep(20 * time.Second)
		if again, _ := d.Cells(); again == first {
			t.Error("what the nodes know grows old")
		}
		cancel()
		<-done
	})
}
