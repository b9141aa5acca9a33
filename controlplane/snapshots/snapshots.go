// Package snapshots shows what was published and how far it got: generations, the nodes' answers, cells, and whether the
// control plane itself is well. It answers the admin API's SnapshotService, CellAdminService,
// SessionService and SystemService.
package snapshots

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/cellapi"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// Publisher is what is in force.
type Publisher interface {
	Head(tenant controlplane.TenantID) *publish.Head
	Homes(tenant string) []string
	Cells() []string
	Status() publish.Status
}

// Logs lists the audit logs of all nodes.
type Logs interface {
	ListLogs(ctx context.Context, req *adminv1.ListLogsRequest) (*adminv1.ListLogsResponse, error)
}

// Keys are what signs, and the roots that say so.
type Keys interface {
	Current() *keyring.Set
	// Problem is why newer keys are not in use; nil when there are none.
	Problem() error
	// Install puts roots into force that follow from the present ones.
	Install(ctx context.Context, env []byte) (version uint64, err error)
}

// Config is what the service stands on.
type Config struct {
	Store     *store.Store
	Publisher Publisher
	Fleet     *cellapi.Fleet
	Logs      Logs
	// Keys hold the roots, which verify everything.
	Keys Keys
	// Version is the program's.
	Version string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Service is safe for concurrent use.
type Service struct{ cfg Config }

// New makes the service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg}
}

// ListGenerations lists the newest generations of the tenant, newest first, with what the nodes answered.
func (s *Service) ListGenerations(ctx context.Context, req *adminv1.ListGenerationsRequest) (*adminv1.ListGenerationsResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	limit := int(req.GetLimit())
	if limit == 0 {
		limit = 20
	}
	res := &adminv1.ListGenerationsResponse{}
	err := s.cfg.Store.Read(ctx, caller.TenantID, func(tx *store.Tx) error {
		list, err := tx.Generations(ctx, limit)
		if err != nil || len(list) == 0 {
			return err
		}
		oldest := list[len(list)-1]
		acks, err := tx.Acks(ctx, oldest.Epoch, oldest.Generation)
		if err != nil {
			return err
		}
		res.Generations = nil
		for _, g := range list {
			res.Generations = append(res.Generations, show(caller.Tenant, g, acks))
		}
		return nil
	})
	return res, err
}

// GetGeneration returns the sealed head, the deltas on it, the roots and, when asked, the shards, so that anybody can verify
// them offline.
func (s *Service) GetGeneration(ctx context.Context, req *adminv1.GetGenerationRequest) (*adminv1.GetGenerationResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	res := &adminv1.GetGenerationResponse{}
	err := s.cfg.Store.Read(ctx, caller.TenantID, func(tx *store.Tx) error {
		g, err := tx.Generation(ctx, req.GetGeneration())
		if err != nil {
			return err
		}
		chain, err := tx.Chain(ctx, g)
		if err != nil {
			return err
		}
		acks, err := tx.Acks(ctx, g.Epoch, g.Generation)
		if err != nil {
			return err
		}
		res.Generation, res.Envelope, res.Roots, res.Shards = show(caller.Tenant, g, acks), chain[0].Envelope, s.cfg.Keys.Current().Roots, nil
		if res.Deltas, err = deltasOf(chain); err != nil {
			return err
		}
		if !req.GetIncludeShards() {
			return nil
		}
		head, err := publish.ReadHead(chain[0].Envelope)
		if err != nil {
			return err
		}
		for _, sh := range head.GetShards() {
			blob, err := tx.Blob(ctx, sh.GetSha256())
			if err != nil {
				return err
			}
			res.Shards = append(res.Shards, blob)
		}
		return nil
	})
	return res, err
}

func deltasOf(chain []store.Generation) ([]*snapshotv1.SignedDelta, error) {
	var all []*snapshotv1.SignedDelta
	for _, g := range chain[1:] {
		d := &snapshotv1.SignedDelta{}
		if err := proto.Unmarshal(g.Delta, d); err != nil {
			return nil, fmt.Errorf("stored delta %d: %w", g.Generation, err)
		}
		all = append(all, d)
	}
	return all, nil
}

// The kinds of generations.
const (
	kindHead  = "head"
	kindDelta = "delta"
)

func show(tenant string, g store.Generation, acks []store.Ack) *adminv1.Generation {
	out := &adminv1.Generation{
		Tenant: tenant, Epoch: g.Epoch, Generation: g.Generation, Revision: g.Revision,
		Digest: hex.EncodeToString(g.PayloadSHA256), CreatedMs: g.CreatedAt.UnixMilli(), Bytes: g.Size, Kind: kindHead, Base: g.Base,
	}
	if g.Delta != nil {
		out.Kind = kindDelta
	}
	for _, a := range acks {
		if a.Epoch != g.Epoch || a.Generation != g.Generation {
			continue
		}
		out.Acks = append(out.Acks, &adminv1.NodeAck{
			Cell: a.Cell, Node: a.Node, Status: status(a.Rejected), Reason: a.Reason, AtMs: a.At.UnixMilli(), Generation: a.Generation,
		})
	}
	return out
}

func status(rejected bool) string {
	if rejected {
		return "rejected"
	}
	return "applied"
}

// The bounds of WaitRevision.
const (
	defaultWait = 10 * time.Second
	maxWait     = 25 * time.Second
	// look is how often PostgreSQL is asked while a revision is not published yet.
	look = 20 * time.Millisecond
)

// WaitRevision returns when every connected node has answered a generation that holds the revision, or at the timeout.
// Nodes that hold no stream to this control plane are not waited for.
func (s *Service) WaitRevision(ctx context.Context, req *adminv1.WaitRevisionRequest) (*adminv1.WaitRevisionResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	wait := defaultWait
	if req.GetTimeout() != nil {
		wait = min(req.GetTimeout().AsDuration(), maxWait)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var written time.Time
	if err := s.cfg.Store.Read(ctx, caller.TenantID, func(tx *store.Tx) (err error) {
		self, err := tx.Self(ctx)
		if err != nil {
			return err
		}
		if req.GetRevision() > self.Revision {
			return problem.Newf(problem.Invalid, "use the revision that a write returned", "revision %d has not been written: the newest is %d", req.GetRevision(), self.Revision)
		}
		written, err = tx.WrittenAt(ctx, req.GetRevision())
		return err
	}); err != nil {
		return nil, err
	}
	res := &adminv1.WaitRevisionResponse{}
	head, err := s.published(ctx, caller.TenantID, req.GetRevision())
	if err != nil || head == nil {
		return res, err
	}
	res.Generation = uint64(head.Version.Generation)
	for {
		changed := s.cfg.Fleet.Changed()
		if done := s.answers(caller, head.Version, written, res); done {
			return res, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return res, nil
		}
	}
}

// published waits for the first head that holds the revision; nil when the time is over.
func (s *Service) published(ctx context.Context, tenant controlplane.TenantID, revision uint64) (*publish.Head, error) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		head := s.cfg.Publisher.Head(tenant)
		if head != nil && head.Revision >= revision {
			return head, nil
		}
		// A revision that changes no policy, a kill, needs no generation of its own. The newest generation is looked at
		// after the outbox, which is emptied along with it: one that is stored and not yet in force is waited for.
		var open uint64
		var stored store.Generation
		err := s.cfg.Store.Read(ctx, tenant, func(tx *store.Tx) (err error) {
			if open, err = tx.OldestOpen(ctx); err != nil {
				return err
			}
			if stored, err = tx.Generation(ctx, 0); errors.Is(err, store.ErrNotFound) {
				return nil
			}
			return err
		})
		switch {
		case ctx.Err() != nil:
			return nil, nil
		case err != nil:
			return nil, err
		case head != nil && needsNone(revision, open, stored.Revision, head.Revision):
			return head, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

// needsNone reports whether a revision above that of the head in force leads to no generation: nothing in the outbox waits
// for it, and the newest generation that was stored is in force.
func needsNone(revision, oldestOpen, stored, inForce uint64) bool {
	return (oldestOpen == 0 || oldestOpen > revision) && stored <= inForce
}

// answers fills in what the connected nodes of the tenant's cells answered, and reports whether all have.
func (s *Service) answers(caller controlplane.Caller, version snapshot.Version, written time.Time, res *adminv1.WaitRevisionResponse) bool {
	homes := map[string]bool{}
	for _, cell := range s.cfg.Publisher.Homes(caller.Tenant) {
		homes[cell] = true
	}
	res.Acks, res.Complete = nil, true
	var last time.Time
	all := true
	for _, n := range s.cfg.Fleet.Connected() {
		if !homes[n.Cell] {
			continue
		}
		a, ok := s.cfg.Fleet.AnswerTo(n, caller.TenantID, version)
		if !ok {
			all, res.Complete = false, false
			continue
		}
		res.Complete = res.Complete && !a.Rejected
		if a.At.After(last) {
			last = a.At
		}
		res.Acks = append(res.Acks, &adminv1.NodeAck{
			Cell: n.Cell, Node: n.Name, Status: status(a.Rejected), Reason: a.Reason, AtMs: a.At.UnixMilli(), Generation: uint64(a.Version.Generation),
		})
	}
	if !written.IsZero() && last.After(written) {
		res.ElapsedMs = float64(last.Sub(written).Microseconds()) / 1000
	}
	return all
}
