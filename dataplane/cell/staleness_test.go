package cell

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// aging is a node with one tenant, confirmed at 0: reads for 10 h, the rest for 4 h.
func aging(t *testing.T, after snapshotv1.AfterStaleness) (n *Node, at func(age time.Duration), log *bytes.Buffer) {
	t.Helper()
	raw, err := builder.Build(&snapshot.Policy{Tenant: "id-acme"})
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	tenant, err := pdp.NewTenant(&snapshotv1.Head{TenantId: "id-acme", Tenant: "acme", Epoch: 1, Generation: 1}, snapshot.DigestOf(raw), x, &snapshotv1.Catalogue{
		Settings: &snapshotv1.Settings{
			MaxStalenessReadMs: (10 * time.Hour).Milliseconds(), MaxStalenessWriteMs: (4 * time.Hour).Milliseconds(), AfterStaleness: after,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	confirmed := time.Now().Truncate(time.Second)
	now := confirmed
	log = &bytes.Buffer{}
	n = &Node{
		log: slog.New(slog.NewTextHandler(log, nil)), pdp: pdp.New("acme"), staleLevels: map[string]int{},
		clock: newClock(func() time.Time { return now }, 0, 0),
	}
	n.pdp.Activate([]*pdp.Tenant{tenant}, nil)
	n.pdp.RenewLease("id-acme", confirmed.UnixMilli())
	return n, func(age time.Duration) {
		now = confirmed.Add(age)
		n.clock.raise(now.UnixMilli()) // proved, as by a heartbeat of another tenant
	}, log
}

func TestABoundIsWarnedOfAtHalfAndWhenItIsOver(t *testing.T) {
	t.Parallel()
	n, at, log := aging(t, snapshotv1.AfterStaleness_AFTER_STALENESS_UNSPECIFIED)
	for _, step := range []struct {
		age     time.Duration
		problem []string
		logged  string
	}{
		{2 * time.Hour, nil, ""},
		{2*time.Hour + time.Second, []string{"calls with effects go on for 1h59m59s"}, "level=WARN"},
		{3 * time.Hour, []string{"calls with effects go on for 1h0m0s"}, ""}, // it was said
		{5*time.Hour + time.Second, []string{"reads go on for 4h59m59s", "calls with effects are refused"}, "level=ERROR"},
		{11 * time.Hour, []string{"reads are refused", "calls with effects are refused"}, "class=read"},
	} {
		at(step.age)
		log.Reset()
		n.warnOfStaleness(t.Context())
		if got := log.String(); step.logged == "" && got != "" || !strings.Contains(got, step.logged) {
			t.Errorf("after %s the log says %q", step.age, got)
		}
		err := n.stalenessProblem()
		if (err == nil) != (step.problem == nil) {
			t.Errorf("after %s: %v", step.age, err)
		}
		for _, want := range step.problem {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("after %s: %v; want %s", step.age, err, want)
			}
		}
	}
	// A confirmation ends all of it.
	n.pdp.RenewLease("id-acme", n.clock.Now().UnixMilli())
	log.Reset()
	n.warnOfStaleness(t.Context())
	if err := n.stalenessProblem(); err != nil || !strings.Contains(log.String(), "confirmed again") {
		t.Errorf("%v, %s", err, log)
	}
}

func TestANodeWhoseReadsGoOnAfterTheBoundSaysSoAndIsReady(t *testing.T) {
	t.Parallel()
	for after, want := range map[snapshotv1.AfterStaleness]struct {
		ready bool
		words string
	}{
		snapshotv1.AfterStaleness_AFTER_STALENESS_READ_ONLY:   {true, "reads go on as the organisation wants"},
		snapshotv1.AfterStaleness_AFTER_STALENESS_UNSPECIFIED: {false, "reads are refused"},
	} {
		n, at, _ := aging(t, after)
		at(1000 * time.Hour)
		if err := n.policyProblem(); (err == nil) != want.ready {
			t.Errorf("%s: %v", after, err)
		}
		if err := n.stalenessProblem(); err == nil || !strings.Contains(err.Error(), want.words) {
			t.Errorf("%s: %v", after, err)
		}
	}
}
