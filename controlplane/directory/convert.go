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

func group(g controlplane.Group) *adminv1.Group {
	return &adminv1.Group{Id: g.ID, Name: g.Name, Source: g.Source, Members: g.Members}
}

func role(r controlplane.Role) *adminv1.Role {
	return &adminv1.Role{Id: r.ID, Name: r.Name, Description: r.Description, Inherits: r.Inherits, Members: r.Members}
}

func user(u controlplane.User) *adminv1.User {
	return &adminv1.User{
		Id: u.ID, Name: u.Name, Kind: kindWords[u.Kind], Unit: u.Unit, DisplayName: u.DisplayName, Supervisor: u.Supervisor,
		Teams: u.Teams, Groups: u.Groups, Roles: u.Roles, Disabled: u.Disabled, Clearance: uint32(u.Clearance), Region: u.Region,
	}
}

var kindWords = map[controlplane.UserKind]adminv1.UserKind{
	controlplane.Person:         adminv1.UserKind_USER_KIND_PERSON,
	controlplane.ServiceAccount: adminv1.UserKind_USER_KIND_SERVICE_ACCOUNT,
	controlplane.Workload:       adminv1.UserKind_USER_KIND_WORKLOAD,
}

// kindOf is what a new user is: a person, unless the request says.
func kindOf(k adminv1.UserKind) controlplane.UserKind {
	for word, kind := range kindWords {
		if kind == k {
			return word
		}
	}
	return controlplane.Person
}
