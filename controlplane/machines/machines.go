// Package machines gives machines their identities: a join token makes a machine a node, a node's SVID is renewed, a workload
// gets one of the cell's own trust domain. It answers the admin API's IdentityService, and for the cells' API who enrols and
// renews.
//
// It promises that a join token makes one key of one machine one node of one cell, once and within ten minutes; that its
// secret is kept nowhere; that nobody who holds a node's SVID can have one for another name; and that a workload's SVID is
// never of the nodes' trust domain, nor of another organisation.
package machines

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/jointoken"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

const (
	// NodeTTL is how long a node lives without a control plane. It renews when a seventh of that is over.
	NodeTTL = 7 * 24 * time.Hour
	// WorkloadTTL is the longest that a workload's SVID is good.
	WorkloadTTL = time.Hour
	// shown is for how long a join token can be looked up.
	shown = 30 * 24 * time.Hour
)

// Cells are the ones that there are, and where tenants are homed.
type Cells interface {
	Cells() []string
	Homes(tenant string) []string
}

// Roots are what nodes begin to trust from.
type Roots interface{ Current() *keyring.Set }

// Config is what the service stands on.
type Config struct {
	Store *store.Store
	Cells Cells
	Roots Roots
	// Authority signs the nodes' SVIDs; nil where somebody else does (a SPIFFE Workload API).
	Authority *svid.Authority
	// WorkloadDir holds an authority for the workloads of each cell, below the cell's name; they are made when needed.
	WorkloadDir string
	TrustDomain string
	// CellURL is where nodes find the cells' API, https://host:port, unless a request says otherwise.
	CellURL string
	Logger  *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Service is safe for concurrent use.
type Service struct {
	cfg Config

	mu        sync.Mutex
	workloads map[string]*svid.Authority // by cell; guarded by mu
}

// New makes the service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, workloads: map[string]*svid.Authority{}}
}

// noAuthority is the answer of a control plane that signs no SVIDs.
func noAuthority() error {
	return problem.New(problem.Invalid, "this control plane issues no SVIDs to nodes",
		"set ca_dir (`mcpvault trust ca` makes one), or give the machine its SVID through the SPIFFE Workload API")
}

// CreateJoinToken makes a token with which one machine becomes the node. The answer is the only time it is shown.
func (s *Service) CreateJoinToken(ctx context.Context, req *adminv1.CreateJoinTokenRequest) (*adminv1.CreateJoinTokenResponse, error) {
	if s.cfg.Authority == nil {
		return nil, noAuthority()
	}
	if !slices.Contains(s.cfg.Cells.Cells(), req.GetCell()) {
		return nil, problem.Newf(problem.NotFound, "see `mcpvault cell list`; the control plane's setting cells names them", "there is no cell %s", req.GetCell())
	}
	t, err := s.token(req)
	if err != nil {
		return nil, err
	}
	text, err := t.Text()
	if err != nil {
		return nil, err
	}
	c := controlplane.CallerFrom(ctx)
	var row store.JoinToken
	_, err = s.cfg.Store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		tx.SetKind(store.OutboxNone)
		if err := alive(ctx, tx, t.Cell, t.Node); err != nil {
			return err
		}
		row = store.JoinToken{
			ID: store.NewULID(tx.Now()), Cell: t.Cell, Node: t.Node, TenantID: c.TenantID, CreatedBy: c.Actor(),
			CreatedAt: tx.Now(), ExpiresAt: t.Expires,
		}
		hash := sha256.Sum256(t.Secret.Reveal())
		if err := tx.InsertJoinToken(ctx, row, hash[:]); err != nil {
			return err
		}
		return tx.Change(ctx, "join_token.create", object(t.Cell, t.Node), map[string]any{"id": row.ID, "expires_at": row.ExpiresAt})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.CreateJoinTokenResponse{Token: show(row), Secret: text}, nil
}

// token puts together what a machine has to know.
func (s *Service) token(req *adminv1.CreateJoinTokenRequest) (jointoken.Token, error) {
	t := jointoken.Token{
		Secret: jointoken.NewSecret(), ControlPlane: req.GetControlPlane(), TrustDomain: s.cfg.TrustDomain, Cell: req.GetCell(), Node: req.GetNode(),
		Expires: s.cfg.Now().UTC().Add(jointoken.Lifetime).Truncate(time.Second),
	}
	if t.ControlPlane == "" {
		t.ControlPlane = s.cfg.CellURL
	}
	if t.ControlPlane == "" {
		return t, problem.New(problem.Invalid, "the address at which nodes reach the control plane is not known",
			"give it with --control-plane https://HOST:PORT, or set cell_url in the control plane's configuration")
	}
	var err error
	if t.Authorities, err = svid.Pins(s.cfg.Authority.CA().Bundle()); err != nil {
		return t, err
	}
	digest, err := seal.RootsDigest(s.cfg.Roots.Current().Roots)
	t.Roots = digest
	return t, err
}

func object(cell, node string) string { return "node:" + cell + "/" + node }

// alive refuses a name that was killed: whoever holds its key may be somebody else, and a kill is not taken back.
func alive(ctx context.Context, tx *store.Tx, cell, node string) error {
	killed, err := tx.NodeKilled(ctx, cell+"/"+node)
	if err == nil && killed {
		return problem.Newf(problem.Denied, "enrol the machine under a new name", "node %s/%s was killed", cell, node)
	}
	return err
}

// ListJoinTokens shows what became of the tokens of the last thirty days, newest first.
func (s *Service) ListJoinTokens(ctx context.Context, _ *adminv1.ListJoinTokensRequest) (*adminv1.ListJoinTokensResponse, error) {
	res := &adminv1.ListJoinTokensResponse{}
	err := s.cfg.Store.Platform(ctx, func(tx *store.Tx) error {
		list, err := tx.JoinTokens(ctx, tx.Now().Add(-shown))
		res.Tokens = make([]*adminv1.JoinToken, len(list))
		for i, t := range list {
			res.Tokens[i] = show(t)
		}
		return err
	})
	return res, err
}

// RevokeJoinToken makes a token useless; again is fine.
func (s *Service) RevokeJoinToken(ctx context.Context, req *adminv1.RevokeJoinTokenRequest) (*adminv1.RevokeJoinTokenResponse, error) {
	c := controlplane.CallerFrom(ctx)
	_, err := s.cfg.Store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		tx.SetKind(store.OutboxNone)
		t, err := tx.RevokeJoinToken(ctx, req.GetId())
		if err != nil {
			return err
		}
		return tx.Change(ctx, "join_token.revoke", object(t.Cell, t.Node), map[string]any{"id": t.ID, "used": !t.UsedAt.IsZero()})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.RevokeJoinTokenResponse{}, nil
}

func show(t store.JoinToken) *adminv1.JoinToken {
	out := &adminv1.JoinToken{
		Id: t.ID, Cell: t.Cell, Node: t.Node, CreatedBy: t.CreatedBy, CreatedMs: t.CreatedAt.UnixMilli(), ExpiresMs: t.ExpiresAt.UnixMilli(),
		Revoked: !t.RevokedAt.IsZero(),
	}
	if !t.UsedAt.IsZero() {
		out.UsedMs = t.UsedAt.UnixMilli()
	}
	return out
}

// Enroll uses a join token up and signs the machine's first SVID. A machine that did not hear the answer asks again with the
// same token and key. The errors are problems: denied for a token that is none or no more, conflict for one that another
// machine has used.
func (s *Service) Enroll(ctx context.Context, req *cellv1.EnrollRequest) (*cellv1.EnrollResponse, error) {
	if s.cfg.Authority == nil {
		return nil, noAuthority()
	}
	hash := sha256.Sum256(req.GetSecret())
	var t store.JoinToken
	err := s.cfg.Store.Platform(ctx, func(tx *store.Tx) (err error) {
		t, err = tx.JoinTokenBySecret(ctx, hash[:])
		return err
	})
	// Whoever shows a token of another node learns no more than who shows none.
	if problem.CodeOf(err) == problem.NotFound || err == nil && (t.Cell != req.GetCell() || t.Node != req.GetNode()) {
		return nil, problem.Newf(problem.Denied, "make one: mcpvault cell token create "+req.GetNode()+" --cell "+req.GetCell(),
			"this is no join token for node %s/%s", req.GetCell(), req.GetNode())
	}
	if err != nil {
		return nil, err
	}
	// Before the token is used: a request that cannot be signed must not use it up.
	key, err := svid.RequestKey(req.GetCsr())
	if err != nil {
		return nil, refusedRequest(err)
	}
	id, err := s.identity(t.Cell, t.Node, req.GetCsr())
	if err != nil {
		return nil, err
	}
	_, err = s.cfg.Store.Write(ctx, t.TenantID, object(t.Cell, t.Node), func(tx *store.Tx) error {
		tx.SetKind(store.OutboxNone)
		if err := alive(ctx, tx, t.Cell, t.Node); err != nil {
			return err
		}
		if _, err := tx.UseJoinToken(ctx, t.ID, key[:]); err != nil {
			return err
		}
		return tx.Change(ctx, "node.enroll", object(t.Cell, t.Node), map[string]any{"token": t.ID, "token_by": t.CreatedBy, "again": !t.UsedAt.IsZero()})
	})
	if err != nil {
		return nil, err
	}
	members, err := s.members(ctx, t.Cell)
	if err != nil {
		return nil, err
	}
	s.cfg.Logger.InfoContext(ctx, "a node was enrolled", "cell", t.Cell, "node", t.Node, "token", t.ID)
	return &cellv1.EnrollResponse{Identity: id, Roots: s.cfg.Roots.Current().Roots, Members: members}, nil
}

// Renew signs another SVID for a node, which its connection has named.
func (s *Service) Renew(ctx context.Context, cell, node string, csr []byte) (*cellv1.MachineIdentity, error) {
	if s.cfg.Authority == nil {
		return nil, noAuthority()
	}
	id, err := s.identity(cell, node, csr)
	if err == nil {
		s.cfg.Logger.InfoContext(ctx, "a node's SVID was renewed", "cell", cell, "node", node)
	}
	return id, err
}

// Authority changes when who signs does; nil when nobody here does.
func (s *Service) Authority() []byte {
	if s.cfg.Authority == nil {
		return nil
	}
	return s.cfg.Authority.CA().Authority()
}

// identity signs, and adds what a node believes.
func (s *Service) identity(cell, node string, csr []byte) (*cellv1.MachineIdentity, error) {
	id, err := svid.NodeID(s.cfg.TrustDomain, cell, node)
	if err != nil {
		return nil, err
	}
	ca := s.cfg.Authority.CA().WithClock(s.cfg.Now)
	out := &cellv1.MachineIdentity{Bundle: ca.Bundle()}
	if out.Svid, err = ca.SignRequest(csr, id, NodeTTL); err != nil {
		return nil, refusedRequest(err)
	}
	workloads, err := s.workloadAuthority(cell)
	if err != nil {
		return nil, err
	}
	out.WorkloadBundle, out.WorkloadTrustDomain = workloads.CA().Bundle(), svid.WorkloadDomain(s.cfg.TrustDomain, cell)
	return out, nil
}

func refusedRequest(err error) error {
	if errors.Is(err, svid.ErrRequest) {
		return problem.New(problem.Invalid, err.Error(), "let `mcpvault-cell join` make the request")
	}
	return err
}

// members are the nodes of the cell that have said where they are, as they last reported.
func (s *Service) members(ctx context.Context, cell string) ([]*cellv1.CellMember, error) {
	var out []*cellv1.CellMember
	err := s.cfg.Store.Platform(ctx, func(tx *store.Tx) error {
		out = nil
		all, err := tx.NodeStatuses(ctx)
		if err != nil {
			return err
		}
		for _, n := range all {
			var status cellv1.NodeStatus
			if n.Cell != cell || proto.Unmarshal(n.Status, &status) != nil || status.GetRaftAddr() == "" {
				continue
			}
			if killed, err := tx.NodeKilled(ctx, n.Cell+"/"+n.Node); err != nil || killed {
				if err != nil {
					return err
				}
				continue
			}
			out = append(out, &cellv1.CellMember{Node: n.Node, Raft: status.GetRaftAddr(), Peer: status.GetPeerAddr()})
		}
		return nil
	})
	return out, err
}

// workloadAuthority opens the authority of a cell's workloads, and makes it when there is none.
func (s *Service) workloadAuthority(cell string) (*svid.Authority, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.workloads[cell]; a != nil {
		return a, nil
	}
	dir, domain := filepath.Join(s.cfg.WorkloadDir, cell), svid.WorkloadDomain(s.cfg.TrustDomain, cell)
	a, err := svid.OpenAuthority(dir, domain, s.cfg.Logger)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := svid.CreateCA(dir, domain); err != nil {
			return nil, err
		}
		a, err = svid.OpenAuthority(dir, domain, s.cfg.Logger)
	}
	if err != nil {
		return nil, err
	}
	s.workloads[cell] = a
	return a, nil
}
