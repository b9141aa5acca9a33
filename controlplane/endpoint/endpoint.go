// Package endpoint keeps the data that tools touch: databases, buckets, APIs, each with its owner, its class, its regions
// and the ways to use it, and which tools, prompts and resources touch it how. It answers the admin API's EndpointService.
//
// It promises that a link is between things that exist, and that a way of use is one that the endpoint has. What follows
// for a call is settled when the policy is compiled: a tool is of the highest class that it touches.
package endpoint

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/controlplane/registry"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// Service keeps the endpoints. It is safe for concurrent use.
type Service struct {
	store *store.Store
}

// New makes the service.
func New(st *store.Store) *Service { return &Service{store: st} }

func (s *Service) write(ctx context.Context, fn func(*store.Tx) error) (uint64, error) {
	c := controlplane.CallerFrom(ctx)
	return s.store.Write(ctx, c.TenantID, c.Actor(), fn)
}

// CreateEndpoint adds an endpoint that nothing touches yet.
func (s *Service) CreateEndpoint(ctx context.Context, req *adminv1.CreateEndpointRequest) (*adminv1.CreateEndpointResponse, error) {
	e := controlplane.Endpoint{
		Name: req.GetName(), Owner: req.GetOwner(), Class: uint8(req.GetClass()), Regions: distinct(req.GetRegions()), Access: distinct(req.GetAccess()),
	}
	if len(e.Access) == 0 {
		e.Access = []string{"read", "write"}
	}
	rev, err := s.write(ctx, func(tx *store.Tx) (err error) {
		if e, err = tx.InsertEndpoint(ctx, e); err != nil {
			return err
		}
		return tx.Change(ctx, "endpoint.create", "endpoint:"+e.Name, describe(e))
	})
	if errors.Is(err, store.ErrDuplicate) {
		return nil, problem.Newf(problem.Conflict, "choose another name", "endpoint %s already exists", e.Name).Because(err)
	}
	if err != nil {
		return nil, err
	}
	return &adminv1.CreateEndpointResponse{Endpoint: show(e), Revision: rev}, nil
}

// ListEndpoints lists all endpoints with what touches them, by name.
func (s *Service) ListEndpoints(ctx context.Context, _ *adminv1.ListEndpointsRequest) (*adminv1.ListEndpointsResponse, error) {
	res := &adminv1.ListEndpointsResponse{}
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) error {
		list, err := tx.Endpoints(ctx)
		res.Endpoints = nil
		for _, e := range list {
			res.Endpoints = append(res.Endpoints, show(e))
		}
		return err
	})
	return res, err
}

// UpdateEndpoint changes what the request gives; doing it twice is doing it once. A way of use that a link or a grant still
// names cannot be taken away from under it.
func (s *Service) UpdateEndpoint(ctx context.Context, req *adminv1.UpdateEndpointRequest) (*adminv1.UpdateEndpointResponse, error) {
	var e controlplane.Endpoint
	rev, err := s.write(ctx, func(tx *store.Tx) (err error) {
		if e, err = find(ctx, tx, req.GetName()); err != nil {
			return err
		}
		if req.Owner != nil {
			e.Owner = req.GetOwner()
		}
		if req.Class != nil {
			e.Class = uint8(req.GetClass())
		}
		if len(req.GetRegions()) > 0 {
			e.Regions = distinct(req.GetRegions())
		}
		if len(req.GetAccess()) > 0 {
			e.Access = distinct(req.GetAccess())
		}
		for _, l := range e.Links {
			for _, way := range l.Access {
				if !slices.Contains(e.Access, way) {
					return problem.Newf(problem.Conflict, "link it again without: mcpvault endpoint link "+e.Name+" "+targetOf(l)+" --access ...",
						"%s still uses %s for %s", targetOf(l), e.Name, way)
				}
			}
		}
		if err := tx.UpdateEndpoint(ctx, e); err != nil {
			return err
		}
		return tx.Change(ctx, "endpoint.update", "endpoint:"+e.Name, describe(e))
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.UpdateEndpointResponse{Endpoint: show(e), Revision: rev}, nil
}

// DeleteEndpoint takes an endpoint and its links away. Grants on it stay, and reach nothing; so that nothing becomes allowed
// unnoticed, it is refused while one of them denies.
func (s *Service) DeleteEndpoint(ctx context.Context, req *adminv1.DeleteEndpointRequest) (*adminv1.DeleteEndpointResponse, error) {
	rev, err := s.write(ctx, func(tx *store.Tx) error {
		e, err := find(ctx, tx, req.GetName())
		if err != nil {
			return err
		}
		if err := undenied(ctx, tx, e.Name); err != nil {
			return err
		}
		if err := tx.DeleteEndpoint(ctx, e.Name); err != nil {
			return err
		}
		return tx.Change(ctx, "endpoint.delete", "endpoint:"+e.Name, describe(e))
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.DeleteEndpointResponse{Revision: rev}, nil
}

func undenied(ctx context.Context, tx *store.Tx, name string) error {
	grants, err := tx.Grants(ctx)
	if err != nil {
		return err
	}
	for _, g := range grants {
		for _, t := range g.Terms() {
			of, _, _ := strings.Cut(t.Value, "/")
			if g.Deny && t.Fact == controlplane.FactEndpoint && of == name {
				return problem.Newf(problem.Conflict, "take it back first: mcpvault revoke --id "+g.ID,
					"a grant denies %s what touches endpoint %s, and would deny nothing any more", g.Subject, name)
			}
		}
	}
	return nil
}

// SetLink says that something of a server touches an endpoint, and how, or that it does not; doing it twice is doing it
// once.
func (s *Service) SetLink(ctx context.Context, req *adminv1.SetLinkRequest) (*adminv1.SetLinkResponse, error) {
	t, err := controlplane.ParseTarget(req.GetTarget())
	if err != nil {
		return nil, err
	}
	if t.Item == "" || t.Version != 0 || t.Item == controlplane.AllTools || t.Item == controlplane.AllPrompts {
		return nil, problem.Newf(problem.Invalid, "name one tool, prompt or pattern of resources, such as server:crm/export", "%s cannot be linked", req.GetTarget())
	}
	rev, err := s.write(ctx, func(tx *store.Tx) error {
		e, err := find(ctx, tx, req.GetEndpoint())
		if err != nil {
			return err
		}
		srv, err := registry.Find(ctx, tx, t.Server)
		if err != nil {
			return err
		}
		detail := map[string]any{"target": t.String()}
		if req.GetRemove() {
			if err := tx.DeleteLink(ctx, e, srv, t.Item); err != nil {
				return err
			}
			return tx.Change(ctx, "endpoint.unlink", "endpoint:"+e.Name, detail)
		}
		if _, err := registry.SurfaceWith(ctx, tx, t); err != nil {
			return err
		}
		ways := distinct(req.GetAccess())
		for _, way := range ways {
			if !slices.Contains(e.Access, way) {
				return problem.Newf(problem.Invalid, "it is used for "+strings.Join(e.Access, ", ")+"; mcpvault endpoint edit adds more",
					"endpoint %s is not used for %s", e.Name, way)
			}
		}
		if len(ways) == 0 {
			ways = e.Access
		}
		if err := tx.PutLink(ctx, e, srv, t.Item, ways); err != nil {
			return err
		}
		detail["access"] = ways
		return tx.Change(ctx, "endpoint.link", "endpoint:"+e.Name, detail)
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.SetLinkResponse{Revision: rev}, nil
}

// find finds an endpoint with its links, or says which one may have been meant.
func find(ctx context.Context, tx *store.Tx, name string) (controlplane.Endpoint, error) {
	list, err := tx.Endpoints(ctx)
	if err != nil {
		return controlplane.Endpoint{}, err
	}
	names := make([]string, 0, len(list))
	for _, e := range list {
		if e.Name == name {
			return e, nil
		}
		names = append(names, e.Name)
	}
	fix := "see `mcpvault endpoint list`"
	if near := policy.Nearest(name, names); near != "" {
		fix = "did you mean " + near + "?"
	}
	return controlplane.Endpoint{}, problem.Newf(problem.NotFound, fix, "endpoint %s does not exist", name)
}

func show(e controlplane.Endpoint) *adminv1.Endpoint {
	out := &adminv1.Endpoint{Id: e.ID, Name: e.Name, Owner: e.Owner, Class: uint32(e.Class), Regions: e.Regions, Access: e.Access}
	for _, l := range e.Links {
		out.Links = append(out.Links, &adminv1.EndpointLink{Target: targetOf(l), Access: l.Access})
	}
	return out
}

func targetOf(l controlplane.Link) string {
	return controlplane.Target{Server: l.Server, Item: l.Item}.String()
}

func describe(e controlplane.Endpoint) map[string]any {
	return map[string]any{"id": e.ID, "owner": e.Owner, "class": e.Class, "regions": e.Regions, "access": e.Access}
}

// distinct sorts and drops what is named twice; never nil.
func distinct(words []string) []string {
	return slices.Compact(append([]string{}, slices.Sorted(slices.Values(words))...))
}
