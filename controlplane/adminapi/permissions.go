package adminapi

import (
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	rpc "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1/adminv1connect"
)

// scope is what a procedure is about.
type scope uint8

const (
	// ofTenant is about one tenant: the one that the request names, else the caller's own.
	ofTenant scope = iota + 1
	// ofPlatform is about all of them.
	ofPlatform
	// ofSelf is about the caller.
	ofSelf
)

// How long a call may take. A client may ask for less.
const (
	usual = 30 * time.Second
	// longest is for calls that wait for something outside: an upstream, the last node.
	longest = 2 * time.Minute
)

// rule says who may call a procedure.
type rule struct {
	role  string
	scope scope
	limit time.Duration
}

// rank orders the admin roles: each may do what those before it may.
func rank(role string) int {
	return slices.Index([]string{controlplane.RoleMember, controlplane.RoleAuditor, controlplane.RoleAdmin, controlplane.RoleOwner}, role)
}

// allows reports whether one of the roles is enough.
func (r rule) allows(roles []string) bool {
	return slices.ContainsFunc(roles, func(have string) bool { return rank(have) >= rank(r.role) })
}

// permissions is the one table of who may call what. A procedure that is not in it is refused.
func permissions() map[string]rule {
	self := rule{controlplane.RoleMember, ofSelf, usual}
	read := rule{controlplane.RoleAuditor, ofTenant, usual}
	write := rule{controlplane.RoleAdmin, ofTenant, usual}
	owner := rule{controlplane.RoleOwner, ofTenant, usual}
	wait := func(r rule) rule { r.limit = longest; return r }
	platform := rule{controlplane.RoleOwner, ofPlatform, usual}
	return map[string]rule{
		rpc.OrganisationServiceCreateTenantProcedure: platform,
		rpc.OrganisationServiceListTenantsProcedure:  platform,

		rpc.DirectoryServiceCreateUnitProcedure:      write,
		rpc.DirectoryServiceListUnitsProcedure:       read,
		rpc.DirectoryServiceMoveUnitProcedure:        write,
		rpc.DirectoryServiceCreateTeamProcedure:      write,
		rpc.DirectoryServiceListTeamsProcedure:       read,
		rpc.DirectoryServiceSetTeamMemberProcedure:   write,
		rpc.DirectoryServiceCreateGroupProcedure:     write,
		rpc.DirectoryServiceListGroupsProcedure:      read,
		rpc.DirectoryServiceDeleteGroupProcedure:     write,
		rpc.DirectoryServiceSetGroupMemberProcedure:  write,
		rpc.DirectoryServiceCreateUserProcedure:      write,
		rpc.DirectoryServiceUpdateUserProcedure:      write,
		rpc.DirectoryServiceGetUserProcedure:         read,
		rpc.DirectoryServiceListUsersProcedure:       read,
		rpc.DirectoryServiceSetUserDisabledProcedure: write,
		rpc.DirectoryServiceCreateRoleProcedure:      write,
		rpc.DirectoryServiceListRolesProcedure:       read,
		rpc.DirectoryServiceSetRoleMemberProcedure:   write,

		rpc.TokenServiceCreateTokenProcedure: write,
		rpc.TokenServiceListTokensProcedure:  read,
		rpc.TokenServiceRevokeTokenProcedure: write,

		rpc.RegistryServiceAddServerProcedure:      wait(write),
		rpc.RegistryServiceScanServerProcedure:     wait(write),
		rpc.RegistryServiceListServersProcedure:    read,
		rpc.RegistryServiceGetServerProcedure:      read,
		rpc.RegistryServiceListVersionsProcedure:   read,
		rpc.RegistryServiceApproveVersionProcedure: write,
		rpc.RegistryServiceRemoveServerProcedure:   write,
		rpc.RegistryServiceSetLabelsProcedure:      write,

		rpc.EndpointServiceCreateEndpointProcedure: write,
		rpc.EndpointServiceListEndpointsProcedure:  read,
		rpc.EndpointServiceUpdateEndpointProcedure: write,
		rpc.EndpointServiceDeleteEndpointProcedure: write,
		rpc.EndpointServiceSetLinkProcedure:        write,

		rpc.SettingsServiceGetSettingsProcedure:    read,
		rpc.SettingsServiceUpdateSettingsProcedure: write,

		// An issuer says who somebody is: whoever may name one may be anybody in the tenant.
		rpc.IssuerServicePutIssuerProcedure:         wait(owner),
		rpc.IssuerServiceListIssuersProcedure:       read,
		rpc.IssuerServiceDeleteIssuerProcedure:      owner,
		rpc.IssuerServiceRefreshIssuerProcedure:     wait(write),
		rpc.IssuerServiceWithdrawIssuerKeyProcedure: write,
		rpc.IssuerServiceProvisionUserProcedure:     write,

		// A node serves every tenant of its cell.
		rpc.IdentityServiceCreateJoinTokenProcedure: platform,
		rpc.IdentityServiceListJoinTokensProcedure:  platform,
		rpc.IdentityServiceRevokeJoinTokenProcedure: platform,
		rpc.IdentityServiceIssueWorkloadProcedure:   write,

		rpc.AccessServiceCreateGrantProcedure:  write,
		rpc.AccessServiceDeleteGrantsProcedure: write,
		rpc.AccessServiceListGrantsProcedure:   read,
		rpc.AccessServiceExplainProcedure:      read,
		rpc.AccessServiceWhoCanProcedure:       read,
		rpc.AccessServiceWhatCanProcedure:      read,
		rpc.AccessServiceReplayProcedure:       read,
		rpc.AccessServiceKillProcedure:         write,
		rpc.AccessServiceListKillsProcedure:    read,
		rpc.AccessServiceImportKillsProcedure:  write,

		rpc.PolicyServicePutPolicyProcedure:      write,
		rpc.PolicyServiceGetPolicyProcedure:      read,
		rpc.PolicyServiceListPoliciesProcedure:   read,
		rpc.PolicyServiceDeletePolicyProcedure:   write,
		rpc.PolicyServiceValidatePolicyProcedure: read,
		rpc.PolicyServiceFormatPolicyProcedure:   read,
		rpc.PolicyServiceExportPolicyProcedure:   read,
		rpc.PolicyServiceGetSchemaProcedure:      read,

		rpc.SnapshotServiceListGenerationsProcedure: read,
		rpc.SnapshotServiceGetGenerationProcedure:   read,
		rpc.SnapshotServiceWaitRevisionProcedure:    wait(read),

		// Cells and logs hold several tenants each.
		rpc.CellAdminServiceListCellsProcedure: platform,

		rpc.SessionServiceListSessionsProcedure: read,
		rpc.AuditServiceListLogsProcedure:       platform,
		rpc.AuditServiceReadLogProcedure:        platform,

		rpc.AuditServiceSearchRecordsProcedure: read,
		rpc.AuditServiceGetRecordProcedure:     read,
		rpc.AuditServiceListChangesProcedure:   read,

		rpc.SystemServiceWhoamiProcedure:      self,
		rpc.SystemServiceCheckHealthProcedure: {controlplane.RoleAuditor, ofSelf, usual},
		rpc.SystemServiceGetRootsProcedure:    self,
		// What is installed has to be signed by root keys, whoever sends it.
		rpc.SystemServiceInstallRootsProcedure: platform,
	}
}
