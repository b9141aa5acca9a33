package directory_test

import (
	"context"
	"os"
	"slices"
	"testing"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/directory"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// as is the context of a request that an admin of the tenant makes.
func as(t *testing.T, tenant controlplane.Tenant) context.Context {
	t.Helper()
	return controlplane.WithCaller(t.Context(), controlplane.Caller{
		Principal: "root", TenantID: tenant.ID, Tenant: tenant.Name, Home: tenant.Name, Roles: []string{controlplane.RoleAdmin},
	})
}

type bundle struct {
	store        *store.Store
	dir          *directory.Service
	acme, globex context.Context
}

func setup(t *testing.T) bundle {
	t.Helper()
	s := storetest.Open(t)
	return bundle{
		store: s, dir: directory.New(directory.Config{Store: s}),
		acme: as(t, storetest.Tenant(t, s, "acme")), globex: as(t, storetest.Tenant(t, s, "globex")),
	}
}

func (b bundle) user(t *testing.T, ctx context.Context, name, supervisor string) {
	t.Helper()
	if _, err := b.dir.CreateUser(ctx, &adminv1.CreateUserRequest{Name: name, Supervisor: supervisor}); err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
}

func refused(t *testing.T, err error, want problem.Code) {
	t.Helper()
	if p, ok := problem.As(err); !ok || p.Code != want || p.What == "" {
		t.Errorf("want a %s problem, got %v", want, err)
	}
}

func TestAUserShowsTeamsRolesAndSupervisor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.user(t, b.acme, "bob", "")
	_, err := b.dir.CreateUnit(b.acme, &adminv1.CreateUnitRequest{Name: "finance"})
	if err == nil {
		_, err = b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: "alice", Supervisor: "bob", Unit: "finance", DisplayName: "Alice A."})
	}
	if err == nil {
		_, err = b.dir.CreateTeam(b.acme, &adminv1.CreateTeamRequest{Name: "analysts", Unit: "finance"})
	}
	if err == nil {
		_, err = b.dir.SetTeamMember(b.acme, &adminv1.SetTeamMemberRequest{Team: "analysts", User: "alice"})
	}
	if err == nil {
		_, err = b.dir.CreateRole(b.acme, &adminv1.CreateRoleRequest{Name: "reader"})
	}
	if err == nil {
		_, err = b.dir.CreateRole(b.acme, &adminv1.CreateRoleRequest{Name: "analyst", Inherits: []string{"reader", "reader"}})
	}
	for _, member := range []string{"user:alice", "team:analysts"} {
		if err == nil {
			_, err = b.dir.SetRoleMember(b.acme, &adminv1.SetRoleMemberRequest{Role: "analyst", Member: member})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.dir.GetUser(b.acme, &adminv1.GetUserRequest{Name: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	u := got.GetUser()
	if u.GetSupervisor() != "bob" || u.GetUnit() != "finance" || !slices.Equal(u.GetTeams(), []string{"analysts"}) || !slices.Equal(u.GetRoles(), []string{"analyst"}) {
		t.Errorf("got %v", u)
	}
	roles, err := b.dir.ListRoles(b.acme, &adminv1.ListRolesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	analyst := roles.GetRoles()[0]
	if !slices.Equal(analyst.GetInherits(), []string{"reader"}) || !slices.Equal(analyst.GetMembers(), []string{"team:analysts", "user:alice"}) {
		t.Errorf("got %v", analyst)
	}
	teams, err := b.dir.ListTeams(b.acme, &adminv1.ListTeamsRequest{})
	if err != nil || len(teams.GetTeams()) != 1 || !slices.Equal(teams.GetTeams()[0].GetMembers(), []string{"alice"}) {
		t.Errorf("got %v, %v", teams, err)
	}
}

func TestNothingIsAboveItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: "alice", Supervisor: "alice"})
	refused(t, err, problem.Invalid)
	_, err = b.dir.CreateUnit(b.acme, &adminv1.CreateUnitRequest{Name: "top", Parent: "top"})
	refused(t, err, problem.Invalid)
	_, err = b.dir.CreateRole(b.acme, &adminv1.CreateRoleRequest{Name: "r", Inherits: []string{"r"}})
	refused(t, err, problem.Invalid)
}

func TestASupervisorIsAPersonOfTheSameTenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.user(t, b.globex, "mallory", "")
	_, err := b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: "alice", Supervisor: "mallory"})
	refused(t, err, problem.NotFound)
	_, err = b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: "ci", Kind: adminv1.UserKind_USER_KIND_SERVICE_ACCOUNT})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: "alice", Supervisor: "ci"})
	refused(t, err, problem.Invalid)
}

func TestNamesAreUniqueWithinATenantOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.user(t, b.acme, "alice", "")
	b.user(t, b.globex, "alice", "")
	_, err := b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: "alice"})
	refused(t, err, problem.Conflict)
	if p, _ := problem.As(err); p.What != "user alice already exists" {
		t.Errorf("says %q", p.What)
	}
}

func TestAnotherTenantsMembersAreUnknown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.user(t, b.globex, "mallory", "")
	if _, err := b.dir.CreateTeam(b.acme, &adminv1.CreateTeamRequest{Name: "analysts"}); err != nil {
		t.Fatal(err)
	}
	_, err := b.dir.SetTeamMember(b.acme, &adminv1.SetTeamMemberRequest{Team: "analysts", User: "mallory"})
	refused(t, err, problem.NotFound)
	_, err = b.dir.GetUser(b.acme, &adminv1.GetUserRequest{Name: "mallory"})
	refused(t, err, problem.NotFound)
	_, err = b.dir.SetRoleMember(b.acme, &adminv1.SetRoleMemberRequest{Role: "r", Member: "everyone"})
	refused(t, err, problem.Invalid)
}

func TestDoingItTwiceIsDoingItOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.user(t, b.acme, "alice", "")
	first, err := b.dir.SetUserDisabled(b.acme, &adminv1.SetUserDisabledRequest{Name: "alice", Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.dir.SetUserDisabled(b.acme, &adminv1.SetUserDisabledRequest{Name: "alice", Disabled: true})
	if err != nil || again.GetRevision() != first.GetRevision() {
		t.Errorf("revision %d after %d, %v", again.GetRevision(), first.GetRevision(), err)
	}
	b.user(t, b.acme, "root", "")
	_, err = b.dir.SetUserDisabled(b.acme, &adminv1.SetUserDisabledRequest{Name: "root", Disabled: true})
	refused(t, err, problem.Invalid)
}

func TestOnlyAnOwnerDisablesAnOwner(t *testing.T) {
	t.Parallel()
	b := setup(t)
	as := controlplane.CallerFrom(b.acme)
	tenant := controlplane.Tenant{ID: as.TenantID, Name: as.Tenant}
	if err := b.dir.EnsureUser(t.Context(), tenant, "setup", controlplane.User{Name: "boss", Kind: controlplane.Person, AdminRoles: []string{"owner"}}); err != nil {
		t.Fatal(err)
	}
	as.Principal, as.Roles = "ann", []string{controlplane.RoleAdmin}
	req := &adminv1.SetUserDisabledRequest{Name: "boss", Disabled: true}
	_, err := b.dir.SetUserDisabled(controlplane.WithCaller(t.Context(), as), req)
	refused(t, err, problem.Denied)
	as.Roles = []string{controlplane.RoleOwner}
	if _, err := b.dir.SetUserDisabled(controlplane.WithCaller(t.Context(), as), req); err != nil {
		t.Error(err)
	}
}

func TestUsersComeInPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, n := range []string{"eve", "alice", "dan", "bob", "carol"} {
		b.user(t, b.acme, n, "")
	}
	var names []string
	token := ""
	for {
		res, err := b.dir.ListUsers(b.acme, &adminv1.ListUsersRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range res.GetUsers() {
			names = append(names, u.GetName())
		}
		if token = res.GetNextPageToken(); token == "" {
			break
		}
	}
	if want := []string{"alice", "bob", "carol", "dan", "eve"}; !slices.Equal(names, want) {
		t.Errorf("got %v", names)
	}
	_, err := b.dir.ListUsers(b.acme, &adminv1.ListUsersRequest{PageToken: "???"})
	refused(t, err, problem.Invalid)
}

func TestHostNamesAreOfOneFormAndOneTenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	res, err := b.dir.CreateTenant(b.acme, &adminv1.CreateTenantRequest{Name: "initech", Hosts: []string{"MCP.Example.com.", "mcp.example.com"}})
	if err != nil || !slices.Equal(res.GetTenant().GetHosts(), []string{"mcp.example.com"}) {
		t.Fatalf("got %v, %v", res, err)
	}
	_, err = b.dir.CreateTenant(b.acme, &adminv1.CreateTenantRequest{Name: "umbrella", Hosts: []string{"mcp.example.com"}})
	refused(t, err, problem.Conflict)
	for _, bad := range []string{"https://x.example", "x:8080", "10.0.0.1", "a..b", "-a.example", "[::1]", "a b"} {
		_, err = b.dir.CreateTenant(b.acme, &adminv1.CreateTenantRequest{Name: "umbrella", Hosts: []string{bad}})
		refused(t, err, problem.Invalid)
	}
	list, err := b.dir.ListTenants(b.acme, &adminv1.ListTenantsRequest{})
	if err != nil || len(list.GetTenants()) != 3 {
		t.Errorf("got %v, %v", list, err)
	}
}

func TestEnsureMakesOnceAndKeepsRolesCurrent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, err := b.dir.EnsureTenant(t.Context(), "setup", "initech", []string{"initech.localhost"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.dir.EnsureTenant(t.Context(), "setup", "initech", nil)
	if err != nil || again.ID != first.ID {
		t.Fatalf("%v, %v", again, err)
	}
	for _, roles := range [][]string{{controlplane.RoleAdmin}, {controlplane.RoleOwner}, {controlplane.RoleOwner}} {
		err := b.dir.EnsureUser(t.Context(), first, "setup", controlplane.User{Name: "admin", Kind: controlplane.Person, AdminRoles: roles})
		if err != nil {
			t.Fatal(err)
		}
	}
	var u controlplane.User
	err = b.store.Read(t.Context(), first.ID, func(tx *store.Tx) (err error) {
		u, err = tx.UserByName(t.Context(), "admin")
		return err
	})
	if err != nil || !slices.Equal(u.AdminRoles, []string{controlplane.RoleOwner}) {
		t.Errorf("got %v, %v", u, err)
	}
}

func TestGroupsAreKeptLikeTeams(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.user(t, b.acme, "alice", "")
	if _, err := b.dir.CreateGroup(b.acme, &adminv1.CreateGroupRequest{Name: "eng"}); err != nil {
		t.Fatal(err)
	}
	_, err := b.dir.CreateGroup(b.acme, &adminv1.CreateGroupRequest{Name: "eng"})
	refused(t, err, problem.Conflict)
	first, err := b.dir.SetGroupMember(b.acme, &adminv1.SetGroupMemberRequest{Group: "eng", User: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.dir.SetGroupMember(b.acme, &adminv1.SetGroupMemberRequest{Group: "eng", User: "alice"})
	if err != nil || again.GetRevision() != first.GetRevision() {
		t.Errorf("twice is not once: %v, %v", again, err)
	}
	list, err := b.dir.ListGroups(b.acme, &adminv1.ListGroupsRequest{})
	if err != nil || len(list.GetGroups()) != 1 || !slices.Equal(list.GetGroups()[0].GetMembers(), []string{"alice"}) || list.GetGroups()[0].GetSource() != "manual" {
		t.Errorf("got %v, %v", list, err)
	}
	u, err := b.dir.GetUser(b.acme, &adminv1.GetUserRequest{Name: "alice"})
	if err != nil || !slices.Equal(u.GetUser().GetGroups(), []string{"eng"}) {
		t.Errorf("got %v, %v", u, err)
	}
	// Another tenant neither sees the group nor writes into it.
	if list, err := b.dir.ListGroups(b.globex, &adminv1.ListGroupsRequest{}); err != nil || len(list.GetGroups()) != 0 {
		t.Errorf("globex sees %v, %v", list, err)
	}
	_, err = b.dir.SetGroupMember(b.globex, &adminv1.SetGroupMemberRequest{Group: "eng", User: "alice"})
	refused(t, err, problem.NotFound)
	if _, err := b.dir.DeleteGroup(b.acme, &adminv1.DeleteGroupRequest{Name: "eng"}); err != nil {
		t.Fatal(err)
	}
	_, err = b.dir.DeleteGroup(b.acme, &adminv1.DeleteGroupRequest{Name: "eng"})
	refused(t, err, problem.NotFound)
}

func TestAGroupThatSomethingIsDeniedToIsNotDeleted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if _, err := b.dir.CreateGroup(b.acme, &adminv1.CreateGroupRequest{Name: "eng"}); err != nil {
		t.Fatal(err)
	}
	_, err := b.store.Write(t.Context(), controlplane.CallerFrom(b.acme).TenantID, "test", func(tx *store.Tx) error {
		for _, deny := range []bool{false, true} {
			g := store.Grant{ID: store.NewID(), Deny: deny, Subject: "group:eng", Target: controlplane.Target{Server: "*"}}
			if err := tx.InsertGrant(t.Context(), g); err != nil {
				return err
			}
		}
		return tx.Change(t.Context(), "x", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.dir.DeleteGroup(b.acme, &adminv1.DeleteGroupRequest{Name: "eng"})
	refused(t, err, problem.Conflict)
	if list, err := b.dir.ListGroups(b.acme, &adminv1.ListGroupsRequest{}); err != nil || len(list.GetGroups()) != 1 {
		t.Errorf("got %v, %v", list, err)
	}
}

func TestAGroupThatIsProvisionedIsNotChangedByHand(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.user(t, b.acme, "alice", "")
	c := controlplane.CallerFrom(b.acme)
	_, err := b.store.Write(t.Context(), c.TenantID, "scim", func(tx *store.Tx) error {
		if _, err := tx.InsertGroup(t.Context(), controlplane.Group{Name: "eng", Source: "scim"}); err != nil {
			return err
		}
		return tx.Change(t.Context(), "group.create", "group:eng", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.dir.SetGroupMember(b.acme, &adminv1.SetGroupMemberRequest{Group: "eng", User: "alice"})
	refused(t, err, problem.Conflict)
	_, err = b.dir.DeleteGroup(b.acme, &adminv1.DeleteGroupRequest{Name: "eng"})
	refused(t, err, problem.Conflict)
}

func TestARoleIsGivenToUnitsAndGroups(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.dir.CreateUnit(b.acme, &adminv1.CreateUnitRequest{Name: "emea"})
	if err == nil {
		_, err = b.dir.CreateGroup(b.acme, &adminv1.CreateGroupRequest{Name: "eng"})
	}
	if err == nil {
		_, err = b.dir.CreateRole(b.acme, &adminv1.CreateRoleRequest{Name: "reader"})
	}
	for _, m := range []string{"unit:emea", "group:eng"} {
		if err == nil {
			_, err = b.dir.SetRoleMember(b.acme, &adminv1.SetRoleMemberRequest{Role: "reader", Member: m})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	roles, err := b.dir.ListRoles(b.acme, &adminv1.ListRolesRequest{})
	if err != nil || !slices.Equal(roles.GetRoles()[0].GetMembers(), []string{"group:eng", "unit:emea"}) {
		t.Errorf("got %v, %v", roles, err)
	}
	_, err = b.dir.SetRoleMember(b.acme, &adminv1.SetRoleMemberRequest{Role: "reader", Member: "unit:apac"})
	refused(t, err, problem.NotFound)
}

func TestAWorkloadIsNamedByItsSPIFFEID(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const id = "spiffe://prod.example.com/agent/billing"
	workload := adminv1.UserKind_USER_KIND_WORKLOAD
	res, err := b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: id, Kind: workload, Clearance: 3, Region: "eu"})
	if err != nil {
		t.Fatal(err)
	}
	if u := res.GetUser(); u.GetKind() != workload || u.GetClearance() != 3 || u.GetRegion() != "eu" {
		t.Errorf("got %v", u)
	}
	for _, name := range []string{"agent", "spiffe://prod.example.com", "spiffe://Prod.example.com/a", "spiffe://prod.example.com/a/", "spiffe://prod.example.com/../a", "spiffe://prod.example.com//a"} {
		_, err := b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: name, Kind: workload})
		refused(t, err, problem.Invalid)
	}
	_, err = b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: id + "2"})
	refused(t, err, problem.Invalid)
	_, err = b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: "alice", Supervisor: id})
	refused(t, err, problem.Invalid)
}

func TestAUsersAttributesChangeOneByOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.user(t, b.acme, "alice", "")
	if _, err := b.dir.CreateUnit(b.acme, &adminv1.CreateUnitRequest{Name: "emea"}); err != nil {
		t.Fatal(err)
	}
	class, region, unit, none := uint32(2), "eu", "emea", ""
	for _, req := range []*adminv1.UpdateUserRequest{{Clearance: &class}, {Region: &region}, {Unit: &unit}} {
		req.Name = "alice"
		if _, err := b.dir.UpdateUser(b.acme, req); err != nil {
			t.Fatal(err)
		}
	}
	res, err := b.dir.UpdateUser(b.acme, &adminv1.UpdateUserRequest{Name: "alice", Region: &none})
	if u := res.GetUser(); err != nil || u.GetClearance() != 2 || u.GetRegion() != "" || u.GetUnit() != "emea" {
		t.Errorf("got %v, %v", res, err)
	}
	if again, err := b.dir.UpdateUser(b.acme, &adminv1.UpdateUserRequest{Name: "alice", Clearance: &class}); err != nil || again.GetRevision() != res.GetRevision() {
		t.Errorf("what is so already made revision %d, %v", again.GetRevision(), err)
	}
	unit = "apac"
	_, err = b.dir.UpdateUser(b.acme, &adminv1.UpdateUserRequest{Name: "alice", Unit: &unit})
	refused(t, err, problem.NotFound)
}

func TestAUnitIsMovedButNeverBelowItself(t *testing.T) {
	t.Parallel()
	b := setup(t)
	parent := ""
	for _, name := range []string{"world", "emea", "dach", "germany", "berlin"} {
		if _, err := b.dir.CreateUnit(b.acme, &adminv1.CreateUnitRequest{Name: name, Parent: parent}); err != nil {
			t.Fatal(err)
		}
		parent = name
	}
	_, err := b.dir.MoveUnit(b.acme, &adminv1.MoveUnitRequest{Name: "world", Parent: "berlin"})
	refused(t, err, problem.Invalid)
	if _, err := b.dir.MoveUnit(b.acme, &adminv1.MoveUnitRequest{Name: "germany"}); err != nil {
		t.Fatal(err)
	}
	list, err := b.dir.ListUnits(b.acme, &adminv1.ListUnitsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range list.GetUnits() {
		if u.GetName() == "germany" && u.GetParent() != "" || u.GetName() == "berlin" && u.GetParent() != "germany" {
			t.Errorf("got %v", u)
		}
	}
}
