package compile

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

func TestTheLimitsOfSessionsAreCarriedWhereATenantDecidedThem(t *testing.T) {
	t.Parallel()
	_, in := load(t, "testdata/shop.txtar")
	_, before, _, err := lower(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Sessions = controlplane.SessionLimits{Idle: time.Hour, Max: 12 * time.Hour, PerPrincipal: 64, PerTenant: 5000}
	_, after, _, err := lower(in)
	if err != nil {
		t.Fatal(err)
	}
	want := proto.CloneOf(before)
	s := want.GetSettings()
	if s.GetSessionIdleMs() != 0 || s.GetSessionsPerTenant() != 0 {
		t.Errorf("decided for the cells what the tenant has not: %v", s)
	}
	proto.Merge(s, &snapshotv1.Settings{SessionIdleMs: 3_600_000, SessionMaxMs: 43_200_000, SessionsPerPrincipal: 64, SessionsPerTenant: 5000})
	if !proto.Equal(after, want) {
		t.Errorf("got %v", after.GetSettings())
	}
}

func TestTheGuardsAreCarriedWhereATenantDecidedThem(t *testing.T) {
	t.Parallel()
	_, in := load(t, "testdata/shop.txtar")
	_, before, _, err := lower(in)
	if err != nil {
		t.Fatal(err)
	}
	if before.GetSettings().GetGuards() != nil {
		t.Errorf("decided for the cells what the tenant has not: %v", before.GetSettings())
	}
	in.Guards = controlplane.Guards{Results: "block", CheckArguments: true, Forbidden: []string{"sampling"}}
	_, after, _, err := lower(in)
	if err != nil {
		t.Fatal(err)
	}
	want := proto.CloneOf(before)
	want.Settings.Guards = &snapshotv1.Guards{Results: "block", CheckArguments: true, Forbidden: []string{"sampling"}}
	if !proto.Equal(after, want) {
		t.Errorf("got %v", after.GetSettings())
	}
}
