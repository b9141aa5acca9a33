package cellapi_test

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/controlplane"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

func TestANodeFromAnotherDatabaseConfirmsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	rev := b.write(t, b.acme, "alice")
	h := b.published(t, b.acme, rev)
	events, _ := b.watch(t, b.node(t, "eu", "n1"), &cellv1.WatchRequest{Applied: []*cellv1.AppliedHead{{
		TenantId: string(b.acme.ID), Epoch: uint64(h.Version.Epoch), Generation: uint64(h.Version.Generation) + 100,
	}}})
	if u := next(t, events, "the update", isUpdate).GetUpdate(); len(u.GetHeads()) != 1 {
		t.Errorf("%d heads: the node cannot tell what it is offered", len(u.GetHeads()))
	}
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{TenantID: b.acme.ID, Tenant: "acme"})
	res, err := b.snaps.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Revision: rev, Timeout: durationpb.New(50 * time.Millisecond)})
	if err != nil || res.GetComplete() || len(res.GetAcks()) != 0 {
		t.Errorf("got %v %v", res, err)
	}
}

func TestAPanicCostsOneCall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	n := b.node(t, "eu", "n1")
	b.witness.mu.Lock()
	b.witness.panics = true
	b.witness.mu.Unlock()
	if _, err := n.DeliverAudit(t.Context(), &cellv1.DeliverAuditRequest{LogId: "x"}); connect.CodeOf(err) == connect.CodeUnavailable || err == nil {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if _, err := n.ReportStatus(ctx, &cellv1.ReportStatusRequest{Status: &cellv1.NodeStatus{}}); err != nil {
		t.Error(err)
	}
}
