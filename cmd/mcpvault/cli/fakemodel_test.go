package cli_test

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// said is a request as JSON without white space, so that a script can see what was asked for.
func said(m proto.Message) string {
	b, err := protojson.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(string(b), " ", "")
}

func (f *fake) CreateGroup(_ context.Context, r *adminv1.CreateGroupRequest) (*adminv1.CreateGroupResponse, error) {
	return &adminv1.CreateGroupResponse{Group: &adminv1.Group{Id: "g1", Name: r.GetName(), Source: "manual"}}, nil
}

func (f *fake) ListGroups(context.Context, *adminv1.ListGroupsRequest) (*adminv1.ListGroupsResponse, error) {
	return &adminv1.ListGroupsResponse{Groups: []*adminv1.Group{{Name: "eng", Source: "scim", Members: []string{"alice", "bob"}}}}, nil
}

func (f *fake) SetGroupMember(context.Context, *adminv1.SetGroupMemberRequest) (*adminv1.SetGroupMemberResponse, error) {
	return &adminv1.SetGroupMemberResponse{Revision: 7}, nil
}

func (f *fake) MoveUnit(context.Context, *adminv1.MoveUnitRequest) (*adminv1.MoveUnitResponse, error) {
	return &adminv1.MoveUnitResponse{Revision: 7}, nil
}

// UpdateUser shows in the display name what was asked for.
func (f *fake) UpdateUser(_ context.Context, r *adminv1.UpdateUserRequest) (*adminv1.UpdateUserResponse, error) {
	return &adminv1.UpdateUserResponse{User: &adminv1.User{Name: r.GetName(), DisplayName: said(r)}, Revision: 7}, nil
}

func (f *fake) CreateEndpoint(_ context.Context, r *adminv1.CreateEndpointRequest) (*adminv1.CreateEndpointResponse, error) {
	return &adminv1.CreateEndpointResponse{Endpoint: &adminv1.Endpoint{
		Name: r.GetName(), Owner: r.GetOwner(), Class: r.GetClass(), Regions: r.GetRegions(), Access: r.GetAccess(),
	}}, nil
}

func (f *fake) ListEndpoints(context.Context, *adminv1.ListEndpointsRequest) (*adminv1.ListEndpointsResponse, error) {
	return &adminv1.ListEndpointsResponse{Endpoints: []*adminv1.Endpoint{{
		Name: "crm", Owner: "sales", Class: 5, Links: []*adminv1.EndpointLink{{Target: "server:crm/export", Access: []string{"read"}}},
	}}}, nil
}

// SetLink takes one target, and says of every other what was asked for.
func (f *fake) SetLink(_ context.Context, r *adminv1.SetLinkRequest) (*adminv1.SetLinkResponse, error) {
	if r.GetTarget() == "server:crm/export" {
		return &adminv1.SetLinkResponse{Revision: 7}, nil
	}
	return nil, refusal(connect.CodeInvalidArgument, said(r), "")
}

// SetLabels shows the labels that were set, and those that were taken away with a minus.
func (f *fake) SetLabels(_ context.Context, r *adminv1.SetLabelsRequest) (*adminv1.SetLabelsResponse, error) {
	srv := &adminv1.Server{Name: r.GetName() + "/" + r.GetTool()}
	for k, v := range r.GetSet() {
		srv.Labels = append(srv.Labels, k+"="+v)
	}
	for _, k := range r.GetRemove() {
		srv.Labels = append(srv.Labels, k+"-")
	}
	slices.Sort(srv.Labels)
	return &adminv1.SetLabelsResponse{Server: srv, Revision: 7}, nil
}

func (f *fake) UpdateSettings(_ context.Context, r *adminv1.UpdateSettingsRequest) (*adminv1.UpdateSettingsResponse, error) {
	s := &adminv1.Settings{MaxStalenessRead: r.GetMaxStalenessRead(), MaxStalenessWrite: r.GetMaxStalenessWrite(), LabelStaleness: map[string]*durationpb.Duration{}}
	for l, d := range r.GetLabelStaleness() {
		s.LabelStaleness[l] = d
	}
	s.SessionIdle, s.SessionMax = r.GetSessionIdle(), r.GetSessionMax()
	s.SessionsPerPrincipal, s.SessionsPerTenant = r.GetSessionsPerPrincipal(), r.GetSessionsPerTenant()
	if g := r.GetGuards(); g != nil {
		s.Guards = &adminv1.Guards{
			Results: g.GetResults(), Questions: g.GetQuestions(), Origins: g.GetOrigins().GetOrigins(), Forbidden: g.GetForbidden().GetRequests(),
			CheckArguments: g.GetCheckArguments(), ChangedTools: g.GetChangedTools(),
		}
	}
	return &adminv1.UpdateSettingsResponse{Settings: s, Revision: 7}, nil
}
