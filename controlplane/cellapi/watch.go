package cellapi

import (
	"bytes"
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	"github.com/mcpvault/mcpvault/snapshot"
)

// Watch sends what the cell should serve, at once and at every change: deltas to whom they fit, else the head and the deltas
// behind it. Between two sends only the newest state is kept: whoever reads slowly skips what was replaced meanwhile.
func (s *Service) Watch(ctx context.Context, req *cellv1.WatchRequest, out cellv1connect.CellServiceWatchServerStream) error {
	n := nodeFrom(ctx)
	view, _, ok := s.cfg.Published.View(n.Cell)
	if !ok {
		return problem.Newf(problem.Unavailable, "check the control plane's cells", "nothing is published for cell %s", n.Cell)
	}
	if view.KilledNodes[n.Name] {
		return s.farewell(ctx, n, view, out)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &watcher{out: out, sent: map[controlplane.TenantID]snapshot.Version{}}
	for _, a := range req.GetApplied() {
		w.sent[controlplane.TenantID(a.GetTenantId())] = snapshot.Version{Epoch: snapshot.Epoch(a.GetEpoch()), Generation: snapshot.Generation(a.GetGeneration())}
	}
	s.compare(ctx, n, view, req.GetApplied())
	asked, leave := s.cfg.Fleet.join(n, s.believed(ctx, n, view, w.sent), s.cfg.Now(), cancel)
	defer leave()
	s.cfg.Logger.InfoContext(ctx, "node connected", "cell", n.Cell, "node", n.Name)
	defer s.cfg.Logger.InfoContext(ctx, "node disconnected", "cell", n.Cell, "node", n.Name)
	for {
		view, changed, ok := s.cfg.Published.View(n.Cell)
		if !ok {
			return problem.Newf(problem.Unavailable, "", "nothing is published for cell %s any more", n.Cell)
		}
		if view.KilledNodes[n.Name] {
			return s.farewell(ctx, n, view, out)
		}
		if err := w.send(view); err != nil {
			return err
		}
		moved, err := w.tell(s.cfg.Cells)
		if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-moved:
		case q := <-asked:
			if err := out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Sessions{Sessions: q}}); err != nil {
				return err
			}
		case <-ctx.Done():
			if errors.Is(context.Cause(ctx), errReplaced) {
				return problem.Newf(problem.Conflict, "", "node %s/%s has opened another stream", n.Cell, n.Name)
			}
			return ctx.Err()
		}
	}
}

// farewellTime is how long a node that was killed may take to say that it has heard of it.
const farewellTime = 2 * time.Second

// farewell tells a node that it was killed, and nothing else but the roots that prove it. Whoever holds its key learns of no
// policy any more.
func (s *Service) farewell(ctx context.Context, n Node, v publish.View, out cellv1connect.CellServiceWatchServerStream) error {
	s.cfg.Logger.WarnContext(ctx, "a node that was killed is turned away", "cell", n.Cell, "node", n.Name)
	if err := out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Update{Update: &cellv1.Update{Roots: v.Roots, EarlierRoots: v.Earlier}}}); err != nil {
		return err
	}
	for _, k := range v.Kills {
		if k.TenantID != "" {
			continue
		}
		if err := out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Kill{Kill: k.Envelope}}); err != nil {
			return err
		}
	}
	select {
	case <-time.After(farewellTime):
	case <-ctx.Done():
	}
	return nodeKilled(n)
}

func nodeKilled(n Node) error {
	return problem.Newf(problem.Denied, "enrol the machine under a new name", "node %s/%s was killed", n.Cell, n.Name)
}

// alive refuses a node that was killed.
func (s *Service) alive(n Node) error {
	if view, _, ok := s.cfg.Published.View(n.Cell); ok && view.KilledNodes[n.Name] {
		return nodeKilled(n)
	}
	return nil
}

// believed are the applied versions that are answers to what we have published. A node that has more than that, of a tenant
// of its cell, has it from another database: counted as answers, they would confirm generations that it refuses.
func (s *Service) believed(ctx context.Context, n Node, view publish.View, applied map[controlplane.TenantID]snapshot.Version) map[controlplane.TenantID]snapshot.Version {
	out := map[controlplane.TenantID]snapshot.Version{}
	for _, h := range view.Heads {
		v, ok := applied[h.TenantID]
		switch {
		case !ok:
		case v.Newer(h.Version):
			s.cfg.Logger.WarnContext(ctx, "a node has a newer generation than this control plane: is it late, or on a database restored from a backup?",
				"cell", n.Cell, "node", n.Name, "tenant", h.TenantID, "generation", h.Version.String(), "applied", v.String())
		default:
			out[h.TenantID] = v
		}
	}
	return out
}

// compare looks whether a node has made of a generation what everybody else has: one that has not is sent the next generation
// as a head.
func (s *Service) compare(ctx context.Context, n Node, view publish.View, applied []*cellv1.AppliedHead) {
	heads := map[controlplane.TenantID]*publish.Head{}
	for _, h := range view.Heads {
		heads[h.TenantID] = h
	}
	for _, a := range applied {
		h := heads[controlplane.TenantID(a.GetTenantId())]
		if h == nil || len(a.GetStateHash()) == 0 {
			continue
		}
		v := snapshot.Version{Epoch: snapshot.Epoch(a.GetEpoch()), Generation: snapshot.Generation(a.GetGeneration())}
		if state, ok := h.StateOf(v); ok && string(state) != string(a.GetStateHash()) {
			s.cfg.Logger.ErrorContext(ctx, "a node serves another policy under the same generation", "cell", n.Cell, "node", n.Name,
				"tenant", h.TenantID, "generation", v.String())
			s.cfg.Published.Rebase(h.TenantID, v)
		}
	}
}

// watcher is what one stream was sent.
type watcher struct {
	out                 cellv1connect.CellServiceWatchServerStream
	sent                map[controlplane.TenantID]snapshot.Version
	manifest, heartbeat []byte
	roots               []byte
	kills               int
	resigned            uint64
	cells               *cellv1.CellDirectory
}

// send sends what is new. With new roots the update comes first, because kills may be signed by a key that only they name;
// otherwise kills do.
func (w *watcher) send(v publish.View) error {
	if !bytes.Equal(v.Roots, w.roots) {
		if err := w.update(v); err != nil {
			return err
		}
		w.roots = v.Roots
	}
	if v.Resigned != w.resigned {
		w.kills, w.resigned = 0, v.Resigned // what was signed anew replaces what the node holds
	}
	for ; w.kills < len(v.Kills); w.kills++ {
		if err := w.out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Kill{Kill: v.Kills[w.kills].Envelope}}); err != nil {
			return err
		}
	}
	if err := w.update(v); err != nil {
		return err
	}
	if len(v.Heartbeat) == 0 || bytes.Equal(v.Heartbeat, w.heartbeat) {
		return nil
	}
	w.heartbeat = v.Heartbeat
	return w.out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Heartbeat{Heartbeat: v.Heartbeat}})
}

// tell sends where the cells are, when the stream has not brought that yet.
func (w *watcher) tell(cells Cells) (changed <-chan struct{}, err error) {
	if cells == nil {
		return nil, nil
	}
	dir, changed := cells.Cells()
	if dir == nil || dir == w.cells {
		return changed, nil
	}
	w.cells = dir
	return changed, w.out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Cells{Cells: dir}})
}

// update sends what is new of the policy: the heads that the node lacks, with the manifest that names them and the deltas
// behind them, and to whom has the rest the deltas alone.
func (w *watcher) update(v publish.View) error {
	u := &cellv1.Update{Manifest: v.Manifest, Roots: v.Roots}
	if w.roots == nil {
		u.EarlierRoots = v.Earlier
	}
	var next []publish.Delta
	for _, h := range v.Heads {
		deltas, ok := h.Behind(w.sent[h.TenantID])
		if ok {
			next = append(next, deltas...)
			continue
		}
		u.Heads = append(u.Heads, h.Envelope)
		for _, d := range h.Deltas {
			u.Deltas = append(u.Deltas, d.Signed)
		}
	}
	if len(u.GetHeads()) > 0 || !bytes.Equal(v.Manifest, w.manifest) {
		if err := w.out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Update{Update: u}}); err != nil {
			return err
		}
	}
	for _, d := range next {
		if err := w.out.Send(&cellv1.WatchResponse{Event: &cellv1.WatchResponse_Delta{Delta: d.Signed}}); err != nil {
			return err
		}
	}
	for _, h := range v.Heads {
		w.sent[h.TenantID] = h.Version
	}
	w.manifest = v.Manifest
	return nil
}

// Acknowledge keeps what a node did with a generation or a kill, and wakes whoever waits for it.
func (s *Service) Acknowledge(ctx context.Context, req *cellv1.AcknowledgeRequest) (*cellv1.AcknowledgeResponse, error) {
	at, n := s.cfg.Now(), nodeFrom(ctx)
	tenant := controlplane.TenantID(req.GetTenantId())
	view, _, ok := s.cfg.Published.View(n.Cell)
	if !ok {
		return nil, problem.Newf(problem.Unavailable, "", "nothing is published for cell %s", n.Cell)
	}
	if req.GetKillId() != "" {
		return s.acknowledgeKill(ctx, n, view, tenant, req.GetKillId())
	}
	if err := s.alive(n); err != nil {
		return nil, err
	}
	var head *publish.Head
	for _, h := range view.Heads {
		if h.TenantID == tenant {
			head = h
		}
	}
	version := snapshot.Version{Epoch: snapshot.Epoch(req.GetEpoch()), Generation: snapshot.Generation(req.GetGeneration())}
	if head == nil || version.Newer(head.Version) || version.Epoch == 0 || version.Generation == 0 {
		return nil, problem.Newf(problem.Invalid, "", "generation %s of tenant %s was not sent to cell %s", version, tenant, n.Cell)
	}
	a := store.Ack{
		Cell: n.Cell, Node: n.Name, Epoch: req.GetEpoch(), Generation: req.GetGeneration(), Revision: req.GetRevision(),
		Rejected: req.GetStatus() == cellv1.AckStatus_ACK_STATUS_REJECTED, Reason: req.GetReason(), At: at,
	}
	if a.Rejected {
		s.cfg.Logger.WarnContext(ctx, "node rejected a generation", "cell", n.Cell, "node", n.Name, "tenant", head.TenantID,
			"generation", version.String(), "reason", a.Reason)
		s.cfg.Published.Rebase(tenant, version)
	}
	// Whoever waits is woken first: the row is for the history.
	s.cfg.Fleet.answered(n, tenant, Answer{Version: version, Rejected: a.Rejected, Reason: a.Reason, At: at})
	err := s.cfg.Store.Record(ctx, tenant, func(tx *store.Tx) error { return tx.InsertAck(ctx, a) })
	if err != nil {
		return nil, err
	}
	return &cellv1.AcknowledgeResponse{}, nil
}

func (s *Service) acknowledgeKill(ctx context.Context, n Node, view publish.View, tenant controlplane.TenantID, id string) (*cellv1.AcknowledgeResponse, error) {
	for _, k := range view.Kills {
		if k.ID == id && (tenant == "" || k.TenantID == tenant) {
			err := s.noteKill(ctx, n, k)
			if err != nil {
				return nil, err
			}
			return &cellv1.AcknowledgeResponse{}, nil
		}
	}
	return nil, problem.Newf(problem.Invalid, "", "kill %s was not sent to cell %s", id, n.Cell)
}

func (s *Service) noteKill(ctx context.Context, n Node, k publish.KillRecord) error {
	if k.TenantID == "" {
		return s.cfg.Store.Platform(ctx, func(tx *store.Tx) error { return tx.AckPlatformKill(ctx, k.ID, n.Cell, n.Name) })
	}
	return s.cfg.Store.Record(ctx, k.TenantID, func(tx *store.Tx) error { return tx.AckKill(ctx, k.ID, n.Cell, n.Name) })
}

// ReportStatus keeps what a node says of itself, under the name that its SVID gives it.
func (s *Service) ReportStatus(ctx context.Context, req *cellv1.ReportStatusRequest) (*cellv1.ReportStatusResponse, error) {
	n := nodeFrom(ctx)
	if err := s.alive(n); err != nil {
		return nil, err
	}
	status := proto.CloneOf(req.GetStatus())
	status.Cell, status.Node = n.Cell, n.Name
	raw, err := proto.Marshal(status)
	if err != nil {
		return nil, err
	}
	err = s.cfg.Store.Platform(ctx, func(tx *store.Tx) error {
		return tx.SetNodeStatus(ctx, store.NodeStatus{Cell: n.Cell, Node: n.Name, Status: raw})
	})
	if err != nil {
		return nil, err
	}
	res := &cellv1.ReportStatusResponse{}
	if s.cfg.Machines != nil {
		res.Authority = s.cfg.Machines.Authority()
	}
	return res, nil
}
