package directory

import (
	"context"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// CreateGroup adds a group without members that is kept by hand.
func (s *Service) CreateGroup(ctx context.Context, req *adminv1.CreateGroupRequest) (*adminv1.CreateGroupResponse, error) {
	var g controlplane.Group
	rev, err := s.write(ctx, func(tx *store.Tx) (err error) {
		g, err = tx.InsertGroup(ctx, controlplane.Group{Name: req.GetName(), Source: controlplane.GroupManual})
		if err != nil {
			return err
		}
		return tx.Change(ctx, "group.create", "group:"+g.Name, map[string]any{"id": g.ID, "source": g.Source})
	})
	if err != nil {
		return nil, taken(err, "group", req.GetName())
	}
	return &adminv1.CreateGroupResponse{Group: group(g), Revision: rev}, nil
}

// ListGroups lists all groups with their members, by name.
func (s *Service) ListGroups(ctx context.Context, _ *adminv1.ListGroupsRequest) (*adminv1.ListGroupsResponse, error) {
	res := &adminv1.ListGroupsResponse{}
	err := s.read(ctx, func(tx *store.Tx) error {
		list, err := tx.Groups(ctx)
		res.Groups = convert(list, group)
		return err
	})
	return res, err
}

// DeleteGroup takes a group away. Grants to it stay, and reach nobody; so that nothing becomes allowed unnoticed, it is
// refused while one of them denies.
func (s *Service) DeleteGroup(ctx context.Context, req *adminv1.DeleteGroupRequest) (*adminv1.DeleteGroupResponse, error) {
	rev, err := s.write(ctx, func(tx *store.Tx) error {
		if err := byHand(ctx, tx, req.GetName()); err != nil {
			return err
		}
		grants, err := tx.Grants(ctx)
		if err != nil {
			return err
		}
		for _, g := range grants {
			if g.Deny && g.Subject == "group:"+req.GetName() {
				return problem.Newf(problem.Conflict, "take it back first: mcpvault revoke --id "+g.ID,
					"a grant denies %s to group %s, and would deny it to nobody any more", g.String(), req.GetName())
			}
		}
		if err := tx.DeleteGroup(ctx, req.GetName()); err != nil {
			return err
		}
		return tx.Change(ctx, "group.delete", "group:"+req.GetName(), map[string]any{})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.DeleteGroupResponse{Revision: rev}, nil
}

// SetGroupMember puts a user into a group or takes them out; doing it twice is doing it once.
func (s *Service) SetGroupMember(ctx context.Context, req *adminv1.SetGroupMemberRequest) (*adminv1.SetGroupMemberResponse, error) {
	rev, err := s.write(ctx, func(tx *store.Tx) error {
		if err := byHand(ctx, tx, req.GetGroup()); err != nil {
			return err
		}
		if err := tx.SetGroupMember(ctx, req.GetGroup(), req.GetUser(), req.GetRemove()); err != nil {
			return err
		}
		return tx.Change(ctx, verb("group.member", req.GetRemove()), "group:"+req.GetGroup(), map[string]any{"user": req.GetUser()})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.SetGroupMemberResponse{Revision: rev}, nil
}

// byHand refuses to touch a group that something else keeps: it would be put back at the next sync.
func byHand(ctx context.Context, tx *store.Tx, name string) error {
	g, err := tx.Group(ctx, name)
	if err != nil || g.Source == controlplane.GroupManual {
		return err
	}
	return problem.Newf(problem.Conflict, "change it there", "group %s is kept by %s", name, g.Source)
}
