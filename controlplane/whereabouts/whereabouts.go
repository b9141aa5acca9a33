// Package whereabouts knows where the cells are reached and how their nodes are, for clients that look for the nearest one: as
// a page for anybody, and for every node, which goes on telling it when this control plane is gone.
//
// What is said comes from the nodes' own configuration, by way of the status that each reports under its SVID. It names no
// tenant. Without PostgreSQL the last of it stays.
package whereabouts

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/nearest"
	"github.com/mcpvault/mcpvault/kit/run"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const (
	lookEvery = time.Second
	// silence is how long ago a node may have reported, which it does every two seconds, and still count as well.
	silence = 7 * time.Second
	// forgotten is how long ago a node must have reported not to be named any more.
	forgotten = 24 * time.Hour
	// repeat is how old what nodes were told may become while nothing changes.
	repeat = 30 * time.Second
)

// Statuses are what the nodes last said of themselves.
type Statuses interface {
	Platform(ctx context.Context, f func(tx *store.Tx) error) error
}

// Published says which cells there are, and which nodes were killed.
type Published interface {
	Cells() []string
	View(cell string) (publish.View, <-chan struct{}, bool)
}

// Config is what the directory stands on.
type Config struct {
	Store     Statuses
	Published Published
	Logger    *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Directory is safe for concurrent use. It is an http.Handler of the page.
type Directory struct {
	nearest.Page
	cfg Config

	mu      sync.Mutex // guards what nodes are told
	told    *cellv1.CellDirectory
	changed chan struct{}
}

// New makes an empty directory.
func New(cfg Config) *Directory {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Directory{cfg: cfg, changed: make(chan struct{})}
}

// Cells is what every node should be told, nil before there is anything, and a channel that is closed when it has changed.
func (d *Directory) Cells() (*cellv1.CellDirectory, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told, d.changed
}

// Run keeps the directory up to date until ctx ends.
func (d *Directory) Run(ctx context.Context) error {
	d.look(ctx)
	return run.Every(ctx, lookEvery, d.look)
}

func (d *Directory) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var statuses []store.NodeStatus
	err := d.cfg.Store.Platform(ctx, func(tx *store.Tx) (err error) {
		statuses, err = tx.NodeStatuses(ctx)
		return err
	})
	if err != nil {
		d.cfg.Logger.DebugContext(ctx, "where the cells are stays as it was", "error", err)
		return
	}
	now := d.write(statuses)
	if err := d.Set(nearest.Of(now, nearest.FromControlPlane, nil)); err != nil {
		d.cfg.Logger.ErrorContext(ctx, "where the cells are", "error", err)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.told != nil && same(d.told, now) && now.GetAsOfMs()-d.told.GetAsOfMs() < repeat.Milliseconds() {
		return
	}
	d.told = now
	close(d.changed)
	d.changed = make(chan struct{})
}

// write makes a directory of what the nodes have said.
func (d *Directory) write(statuses []store.NodeStatus) *cellv1.CellDirectory {
	now := d.cfg.Now()
	dir := &cellv1.CellDirectory{AsOfMs: now.UnixMilli()}
	for _, name := range d.cfg.Published.Cells() {
		if len(dir.GetCells()) == nearest.MaxCells {
			break
		}
		cell := &cellv1.CellEntry{Name: name}
		view, _, _ := d.cfg.Published.View(name)
		for _, st := range statuses {
			if st.Cell != name || view.KilledNodes[st.Node] || now.Sub(st.SeenAt) > forgotten || len(cell.GetNodes()) == nearest.MaxNodes {
				continue
			}
			s := &cellv1.NodeStatus{}
			if proto.Unmarshal(st.Status, s) != nil {
				continue // a newer release's; this one cannot say anything of it
			}
			cell.Region = cmp.Or(cell.GetRegion(), s.GetReach().GetRegion())
			cell.Nodes = append(cell.Nodes, nearest.Entry(s, s.GetReach().GetReady() && now.Sub(st.SeenAt) <= silence, st.SeenAt))
		}
		dir.Cells = append(dir.Cells, cell)
	}
	return dir
}

// same reports whether two directories differ in nothing but times.
func same(a, b *cellv1.CellDirectory) bool {
	return slices.EqualFunc(a.GetCells(), b.GetCells(), func(a, b *cellv1.CellEntry) bool {
		return a.GetName() == b.GetName() && a.GetRegion() == b.GetRegion() &&
			slices.EqualFunc(a.GetNodes(), b.GetNodes(), func(a, b *cellv1.NodeEntry) bool {
				return a.GetName() == b.GetName() && a.GetHealthy() == b.GetHealthy() && a.GetHttp3() == b.GetHttp3() && slices.Equal(a.GetUrls(), b.GetUrls())
			})
	})
}
