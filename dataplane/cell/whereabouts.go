package cell

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/dataplane/store"
	"github.com/mcpvault/mcpvault/kit/nearest"
	"github.com/mcpvault/mcpvault/kit/run"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const (
	cellsFile = "cells.sealed"
	// maxCellsFile bounds what is read of it.
	maxCellsFile = 1 << 20
	// rewriteAfter is how long the disk may keep what differs from the newest in nothing but times.
	rewriteAfter = 10 * time.Minute
	// ahead is how much later than this node's clock a directory may be dated: one from the far future would never be replaced.
	ahead = 5 * time.Minute
	// fresh is how old a node's last word may be: two comparisons.
	fresh = 2 * compareEvery
	// pageEvery is how often the page is written anew.
	pageEvery = time.Second
)

// whereabouts are where the cells are reached, so that clients can ask any node when the control plane is gone. Other cells are
// as the control plane said last, over its authenticated stream, or over a peer's; this cell is as its nodes say themselves.
type whereabouts struct {
	path  string
	seal  *store.Sealer
	pages [2]nearest.Page // by whether this node serves
	ready atomic.Bool
	// look finds out whether this node would take calls, and notes it in ready; nil before there is a node to look at.
	look func() bool

	mu      sync.Mutex // guards all below
	dir     *cellv1.CellDirectory
	written time.Time
	peers   map[string]heardOf // by node
}

type heardOf struct {
	status *cellv1.NodeStatus
	at     time.Time
}

var cellsPlace = []byte("cells")

// open reads what this node knew before it stopped. A file that cannot be read is as good as none: it is told again.
func (w *whereabouts) open(dir string, key store.Key) (err error) {
	w.path = filepath.Join(dir, cellsFile)
	if w.seal, err = store.NewSealer(key, "cells"); err != nil {
		return err
	}
	w.peers = map[string]heardOf{}
	info, err := os.Stat(w.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() > maxCellsFile {
		return nil
	}
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(w.path)
	if err != nil {
		return err
	}
	plain, err := w.seal.Open(cellsPlace, cellsPlace, raw)
	dir2 := &cellv1.CellDirectory{}
	if err == nil && proto.Unmarshal(plain, dir2) == nil {
		w.dir = dir2
	}
	return nil
}

// directory is what is known of all cells; nil for nothing.
func (w *whereabouts) directory() *cellv1.CellDirectory {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dir
}

// heard keeps what the peers have just said; one that has not answered keeps its last word, which grows old.
func (w *whereabouts) heard(statuses []*cellv1.GetStatusResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range statuses {
		w.peers[r.GetStatus().GetNode()] = heardOf{r.GetStatus(), time.Now()}
	}
}

// take keeps a directory that is newer than the one that is known. It returns whether the disk should have it.
func (w *whereabouts) take(dir *cellv1.CellDirectory, now time.Time) (keep bool) {
	if dir == nil || dir.GetAsOfMs() > now.Add(ahead).UnixMilli() || len(dir.GetCells()) > nearest.MaxCells {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dir != nil && dir.GetAsOfMs() <= w.dir.GetAsOfMs() {
		return false
	}
	keep = w.written.IsZero() || now.Sub(w.written) > rewriteAfter || !sameWays(w.dir, dir)
	w.dir = dir
	if keep {
		w.written = now
	}
	return keep
}

// sameWays reports whether two directories lead to the same nodes.
func sameWays(a, b *cellv1.CellDirectory) bool {
	ways := func(d *cellv1.CellDirectory) string {
		var s strings.Builder
		for _, c := range d.GetCells() {
			fmt.Fprintf(&s, "%s %s\n", c.GetName(), c.GetRegion())
			for _, n := range c.GetNodes() {
				fmt.Fprintf(&s, "%s %v %q\n", n.GetName(), n.GetHttp3(), n.GetUrls())
			}
		}
		return s.String()
	}
	return ways(a) == ways(b)
}

// toldOfCells hears from the control plane, or from a peer, where the cells are.
func (n *Node) toldOfCells(dir *cellv1.CellDirectory) {
	if !n.cells.take(dir, n.clock.Now()) {
		return
	}
	raw, err := proto.Marshal(dir)
	if err == nil && len(raw) < maxCellsFile {
		err = store.ReplaceFile(n.cells.path, n.cells.seal.Seal(cellsPlace, cellsPlace, raw))
	}
	if err != nil {
		n.log.Warn("where the cells are is not kept on this disk", "err", err)
	}
}

// reach is what this node says of the way to it.
func (n *Node) reach() *cellv1.Reach {
	urls := n.cfg.PublicURLs
	if len(urls) == 0 {
		urls = []string{n.mcpURL()}
	}
	return &cellv1.Reach{
		Region: n.cfg.Region, Urls: urls[:min(len(urls), nearest.MaxURLs)], Ready: n.cells.ready.Load(),
		Http3: n.cfg.Listen.TLS != "" && n.cfg.Listen.HTTP3 != http3Off,
	}
}

// keepCells keeps the page up to date until ctx ends.
func (n *Node) keepCells(ctx context.Context) error {
	n.writeCells(ctx)
	return run.Every(ctx, pageEvery, n.writeCells)
}

// look finds out whether this node would take calls.
func (n *Node) look() bool {
	ready := !slices.ContainsFunc(n.checks(), func(c check) bool { return c.needed && c.err != nil })
	n.cells.ready.Store(ready)
	return ready
}

// takesCalls is what the last look has found, or what another finds when that was no: nobody is sent elsewhere by a node that
// has just become ready.
func (n *Node) takesCalls() bool {
	return n.cells.ready.Load() || n.cells.look != nil && n.cells.look()
}

func (n *Node) writeCells(ctx context.Context) {
	n.look()
	dir := n.wholeDirectory()
	for i, serving := range []bool{false, true} {
		here := &nearest.Here{Cell: n.cfg.Cell, Node: n.cfg.Node, Serving: serving}
		if err := n.cells.pages[i].Set(nearest.Of(dir, nearest.FromNode, here)); err != nil {
			n.log.ErrorContext(ctx, "where the cells are", "err", err)
		}
	}
}

// wholeDirectory puts what this cell's nodes say themselves in the place of what the control plane said of them.
func (n *Node) wholeDirectory() *cellv1.CellDirectory {
	now := time.Now()
	own := &cellv1.CellEntry{Name: n.cfg.Cell, Region: n.cfg.Region}
	whole := &cellv1.CellDirectory{}
	self := &cellv1.NodeStatus{Node: n.cfg.Node, Reach: n.reach()}
	for _, t := range n.pdp.Current().Tenants() {
		self.Applied = append(self.Applied, t.AppliedHead())
	}
	n.cells.mu.Lock()
	defer n.cells.mu.Unlock()
	for _, c := range n.cells.dir.GetCells() {
		if c.GetName() != n.cfg.Cell {
			whole.Cells = append(whole.Cells, c)
			continue
		}
		for _, e := range c.GetNodes() {
			e = proto.CloneOf(e)
			e.Healthy = e.GetHealthy() && now.UnixMilli()-e.GetSeenMs() < fresh.Milliseconds()
			own.Nodes = append(own.Nodes, e)
		}
	}
	whole.AsOfMs = n.cells.dir.GetAsOfMs()
	put := func(e *cellv1.NodeEntry) {
		if i := slices.IndexFunc(own.GetNodes(), func(o *cellv1.NodeEntry) bool { return o.GetName() == e.GetName() }); i >= 0 {
			if e.GetSeenMs() >= own.GetNodes()[i].GetSeenMs() {
				own.Nodes[i] = e
			}
			return
		}
		own.Nodes = append(own.Nodes, e)
	}
	for _, h := range n.cells.peers {
		put(nearest.Entry(h.status, h.status.GetReach().GetReady() && now.Sub(h.at) < fresh, h.at))
	}
	put(nearest.Entry(self, n.cells.ready.Load(), now))
	own.Nodes = slices.DeleteFunc(own.GetNodes(), func(e *cellv1.NodeEntry) bool { return n.killed(e.GetName()) })
	slices.SortFunc(own.GetNodes(), func(a, b *cellv1.NodeEntry) int { return cmp.Compare(a.GetName(), b.GetName()) })
	whole.Cells = append(whole.Cells, own)
	slices.SortFunc(whole.GetCells(), func(a, b *cellv1.CellEntry) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return whole
}

// withCells tells anybody where the cells are, whatever becomes of calls here.
func (n *Node) withCells(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != nearest.Path || r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.ServeHTTP(w, r)
			return
		}
		page := 0
		if n.takesCalls() && (!n.damaged.Load() || n.feed.Complete()) && n.pdp.Current().TenantByHost(r.Host) != nil {
			page = 1
		}
		n.cells.pages[page].ServeHTTP(w, r)
	})
}
