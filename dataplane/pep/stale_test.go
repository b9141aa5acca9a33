package pep_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

func TestALabelClosesItsToolsBeforeTheOthers(t *testing.T) {
	t.Parallel()
	up := newScripted(t)
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	server := catalogueServer("pay", up.url, allEras(), plainTool("balance", read), plainTool("refund", destructive))
	server.Tools[1].Labels = []string{"class=payment"}
	g := newGateway(t, pep.Config{Now: now}, []snapshot.Grant{{ID: "g1", Subject: "user:alice", Server: "pay"}}, server)
	g.cat.Settings.LabelStaleness = []*snapshotv1.LabelStaleness{{Label: "class=payment", MaxMs: (5 * time.Minute).Milliseconds()}}
	g.publish()
	listed := func() string { return g.modern("/mcp/pay", "alice", "tools/list", "", "").body }
	if a := g.call("/mcp/pay", "alice", "refund", "{}"); a.Result == nil || strings.Contains(a.body, "stale") || !strings.Contains(listed(), `"refund"`) {
		t.Fatalf("fresh: %s", a.body)
	}
	ahead.Store(int64(6 * time.Minute))
	before := up.calls()
	if a := g.call("/mcp/pay", "alice", "refund", "{}"); !strings.Contains(a.body, `"reason":"stale"`) || up.calls() != before {
		t.Errorf("after the label's bound: %s", a.body)
	}
	if list := listed(); strings.Contains(list, `"refund"`) || !strings.Contains(list, `"balance"`) {
		t.Errorf("the list after the label's bound: %s", list)
	}
	if a := g.call("/mcp/pay", "alice", "balance", "{}"); a.Result == nil || strings.Contains(a.body, "stale") {
		t.Errorf("a tool without the label: %s", a.body)
	}
	g.pdp.RenewLease("0192-acme", now().UnixMilli())
	if a := g.call("/mcp/pay", "alice", "refund", "{}"); strings.Contains(a.body, "stale") || !strings.Contains(listed(), `"refund"`) {
		t.Errorf("after the next heartbeat: %s", a.body)
	}
}

func TestAfterTheBoundReadsGoOnWhereTheTenantWantsThat(t *testing.T) {
	t.Parallel()
	for _, after := range []snapshotv1.AfterStaleness{
		snapshotv1.AfterStaleness_AFTER_STALENESS_UNSPECIFIED, snapshotv1.AfterStaleness_AFTER_STALENESS_READ_ONLY,
	} {
		up := newScripted(t)
		var ahead atomic.Int64
		now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		server := catalogueServer("pay", up.url, allEras(), plainTool("balance", read), plainTool("refund", destructive))
		g := newGateway(t, pep.Config{Now: now}, []snapshot.Grant{{ID: "g1", Subject: "user:alice", Server: "pay"}}, server)
		g.cat.Settings.AfterStaleness = after
		g.publish()
		ahead.Store(int64(100 * time.Hour))
		goOn := after == snapshotv1.AfterStaleness_AFTER_STALENESS_READ_ONLY
		if a := g.call("/mcp/pay", "alice", "balance", "{}"); strings.Contains(a.body, `"reason":"stale"`) == goOn {
			t.Errorf("%s: a read: %s", after, a.body)
		}
		if list := g.modern("/mcp/pay", "alice", "tools/list", "", "").body; strings.Contains(list, `"balance"`) != goOn {
			t.Errorf("%s: the list: %s", after, list)
		}
		before := up.calls()
		if a := g.call("/mcp/pay", "alice", "refund", "{}"); !strings.Contains(a.body, `"reason":"stale"`) || up.calls() != before {
			t.Errorf("%s: a call with effects: %s", after, a.body)
		}
	}
}
