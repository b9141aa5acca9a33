package cellapi_test

import (
	"context"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/mcpvault/mcpvault/controlplane"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
)

func isQuestion(r *cellv1.WatchResponse) bool { return r.GetSessions() != nil }

func TestSessionsAreAskedOfOneNodeOfTheTenantsCell(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	ctx := controlplane.WithCaller(t.Context(), controlplane.Caller{Principal: "root", TenantID: b.acme.ID, Tenant: "acme", Home: "acme"})
	if got, err := b.snaps.ListSessions(ctx, &adminv1.ListSessionsRequest{}); err != nil || len(got.GetSilent()) != 1 || got.GetSilent()[0] != "eu" {
		t.Fatalf("with nobody there: %v %v", got, err)
	}
	eu, us := b.node(t, "eu", "n1"), b.node(t, "us", "n1")
	events, _ := b.watch(t, eu, &cellv1.WatchRequest{})
	next(t, events, "the update", isUpdate)
	elsewhere, _ := b.watch(t, us, &cellv1.WatchRequest{})
	next(t, elsewhere, "the update", isUpdate)

	answered := make(chan error, 1)
	go func() {
		got, err := b.snaps.ListSessions(ctx, &adminv1.ListSessionsRequest{Principal: "alice", Limit: 2})
		switch {
		case err != nil:
		case len(got.GetSilent()) != 0 || !got.GetMore() || len(got.GetSessions()) != 2:
			err = fmt.Errorf("got %v", got)
		case got.GetSessions()[0].GetId() != hex.EncodeToString(make([]byte, 16)) || got.GetSessions()[0].GetUsedMs() != 9 || got.GetSessions()[0].GetCell() != "eu":
			err = fmt.Errorf("not the last used first: %v", got)
		}
		answered <- err
	}()
	q := next(t, events, "the question", isQuestion).GetSessions()
	if q.GetTenantId() != string(b.acme.ID) || q.GetPrincipal() != "alice" || q.GetLimit() != 2 {
		t.Errorf("asked %v", q)
	}
	// Whoever guesses the number, and was not asked, is not believed.
	for _, wrong := range []struct {
		id   uint64
		node cellv1connect.CellServiceClient
	}{{q.GetId(), us}, {q.GetId() + 1, eu}} {
		if _, err := wrong.node.AnswerSessions(t.Context(), &cellv1.AnswerSessionsRequest{Id: wrong.id}); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("got %v", err)
		}
	}
	_, err := eu.AnswerSessions(t.Context(), &cellv1.AnswerSessionsRequest{Id: q.GetId(), More: true, Sessions: []*cellv1.SessionInfo{
		{Session: append(make([]byte, 15), 1), Principal: "alice", UsedMs: 5}, {Session: make([]byte, 16), Principal: "alice", UsedMs: 9},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestANodeThatDoesNotAnswerHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	events, _ := b.watch(t, b.node(t, "eu", "n1"), &cellv1.WatchRequest{})
	next(t, events, "the update", isUpdate)
	ctx, cancel := context.WithTimeout(controlplane.WithCaller(t.Context(), controlplane.Caller{TenantID: b.acme.ID, Tenant: "acme", Home: "acme"}), 50*time.Millisecond)
	defer cancel()
	got, err := b.snaps.ListSessions(ctx, &adminv1.ListSessionsRequest{})
	if err != nil || len(got.GetSilent()) != 1 {
		t.Errorf("%v %v", got, err)
	}
}
