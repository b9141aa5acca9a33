package directory

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// defaultPage is how many users one answer lists unless the request says.
const defaultPage = 200

// CreateUser adds a person, a service account or a workload. A supervisor is a person of the same tenant.
func (s *Service) CreateUser(ctx context.Context, req *adminv1.CreateUserRequest) (*adminv1.CreateUserResponse, error) {
	u := controlplane.User{
		Name: req.GetName(), Kind: kindOf(req.GetKind()), Unit: req.GetUnit(), DisplayName: req.GetDisplayName(),
		Supervisor: req.GetSupervisor(), Clearance: uint8(req.GetClearance()), Region: req.GetRegion(),
	}
	if err := checkName(u); err != nil {
		return nil, err
	}
	u, rev, err := s.createUser(ctx, controlplane.CallerFrom(ctx), u)
	if err != nil {
		return nil, err
	}
	return &adminv1.CreateUserResponse{User: user(u), Revision: rev}, nil
}

// checkName holds workloads to the rules of SPIFFE, and keeps its names for them.
func checkName(u controlplane.User) error {
	isID := strings.HasPrefix(u.Name, "spiffe:")
	if u.Kind != controlplane.Workload {
		if isID {
			return problem.Newf(problem.Invalid, "make it a workload: mcpvault workload create "+u.Name, "%s is a SPIFFE ID, which names workloads only", u.Name)
		}
		return nil
	}
	id, err := svid.ParseID(u.Name)
	if err != nil || id.Path() == "" || id.String() != u.Name {
		return problem.Newf(problem.Invalid, "write it like spiffe://prod.example.com/agent/billing: a trust domain in lower case, and a path",
			"%q is no SPIFFE ID of a workload", u.Name).Because(err)
	}
	return nil
}

func (s *Service) createUser(ctx context.Context, by controlplane.Caller, want controlplane.User) (controlplane.User, uint64, error) {
	if want.Supervisor == want.Name {
		return want, 0, problem.Newf(problem.Invalid, "name another supervisor, or none", "%s would supervise themselves", want.Name)
	}
	var u controlplane.User
	rev, err := s.store.Write(ctx, by.TenantID, by.Actor(), func(tx *store.Tx) (err error) {
		if err := supervises(ctx, tx, want.Supervisor); err != nil {
			return err
		}
		if u, err = tx.InsertUser(ctx, want); err != nil {
			return err
		}
		return tx.Change(ctx, "user.create", "user:"+u.Name, map[string]any{
			"id": u.ID, "kind": u.Kind, "unit": u.Unit, "supervisor": u.Supervisor, "admin_roles": u.AdminRoles,
			"clearance": u.Clearance, "region": u.Region,
		})
	})
	return u, rev, taken(err, "user", want.Name)
}

// supervises refuses a supervisor who is not a person of this tenant; "" is nobody.
func supervises(ctx context.Context, tx *store.Tx, name string) error {
	if name == "" {
		return nil
	}
	boss, err := tx.UserByName(ctx, name)
	if err != nil {
		return err
	}
	if boss.Kind != controlplane.Person {
		return problem.Newf(problem.Invalid, "name a person", "%s is a %s and supervises nobody", name, strings.ReplaceAll(string(boss.Kind), "_", " "))
	}
	return nil
}

// GetUser finds one user or service account.
func (s *Service) GetUser(ctx context.Context, req *adminv1.GetUserRequest) (*adminv1.GetUserResponse, error) {
	var u controlplane.User
	err := s.read(ctx, func(tx *store.Tx) (err error) {
		u, err = tx.UserByName(ctx, req.GetName())
		return err
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.GetUserResponse{User: user(u)}, nil
}

// ListUsers lists users and service accounts by name, a page at a time.
func (s *Service) ListUsers(ctx context.Context, req *adminv1.ListUsersRequest) (*adminv1.ListUsersResponse, error) {
	after, err := pageAfter(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := int(req.GetPageSize())
	if size == 0 {
		size = defaultPage
	}
	res := &adminv1.ListUsersResponse{}
	err = s.read(ctx, func(tx *store.Tx) error {
		// One more than asked for tells whether there is a next page.
		list, err := tx.Users(ctx, after, size+1)
		if err != nil {
			return err
		}
		res.NextPageToken = ""
		if len(list) > size {
			list = list[:size]
			res.NextPageToken = pageToken(list[size-1].Name)
		}
		res.Users = convert(list, user)
		return nil
	})
	return res, err
}

// UpdateUser changes what conditions ask about a user; what the request does not give stays.
func (s *Service) UpdateUser(ctx context.Context, req *adminv1.UpdateUserRequest) (*adminv1.UpdateUserResponse, error) {
	var u controlplane.User
	rev, err := s.write(ctx, func(tx *store.Tx) (err error) {
		if u, err = tx.UserByName(ctx, req.GetName()); err != nil {
			return err
		}
		if req.Clearance != nil {
			u.Clearance = uint8(req.GetClearance())
		}
		if req.Region != nil {
			u.Region = req.GetRegion()
		}
		if req.Unit != nil {
			u.Unit = req.GetUnit()
		}
		if err := tx.UpdateUser(ctx, u); err != nil {
			return err
		}
		detail := map[string]any{"unit": u.Unit, "clearance": u.Clearance, "region": u.Region}
		return tx.Change(ctx, "user.update", "user:"+u.Name, detail)
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.UpdateUserResponse{User: user(u), Revision: rev}, nil
}

// SetUserDisabled shuts a user out or lets them in again; doing it twice is doing it once.
func (s *Service) SetUserDisabled(ctx context.Context, req *adminv1.SetUserDisabledRequest) (*adminv1.SetUserDisabledResponse, error) {
	c := controlplane.CallerFrom(ctx)
	if req.GetDisabled() && req.GetName() == c.Principal && c.Home == c.Tenant {
		return nil, problem.New(problem.Invalid, "you would shut yourself out", "ask another admin to do it")
	}
	rev, err := s.write(ctx, func(tx *store.Tx) error {
		u, err := tx.UserByName(ctx, req.GetName())
		if err != nil {
			return err
		}
		if slices.Contains(u.AdminRoles, controlplane.RoleOwner) && !c.Has(controlplane.RoleOwner) {
			return problem.Newf(problem.Denied, "ask another owner", "%s is an owner of the platform, and you are not", u.Name)
		}
		if err := tx.SetUserDisabled(ctx, req.GetName(), req.GetDisabled()); err != nil {
			return err
		}
		action := "user.enable"
		if req.GetDisabled() {
			action = "user.disable"
		}
		return tx.Change(ctx, action, "user:"+req.GetName(), map[string]any{})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.SetUserDisabledResponse{Revision: rev}, nil
}

// EnsureUser makes the user unless there is one of that name, and gives them these admin roles in either case. It is for
// the program's own set-up; actor is what the ledger says.
func (s *Service) EnsureUser(ctx context.Context, tenant controlplane.Tenant, actor string, want controlplane.User) error {
	by := controlplane.Caller{Principal: actor, TenantID: tenant.ID, Tenant: tenant.Name}
	_, _, err := s.createUser(ctx, by, want)
	if problem.CodeOf(err) != problem.Conflict {
		return err
	}
	roles := distinct(want.AdminRoles)
	_, err = s.store.Write(ctx, tenant.ID, actor, func(tx *store.Tx) error {
		if err := tx.SetAdminRoles(ctx, want.Name, roles); err != nil {
			return err
		}
		return tx.Change(ctx, "user.admin_roles", "user:"+want.Name, map[string]any{"admin_roles": roles})
	})
	if err != nil {
		return fmt.Errorf("ensure user %s: %w", want.Name, err)
	}
	return nil
}
