package adminapi

import (
	"slices"
	"testing"

	"connectrpc.com/connect/v2"

	rpc "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1/adminv1connect"
)

// everything registers all services of the protos.
func everything() *connect.Server {
	server := connect.NewServer()
	register(server, Services{
		Organisation: rpc.UnimplementedOrganisationServiceHandler{}, Directory: rpc.UnimplementedDirectoryServiceHandler{},
		Tokens: rpc.UnimplementedTokenServiceHandler{}, Registry: rpc.UnimplementedRegistryServiceHandler{},
		Endpoints: rpc.UnimplementedEndpointServiceHandler{}, Settings: rpc.UnimplementedSettingsServiceHandler{},
		Access: rpc.UnimplementedAccessServiceHandler{}, Policies: rpc.UnimplementedPolicyServiceHandler{}, Issuers: rpc.UnimplementedIssuerServiceHandler{}, Identity: rpc.UnimplementedIdentityServiceHandler{}, Snapshots: rpc.UnimplementedSnapshotServiceHandler{},
		Cells: rpc.UnimplementedCellAdminServiceHandler{}, Sessions: rpc.UnimplementedSessionServiceHandler{}, Audit: rpc.UnimplementedAuditServiceHandler{}, System: rpc.UnimplementedSystemServiceHandler{},
	})
	return server
}

func TestEveryProcedureIsInTheTableOnce(t *testing.T) {
	t.Parallel()
	table := permissions()
	known := map[string]bool{}
	for spec := range everything().Specs() {
		known[spec.Procedure] = true
		r, ok := table[spec.Procedure]
		if !ok {
			t.Errorf("%s is not in the table", spec.Procedure)
			continue
		}
		if rank(r.role) < 0 || r.scope == 0 || r.limit <= 0 {
			t.Errorf("%s has an incomplete rule: %+v", spec.Procedure, r)
		}
		if spec.StreamType != connect.StreamTypeUnary {
			t.Errorf("%s streams: the gate reads one message", spec.Procedure)
		}
		msg, err := newInput(spec)
		if err != nil {
			t.Errorf("%s: %v", spec.Procedure, err)
			continue
		}
		_, named := msg.(interface{ GetTenant() string })
		if named != (r.scope == ofTenant) {
			t.Errorf("%s: names a tenant %t, and is about one %t", spec.Procedure, named, r.scope == ofTenant)
		}
	}
	if len(known) < 35 {
		t.Errorf("only %d procedures are registered", len(known))
	}
	for procedure := range table {
		if !known[procedure] {
			t.Errorf("%s is in the table and nowhere else", procedure)
		}
	}
}

func TestWhatHasSideEffectsNeedsAnAdmin(t *testing.T) {
	t.Parallel()
	table := permissions()
	for spec := range everything().Specs() {
		if spec.IdempotencyLevel == connect.IdempotencyNoSideEffects || spec.Procedure == rpc.SnapshotServiceWaitRevisionProcedure {
			continue
		}
		if r := table[spec.Procedure]; rank(r.role) < rank("admin") {
			t.Errorf("%s writes, and %s is enough for it", spec.Procedure, r.role)
		}
	}
}

func TestAnUnknownRoleOpensNothing(t *testing.T) {
	t.Parallel()
	for procedure, r := range permissions() {
		if r.allows(nil) || r.allows([]string{"", "root", "Owner"}) {
			t.Errorf("%s is open", procedure)
		}
		if !r.allows([]string{"root", "owner"}) {
			t.Errorf("%s is closed to an owner", procedure)
		}
	}
	if slices.Contains([]int{rank("member"), rank("auditor"), rank("admin"), rank("owner")}, -1) {
		t.Error("a role has no rank")
	}
}
