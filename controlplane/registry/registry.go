// Package registry keeps the MCP servers of a tenant: it reads their surface from the live server, gives each different
// surface a number, and serves to callers only what somebody approved.
//
// A version is the content of a surface and never changes; scanning the same surface again finds the same version. The
// effect class of a tool is what the approver said; a server's own annotations only propose.
package registry

import (
	"context"
	"log/slog"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// The effect classes, as they are stored.
const (
	Read        = "read"
	Write       = "write"
	Destructive = "destructive"
)

// Surfaces reads the surface of a live server. The error is a problem.
type Surfaces interface {
	Scan(ctx context.Context, url string) (*Surface, error)
}

// Service answers the admin API's RegistryService.
type Service struct {
	store *store.Store
	scan  Surfaces
	log   *slog.Logger
}

// New makes the service.
func New(st *store.Store, scan Surfaces, log *slog.Logger) *Service {
	return &Service{store: st, scan: scan, log: log}
}

// AddServer registers a server and scans it; when the scan fails the server is registered all the same, with the error.
func (s *Service) AddServer(ctx context.Context, req *adminv1.AddServerRequest) (*adminv1.AddServerResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	if err := checkURL(req.GetUrl()); err != nil {
		return nil, err
	}
	// The network is asked before the transaction begins: a slow server must not hold a tenant's lock.
	surface, scanErr := s.read(ctx, req.GetUrl(), req.GetSurface(), req.GetRemoteRefs())
	if scanErr != nil && (isStdio(req.GetUrl()) || len(req.GetSurface()) > 0) {
		return nil, scanErr
	}
	srv := store.Server{ID: store.NewID(), Name: req.GetName(), URL: req.GetUrl(), Description: req.GetDescription(), LastError: sentence(scanErr)}
	res := &adminv1.AddServerResponse{}
	rev, err := s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		srv.ScannedAt = tx.Now()
		if err := tx.InsertServer(ctx, srv); err != nil {
			return err
		}
		if err := tx.Change(ctx, "server.add", "server:"+srv.Name, map[string]any{"id": srv.ID, "url": srv.URL}); err != nil {
			return err
		}
		var number uint32
		if surface != nil {
			v, _, err := keep(ctx, tx, srv, surface)
			if err != nil {
				return err
			}
			number = v.Number
		}
		return fill(ctx, tx, srv.Name, number, &res.Server, &res.Version)
	})
	if err != nil {
		return nil, err
	}
	res.Revision = rev
	return res, nil
}

// ScanServer reads the server's surface again. A surface that was seen before is found again under its number.
func (s *Service) ScanServer(ctx context.Context, req *adminv1.ScanServerRequest) (*adminv1.ScanServerResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	srv, err := s.find(ctx, caller.TenantID, req.GetName())
	if err != nil {
		return nil, err
	}
	surface, scanErr := s.read(ctx, srv.URL, req.GetSurface(), req.GetRemoteRefs())
	if scanErr != nil && (isStdio(srv.URL) || len(req.GetSurface()) > 0) {
		return nil, scanErr
	}
	if scanErr != nil {
		// Which servers answer is no admin write: no revision, and no new generation.
		if err := s.store.Record(ctx, caller.TenantID, func(tx *store.Tx) error { return tx.NoteScan(ctx, srv.ID, sentence(scanErr)) }); err != nil {
			return nil, err
		}
		return nil, scanErr
	}
	res := &adminv1.ScanServerResponse{}
	res.Revision, err = s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		now, err := tx.Server(ctx, req.GetName())
		if err != nil {
			return err
		}
		if now.ID != srv.ID {
			return problem.Newf(problem.Conflict, "scan it again", "server %s was replaced by another of that name while it was being scanned", srv.Name)
		}
		v, isNew, err := keep(ctx, tx, now, surface)
		if err != nil {
			return err
		}
		if err := tx.NoteScan(ctx, now.ID, ""); err != nil {
			return err
		}
		res.IsNew = isNew
		detail := map[string]any{"version": v.Number, "new": isNew, "protocols": surface.ProtocolVersions}
		if err := tx.Change(ctx, "server.scan", "server:"+now.Name, detail); err != nil {
			return err
		}
		return fill(ctx, tx, now.Name, v.Number, &res.Server, &res.Version)
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// read asks the server, or takes what was asked of one that only a node can reach. Schemas that refer to something outside of
// themselves are taken only when the caller says so.
func (s *Service) read(ctx context.Context, url string, given []byte, remoteRefs bool) (*Surface, error) {
	surface, err := s.ask(ctx, url, given)
	if err == nil && len(surface.remote) > 0 && !remoteRefs {
		return nil, problem.Newf(problem.Invalid, "have it mended, or take it as it is with --remote-refs: nothing here fetches that, but a client might",
			"the input schema of the tool %q refers to something outside of itself", surface.remote[0])
	}
	return surface, err
}

func (s *Service) ask(ctx context.Context, url string, given []byte) (*Surface, error) {
	switch {
	case isStdio(url) && len(given) == 0:
		return nil, problem.New(problem.Invalid, "a server that runs beside a node cannot be asked from here",
			"run `mcpvault-cell stdio scan` with a node's configuration and give its output with --surface")
	case isStdio(url):
		return ParseSurface(url, given)
	case len(given) > 0:
		return nil, problem.New(problem.Invalid, "a surface is given for a server that can be asked", "leave out --surface")
	}
	return s.scan.Scan(ctx, url)
}

// keep finds the version of a surface, or makes it.
func keep(ctx context.Context, tx *store.Tx, srv store.Server, surface *Surface) (v store.ServerVersion, isNew bool, err error) {
	digest, err := surface.Digest()
	if err != nil {
		return v, false, err
	}
	v, ok, err := tx.VersionByDigest(ctx, srv.ID, digest[:])
	if err != nil {
		return v, false, err
	}
	if ok {
		return v, false, tx.SetProtocolVersions(ctx, v.ID, surface.ProtocolVersions)
	}
	encoded, err := surface.Encode()
	if err != nil {
		return v, false, err
	}
	v = store.ServerVersion{
		ID: store.NewID(), ServerID: srv.ID, Number: srv.LatestVersion + 1, Digest: digest[:], Surface: encoded,
		State: store.VersionPending, ProtocolVersions: surface.ProtocolVersions, CreatedAt: tx.Now(),
	}
	return v, true, tx.InsertVersion(ctx, v)
}

// ListServers lists them by name.
func (s *Service) ListServers(ctx context.Context, _ *adminv1.ListServersRequest) (*adminv1.ListServersResponse, error) {
	res := &adminv1.ListServersResponse{}
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) error {
		list, err := tx.Servers(ctx)
		if err != nil {
			return err
		}
		res.Servers = res.Servers[:0]
		for _, srv := range list {
			res.Servers = append(res.Servers, showServer(srv))
		}
		return nil
	})
	return res, err
}

// GetServer shows a server with its published version, else its newest.
func (s *Service) GetServer(ctx context.Context, req *adminv1.GetServerRequest) (*adminv1.GetServerResponse, error) {
	res := &adminv1.GetServerResponse{}
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) error {
		srv, err := Find(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		number := srv.PublishedVersion
		if number == 0 {
			number = srv.LatestVersion
		}
		return fill(ctx, tx, srv.Name, number, &res.Server, &res.Version)
	})
	return res, err
}

// ListVersions lists a server's versions, newest first.
func (s *Service) ListVersions(ctx context.Context, req *adminv1.ListVersionsRequest) (*adminv1.ListVersionsResponse, error) {
	res := &adminv1.ListVersionsResponse{}
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) error {
		srv, err := Find(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		published, err := publishedSurface(ctx, tx, srv)
		if err != nil {
			return err
		}
		list, err := tx.Versions(ctx, srv.ID)
		if err != nil {
			return err
		}
		res.Versions = res.Versions[:0]
		for _, v := range list {
			if v.Effects, err = tx.Effects(ctx, v.ID); err != nil {
				return err
			}
			shown, err := showVersion(v, published)
			if err != nil {
				return err
			}
			res.Versions = append(res.Versions, shown)
		}
		return nil
	})
	return res, err
}

// RemoveServer takes a server and its versions away. Grants that name it stay, and reach nothing.
func (s *Service) RemoveServer(ctx context.Context, req *adminv1.RemoveServerRequest) (*adminv1.RemoveServerResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	rev, err := s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		srv, err := Find(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		if err := tx.DeleteServer(ctx, srv.ID); err != nil {
			return err
		}
		return tx.Change(ctx, "server.remove", "server:"+srv.Name, map[string]any{"id": srv.ID, "url": srv.URL})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.RemoveServerResponse{Revision: rev}, nil
}

func (s *Service) find(ctx context.Context, tenant controlplane.TenantID, name string) (srv store.Server, err error) {
	err = s.store.Read(ctx, tenant, func(tx *store.Tx) error {
		srv, err = Find(ctx, tx, name)
		return err
	})
	return srv, err
}

// Find finds a server, or says which one may have been meant.
func Find(ctx context.Context, tx *store.Tx, name string) (store.Server, error) {
	srv, err := tx.Server(ctx, name)
	if problem.CodeOf(err) != problem.NotFound {
		return srv, err
	}
	list, listErr := tx.Servers(ctx)
	if listErr != nil {
		return srv, listErr
	}
	names := make([]string, 0, len(list))
	for _, s := range list {
		names = append(names, s.Name)
	}
	fix := "see `mcpvault server list`"
	if near := policy.Nearest(name, names); near != "" {
		fix = "did you mean " + near + "?"
	}
	return srv, problem.Newf(problem.NotFound, fix, "server %s does not exist", name)
}
