// Package directory keeps who there is: tenants, and in each of them units, teams, groups, users, service accounts,
// workloads and roles. It answers the admin API's OrganisationService and DirectoryService.
//
// It promises that a name means one thing in its tenant, that nothing is above itself, and that whatever a row refers to
// is of the same tenant. Who may ask is decided before a request comes here; what a role allows is for access.
package directory

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// Config is what the directory stands on.
type Config struct {
	Store *store.Store
}

// Service is the directory. It is safe for concurrent use.
type Service struct {
	store *store.Store
}

// New makes the service.
func New(cfg Config) *Service { return &Service{store: cfg.Store} }

// write makes one admin write in the tenant that the caller's request is about.
func (s *Service) write(ctx context.Context, fn func(*store.Tx) error) (uint64, error) {
	c := controlplane.CallerFrom(ctx)
	return s.store.Write(ctx, c.TenantID, c.Actor(), fn)
}

func (s *Service) read(ctx context.Context, fn func(*store.Tx) error) error {
	return s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, fn)
}

// CreateUnit adds a unit at the top or below another.
func (s *Service) CreateUnit(ctx context.Context, req *adminv1.CreateUnitRequest) (*adminv1.CreateUnitResponse, error) {
	if req.GetParent() == req.GetName() {
		return nil, problem.Newf(problem.Invalid, "choose another unit above it", "unit %s would be above itself", req.GetName())
	}
	var u controlplane.Unit
	rev, err := s.write(ctx, func(tx *store.Tx) (err error) {
		u, err = tx.InsertUnit(ctx, controlplane.Unit{Name: req.GetName(), Parent: req.GetParent()})
		if err != nil {
			return err
		}
		return tx.Change(ctx, "unit.create", "unit:"+u.Name, map[string]any{"id": u.ID, "parent": u.Parent})
	})
	if err != nil {
		return nil, taken(err, "unit", req.GetName())
	}
	return &adminv1.CreateUnitResponse{Unit: unit(u), Revision: rev}, nil
}

// ListUnits lists all units, by name.
func (s *Service) ListUnits(ctx context.Context, _ *adminv1.ListUnitsRequest) (*adminv1.ListUnitsResponse, error) {
	res := &adminv1.ListUnitsResponse{}
	err := s.read(ctx, func(tx *store.Tx) error {
		list, err := tx.Units(ctx)
		res.Units = convert(list, unit)
		return err
	})
	return res, err
}

// MoveUnit puts a unit, and everything below it, under another unit or to the top; doing it twice is doing it once.
func (s *Service) MoveUnit(ctx context.Context, req *adminv1.MoveUnitRequest) (*adminv1.MoveUnitResponse, error) {
	rev, err := s.write(ctx, func(tx *store.Tx) error {
		if err := tx.MoveUnit(ctx, req.GetName(), req.GetParent()); err != nil {
			return err
		}
		return tx.Change(ctx, "unit.move", "unit:"+req.GetName(), map[string]any{"parent": req.GetParent()})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.MoveUnitResponse{Revision: rev}, nil
}

// CreateTeam adds a team without members.
func (s *Service) CreateTeam(ctx context.Context, req *adminv1.CreateTeamRequest) (*adminv1.CreateTeamResponse, error) {
	var t controlplane.Team
	rev, err := s.write(ctx, func(tx *store.Tx) (err error) {
		t, err = tx.InsertTeam(ctx, controlplane.Team{Name: req.GetName(), Unit: req.GetUnit()})
		if err != nil {
			return err
		}
		return tx.Change(ctx, "team.create", "team:"+t.Name, map[string]any{"id": t.ID, "unit": t.Unit})
	})
	if err != nil {
		return nil, taken(err, "team", req.GetName())
	}
	return &adminv1.CreateTeamResponse{Team: team(t), Revision: rev}, nil
}

// ListTeams lists all teams with their members, by name.
func (s *Service) ListTeams(ctx context.Context, _ *adminv1.ListTeamsRequest) (*adminv1.ListTeamsResponse, error) {
	res := &adminv1.ListTeamsResponse{}
	err := s.read(ctx, func(tx *store.Tx) error {
		list, err := tx.Teams(ctx)
		res.Teams = convert(list, team)
		return err
	})
	return res, err
}

// SetTeamMember puts a user into a team or takes them out; doing it twice is doing it once.
func (s *Service) SetTeamMember(ctx context.Context, req *adminv1.SetTeamMemberRequest) (*adminv1.SetTeamMemberResponse, error) {
	rev, err := s.write(ctx, func(tx *store.Tx) error {
		if err := tx.SetTeamMember(ctx, req.GetTeam(), req.GetUser(), req.GetRemove()); err != nil {
			return err
		}
		return tx.Change(ctx, verb("team.member", req.GetRemove()), "team:"+req.GetTeam(), map[string]any{"user": req.GetUser()})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.SetTeamMemberResponse{Revision: rev}, nil
}

// CreateRole adds a role that nobody has yet.
func (s *Service) CreateRole(ctx context.Context, req *adminv1.CreateRoleRequest) (*adminv1.CreateRoleResponse, error) {
	inherits := distinct(req.GetInherits())
	for _, name := range inherits {
		if name == req.GetName() {
			return nil, problem.Newf(problem.Invalid, "leave it out", "role %s would inherit from itself", name)
		}
	}
	var r controlplane.Role
	rev, err := s.write(ctx, func(tx *store.Tx) (err error) {
		r, err = tx.InsertRole(ctx, controlplane.Role{Name: req.GetName(), Description: req.GetDescription(), Inherits: inherits})
		if err != nil {
			return err
		}
		return tx.Change(ctx, "role.create", "role:"+r.Name, map[string]any{"id": r.ID, "inherits": r.Inherits})
	})
	if err != nil {
		return nil, taken(err, "role", req.GetName())
	}
	return &adminv1.CreateRoleResponse{Role: role(r), Revision: rev}, nil
}

// ListRoles lists all roles with those who have them directly, by name.
func (s *Service) ListRoles(ctx context.Context, _ *adminv1.ListRolesRequest) (*adminv1.ListRolesResponse, error) {
	res := &adminv1.ListRolesResponse{}
	err := s.read(ctx, func(tx *store.Tx) error {
		list, err := tx.Roles(ctx)
		res.Roles = convert(list, role)
		return err
	})
	return res, err
}

// SetRoleMember gives a role to a user, team, group or unit, or takes it away; doing it twice is doing it once.
func (s *Service) SetRoleMember(ctx context.Context, req *adminv1.SetRoleMemberRequest) (*adminv1.SetRoleMemberResponse, error) {
	kind, name, _ := strings.Cut(req.GetMember(), ":")
	kinds := []store.MemberKind{store.MemberUser, store.MemberTeam, store.MemberGroup, store.MemberUnit}
	if !slices.Contains(kinds, store.MemberKind(kind)) || name == "" {
		return nil, problem.Newf(problem.Invalid, "write user:NAME, team:NAME, group:NAME or unit:NAME", "a role cannot be given to %q", req.GetMember())
	}
	rev, err := s.write(ctx, func(tx *store.Tx) error {
		if err := tx.SetRoleMember(ctx, req.GetRole(), store.MemberKind(kind), name, req.GetRemove()); err != nil {
			return err
		}
		return tx.Change(ctx, verb("role.member", req.GetRemove()), "role:"+req.GetRole(), map[string]any{"member": req.GetMember()})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.SetRoleMemberResponse{Revision: rev}, nil
}

func verb(noun string, remove bool) string {
	if remove {
		return noun + ".remove"
	}
	return noun + ".add"
}

// pageToken hides that the token is the last name of the page, so that nobody builds one.
func pageToken(last string) string { return base64.RawURLEncoding.EncodeToString([]byte(last)) }

func pageAfter(token string) (string, error) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return "", problem.New(problem.Invalid, "the page token is not one that this server gave", "start again without one")
	}
	return string(b), nil
}
