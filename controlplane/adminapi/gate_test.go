package adminapi

import (
	"context"
	"errors"
	"testing"

	"connectrpc.com/connect/v2"

	"github.com/mcpvault/mcpvault/controlplane"
	rpc "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1/adminv1connect"
)

type anybody struct{}

func (anybody) Authenticate(context.Context, string) (controlplane.Caller, error) {
	return controlplane.Caller{Principal: "root", Roles: []string{controlplane.RoleOwner}}, nil
}

func TestAProcedureThatIsServedButNotInTheTableIsRefusedToOwnersToo(t *testing.T) {
	t.Parallel()
	g := &gate{auth: anybody{}, rules: map[string]rule{}}
	reached := false
	server := connect.NewServer(g.admit, func(connect.ServerFunc) connect.ServerFunc {
		return func(context.Context, connect.Spec, connect.ServerStream) error { reached = true; return nil }
	})
	register(server, Services{System: rpc.UnimplementedSystemServiceHandler{}})
	info := &connect.CallInfo{}
	info.RequestHeader().Set("Authorization", "Bearer x")
	err := server.Call(t.Context(), rpc.SystemServiceWhoamiProcedure, info, nil)
	var refused *connect.Error
	if reached || !errors.As(err, &refused) || refused.Code() != connect.CodeUnimplemented {
		t.Errorf("reached %t: %v", reached, err)
	}
}
