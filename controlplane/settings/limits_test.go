package settings_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/settings"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func rate(requests int64, per time.Duration, burst int64) *adminv1.RateLimit {
	return &adminv1.RateLimit{Requests: requests, Per: durationpb.New(per), Burst: burst}
}

func TestLimitsAreOffAtFirstAndSetOneByOne(t *testing.T) {
	t.Parallel()
	st := storetest.Open(t)
	tenant := storetest.Tenant(t, st, "acme")
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: tenant.ID, Tenant: "acme", Home: "acme"})
	s := settings.New(st)
	set := func(limits map[string]*adminv1.RateLimit, maxCalls *uint32) (*adminv1.UpdateSettingsResponse, error) {
		return s.UpdateSettings(ctx, &adminv1.UpdateSettingsRequest{RateLimits: limits, MaxCalls: maxCalls})
	}
	now := func() *adminv1.Settings {
		t.Helper()
		res, err := s.GetSettings(ctx, &adminv1.GetSettingsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetSettings()
	}
	if got := now(); len(got.GetRateLimits()) != 0 || got.GetMaxCalls() != 0 {
		t.Fatalf("limits that nobody set: %v", got)
	}
	first, err := set(map[string]*adminv1.RateLimit{"principal": rate(100, time.Second, 0), "tool/pay/refund": rate(10, time.Minute, 3)}, proto.Uint32(64))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := set(map[string]*adminv1.RateLimit{"principal": rate(100, time.Second, 100)}, nil); err != nil || again.GetRevision() != first.GetRevision() {
		t.Errorf("what is so already made revision %d, %v", again.GetRevision(), err)
	}
	got := now()
	if p := got.GetRateLimits()["principal"]; p.GetRequests() != 100 || p.GetBurst() != 100 || p.GetPer().AsDuration() != time.Second {
		t.Errorf("principal: %v", p)
	}
	if p := got.GetRateLimits()["tool/pay/refund"]; p.GetRequests() != 10 || p.GetBurst() != 3 || got.GetMaxCalls() != 64 {
		t.Errorf("got %v", got)
	}
	if _, err := set(map[string]*adminv1.RateLimit{"principal": rate(0, 0, 0)}, proto.Uint32(0)); err != nil {
		t.Fatal(err)
	}
	if got = now(); len(got.GetRateLimits()) != 1 || got.GetMaxCalls() != 0 {
		t.Errorf("after taking them away: %v", got)
	}
	for subject, bad := range map[string]*adminv1.RateLimit{
		"planet": rate(1, time.Second, 1), "tenant/acme": rate(1, time.Second, 1), "tool/pay": rate(1, time.Second, 1),
		"principal": rate(1, time.Millisecond, 1), "server": rate(-1, time.Second, 1), "tool": rate(1, time.Second, 1<<40),
		"discover": rate(1, 48*time.Hour, 1),
	} {
		if _, err := set(map[string]*adminv1.RateLimit{subject: bad}, nil); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s %v: %v", subject, bad, err)
		}
	}
}
