package settings_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/settings"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

func TestWhatIsDoneAfterTheBoundIsASettingOfATenant(t *testing.T) {
	t.Parallel()
	st := storetest.Open(t)
	tenant := storetest.Tenant(t, st, "acme")
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: tenant.ID, Tenant: "acme", Home: "acme"})
	s := settings.New(st)
	for _, step := range []struct{ set, want string }{
		{"", "deny"}, {"allow-read-only", "allow-read-only"}, {"", "allow-read-only"}, {"deny", "deny"},
	} {
		if _, err := s.UpdateSettings(ctx, &adminv1.UpdateSettingsRequest{AfterStaleness: step.set}); err != nil {
			t.Fatal(err)
		}
		got, err := s.GetSettings(ctx, &adminv1.GetSettingsRequest{})
		if err != nil || got.GetSettings().GetAfterStaleness() != step.want || len(got.GetSettings().GetLabelStaleness()) != 0 {
			t.Errorf("after %q: %v, %v", step.set, got, err)
		}
	}
}

func TestStalenessHasDefaultsAndIsChangedOneByOne(t *testing.T) {
	t.Parallel()
	st := storetest.Open(t)
	as := func(name string) context.Context {
		tenant := storetest.Tenant(t, st, name)
		return controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: tenant.ID, Tenant: name, Home: name})
	}
	acme, globex, s := as("acme"), as("globex"), settings.New(st)
	update := func(read, write time.Duration, labels map[string]time.Duration) (*adminv1.UpdateSettingsResponse, error) {
		req := &adminv1.UpdateSettingsRequest{LabelStaleness: map[string]*durationpb.Duration{}}
		if read >= 0 {
			req.MaxStalenessRead = durationpb.New(read)
		}
		if write >= 0 {
			req.MaxStalenessWrite = durationpb.New(write)
		}
		for l, d := range labels {
			req.LabelStaleness[l] = durationpb.New(d)
		}
		return s.UpdateSettings(acme, req)
	}
	check := func(ctx context.Context, read, write time.Duration, labels map[string]time.Duration) {
		t.Helper()
		res, err := s.GetSettings(ctx, &adminv1.GetSettingsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		got := res.GetSettings()
		if got.GetMaxStalenessRead().AsDuration() != read || got.GetMaxStalenessWrite().AsDuration() != write || len(got.GetLabelStaleness()) != len(labels) {
			t.Errorf("got %v", got)
		}
		for l, d := range labels {
			if got.GetLabelStaleness()[l].AsDuration() != d {
				t.Errorf("%s: got %v", l, got.GetLabelStaleness()[l])
			}
		}
	}
	const keep = -1
	check(acme, 72*time.Hour, 24*time.Hour, nil)
	first, err := update(keep, time.Hour, map[string]time.Duration{"pci=true": 15 * time.Minute, "env=prod": time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	check(acme, 72*time.Hour, time.Hour, map[string]time.Duration{"pci=true": 15 * time.Minute, "env=prod": time.Hour})
	if again, err := update(keep, time.Hour, nil); err != nil || again.GetRevision() != first.GetRevision() {
		t.Errorf("what is so already made revision %d, %v", again.GetRevision(), err)
	}
	if _, err := update(48*time.Hour, 0, map[string]time.Duration{"env=prod": 0}); err != nil {
		t.Fatal(err)
	}
	check(acme, 48*time.Hour, 24*time.Hour, map[string]time.Duration{"pci=true": 15 * time.Minute})
	check(globex, 72*time.Hour, 24*time.Hour, nil)

	for _, d := range []time.Duration{time.Second, 31 * 24 * time.Hour} {
		if _, err := update(keep, keep, map[string]time.Duration{"pci=true": d}); problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), "pci=true") {
			t.Errorf("%s: got %v", d, err)
		}
	}
}

func TestSessionLimitsHaveDefaultsAndAreChangedOneByOne(t *testing.T) {
	t.Parallel()
	st := storetest.Open(t)
	tenant := storetest.Tenant(t, st, "acme")
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: tenant.ID, Tenant: "acme", Home: "acme"})
	s := settings.New(st)
	update := func(req *adminv1.UpdateSettingsRequest) (*adminv1.Settings, error) {
		res, err := s.UpdateSettings(ctx, req)
		return res.GetSettings(), err
	}
	got, err := update(&adminv1.UpdateSettingsRequest{SessionIdle: durationpb.New(time.Hour), SessionsPerPrincipal: new(uint32(64))})
	if err != nil || got.GetSessionIdle().AsDuration() != time.Hour || got.GetSessionMax().AsDuration() != 24*time.Hour || got.GetSessionsPerPrincipal() != 64 {
		t.Fatal(got, err)
	}
	got, err = update(&adminv1.UpdateSettingsRequest{SessionIdle: durationpb.New(0), SessionMax: durationpb.New(8 * time.Hour), SessionsPerTenant: new(uint32(500))})
	if err != nil || got.GetSessionIdle().AsDuration() != 30*time.Minute || got.GetSessionMax().AsDuration() != 8*time.Hour ||
		got.GetSessionsPerPrincipal() != 64 || got.GetSessionsPerTenant() != 500 || got.GetMaxStalenessRead().AsDuration() != 72*time.Hour {
		t.Fatal(got, err)
	}
	again, err := s.GetSettings(ctx, &adminv1.GetSettingsRequest{})
	if err != nil || again.GetSettings().GetSessionMax().AsDuration() != 8*time.Hour || again.GetSettings().GetSessionsPerTenant() != 500 {
		t.Fatal(again, err)
	}
	for _, req := range []*adminv1.UpdateSettingsRequest{
		{SessionIdle: durationpb.New(time.Second)},
		{SessionMax: durationpb.New(8 * 24 * time.Hour)},
		{SessionIdle: durationpb.New(9 * time.Hour)},
		{SessionsPerPrincipal: new(uint32(501))},
	} {
		if _, err := update(req); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%v: got %v", req, err)
		}
	}
}
