package directory

import (
	"context"
	"errors"
	"net"
	"regexp"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// CreateTenant makes a tenant. Its host names lead to no other one.
func (s *Service) CreateTenant(ctx context.Context, req *adminv1.CreateTenantRequest) (*adminv1.CreateTenantResponse, error) {
	hosts, err := hostNames(req.GetHosts())
	if err != nil {
		return nil, err
	}
	c := controlplane.CallerFrom(ctx)
	t, err := s.store.CreateTenant(ctx, c.Home+"/"+c.Principal, req.GetName(), hosts)
	if err != nil {
		return nil, tenantTaken(err, req.GetName())
	}
	return &adminv1.CreateTenantResponse{Tenant: tenant(t), Revision: t.Revision}, nil
}

// ListTenants lists all tenants, by name.
func (s *Service) ListTenants(ctx context.Context, _ *adminv1.ListTenantsRequest) (*adminv1.ListTenantsResponse, error) {
	list, err := s.store.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	return &adminv1.ListTenantsResponse{Tenants: convert(list, tenant)}, nil
}

// EnsureTenant returns the tenant of that name, and makes it when there is none. It is for the program's own set-up.
func (s *Service) EnsureTenant(ctx context.Context, actor, name string, hosts []string) (controlplane.Tenant, error) {
	t, err := s.store.TenantByName(ctx, name)
	if !errors.Is(err, store.ErrNotFound) {
		return t, err
	}
	if hosts, err = hostNames(hosts); err != nil {
		return t, err
	}
	t, err = s.store.CreateTenant(ctx, actor, name, hosts)
	if errors.Is(err, store.ErrDuplicate) {
		// Somebody else was quicker, or a host is another tenant's: the look-up tells.
		if other, lookup := s.store.TenantByName(ctx, name); lookup == nil {
			return other, nil
		}
	}
	return t, tenantTaken(err, name)
}

func tenantTaken(err error, name string) error {
	if !errors.Is(err, store.ErrDuplicate) {
		return err
	}
	return problem.Newf(problem.Conflict, "choose another name or host; `mcpvault org list` shows what there is",
		"the name %s or one of its hosts is taken", name).Because(err)
}

// label is one part of a host name, as RFC 1123 has it.
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// hostNames brings host names into the one form in which they are compared: lower case, no port, no dot at the end.
func hostNames(hosts []string) ([]string, error) {
	var out []string
	for _, h := range hosts {
		name := strings.TrimSuffix(strings.ToLower(h), ".")
		bad := name == "" || len(name) > 253 || net.ParseIP(name) != nil
		for part := range strings.SplitSeq(name, ".") {
			bad = bad || !label.MatchString(part)
		}
		if bad {
			return nil, problem.Newf(problem.Invalid, "write a DNS name without scheme and port, such as mcp.example.com", "%q is not a host name", h)
		}
		out = append(out, name)
	}
	return distinct(out), nil
}
