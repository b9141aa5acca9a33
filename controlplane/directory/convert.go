package directory

import (
	"errors"
	"slices"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// taken says whose name a duplicate is; other errors pass.
func taken(err error, kind, name string) error {
	if !errors.Is(err, store.ErrDuplicate) {
		return err
	}
	return problem.Newf(problem.Conflict, "choose another name", "%s %s already exists", kind, name).Because(err)
}

func convert[T, P any](list []T, one func(T) P) []P {
	out := make([]P, len(list))
	for i, v := range list {
		out[i] = one(v)
	}
	return out
}

// distinct sorts and drops what is named twice; never nil.
func distinct(names []string) []string {
	return slices.Compact(append([]string{}, slices.Sorted(slices.Values(names))...))
}

func tenant(t controlplane.Tenant) *adminv1.Tenant {
	return &adminv1.Tenant{Id: string(t.ID), Name: t.Name, Hosts: t.Hosts, Revision: t.Revision, CreatedMs: t.CreatedAt.UnixMilli()}
}

func unit(u controlplane.Unit) *adminv1.Unit {
	return &adminv1.Unit{Id: u.ID, Name: u.Name, Parent: u.Parent}
}

func team(t controlplane.Team) *adminv1.Team {
	return &adminv1.Team{Id: t.ID, Name: t.Name, Unit: t.Unit, Members: t.Members}
}

func role(r controlplane.Role) *adminv1.Role {
	return &adminv1.Role{Id: r.ID, Name: r.Name, Description: r.Description, Inherits: r.Inherits, Members: r.Members}
}

func user(u controlplane.User) *adminv1.User {
	kind := adminv1.UserKind_USER_KIND_PERSON
	if u.Kind == controlplane.ServiceAccount {
		kind = adminv1.UserKind_USER_KIND_SERVICE_ACCOUNT
	}
	return &adminv1.User{
		Id: u.ID, Name: u.Name, Kind: kind, Unit: u.Unit, DisplayName: u.DisplayName, Supervisor: u.Supervisor,
		Teams: u.Teams, Roles: u.Roles, Disabled: u.Disabled,
	}
}
