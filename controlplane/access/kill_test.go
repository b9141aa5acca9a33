package access_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// owner is a caller who owns the platform.
func (b *bundle) owner(t *testing.T) context.Context {
	t.Helper()
	return controlplane.WithCaller(t.Context(), controlplane.Caller{
		Principal: "root", TenantID: b.acme.ID, Tenant: "acme", Home: "acme", Roles: []string{controlplane.RoleOwner},
	})
}

// reported makes a node known that has said how it is.
func (b *bundle) reported(t *testing.T, cell, node string) {
	t.Helper()
	err := b.st.Platform(t.Context(), func(tx *store.Tx) error {
		if err := tx.EnsureCell(t.Context(), cell); err != nil {
			return err
		}
		return tx.SetNodeStatus(t.Context(), store.NodeStatus{Cell: cell, Node: node, Status: []byte{}})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryKindOfKillIsSignedForThoseItConcerns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.reported(t, "local", "n1")
	for kind, c := range map[string]struct {
		subject    string
		kind       snapshotv1.KillKind
		everywhere bool
	}{
		"user":    {"bob", snapshotv1.KillKind_KILL_KIND_USER, false},
		"token":   {"01K8Z3V9QJ7W2M5T4R6Y8X0ABC", snapshotv1.KillKind_KILL_KIND_TOKEN, false},
		"session": {"abcd", snapshotv1.KillKind_KILL_KIND_SESSION, false},
		"server":  {"payments", snapshotv1.KillKind_KILL_KIND_SERVER, false},
		"tool":    {"payments/refund", snapshotv1.KillKind_KILL_KIND_TOOL, false},
		"version": {"ab12", snapshotv1.KillKind_KILL_KIND_VERSION, false},
		"secret":  {"vault/payments", snapshotv1.KillKind_KILL_KIND_SECRET, false},
		"node":    {"local/n1", snapshotv1.KillKind_KILL_KIND_NODE, true},
		"issuer":  {"https://idp.example", snapshotv1.KillKind_KILL_KIND_ISSUER, false},
		"key":     {"kid-1", snapshotv1.KillKind_KILL_KIND_KEY, false},
	} {
		res, err := b.acc.Kill(b.owner(t), &adminv1.KillRequest{Kind: kind, Subject: c.subject, Reason: "incident 7"})
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		list, err := b.acc.ListKills(b.owner(t), &adminv1.ListKillsRequest{Id: res.GetId()})
		if err != nil || len(list.GetKills()) != 1 {
			t.Fatalf("%s: %v %v", kind, list, err)
		}
		k := list.GetKills()[0]
		body, err := b.auth.Trust.OpenKill(k.GetEnvelope())
		if err != nil || body.GetKind() != c.kind || body.GetSubject() != c.subject || body.GetReason() != "incident 7" ||
			(body.GetTenantId() == "") != c.everywhere || k.GetEverywhere() != c.everywhere || k.GetKind() != kind {
			t.Errorf("%s: signed %v, shown %v: %v", kind, body, k, err)
		}
		if !slices.Equal(k.GetWaiting(), []string{"local/n1"}) {
			t.Errorf("%s waits for %v", kind, k.GetWaiting())
		}
	}
}

func TestAKillThatWouldMissOrGoTooFarIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.reported(t, "local", "n1")
	for name, c := range map[string]struct {
		ctx  context.Context
		req  *adminv1.KillRequest
		want problem.Code
	}{
		"a kind that nobody knows":         {b.owner(t), &adminv1.KillRequest{Kind: "cat", Subject: "x"}, problem.Invalid},
		"a node that never reported":       {b.owner(t), &adminv1.KillRequest{Kind: "node", Subject: "local/n9"}, problem.NotFound},
		"a node without its cell":          {b.owner(t), &adminv1.KillRequest{Kind: "node", Subject: "n1"}, problem.Invalid},
		"a node, by an admin of a tenant":  {b.ctx, &adminv1.KillRequest{Kind: "node", Subject: "local/n1"}, problem.Denied},
		"everywhere, by one":               {b.ctx, &adminv1.KillRequest{Kind: "key", Subject: "k", Everywhere: true}, problem.Denied},
		"a user's name in every tenant":    {b.owner(t), &adminv1.KillRequest{Kind: "user", Subject: "bob", Everywhere: true}, problem.Invalid},
		"a user who does not exist":        {b.owner(t), &adminv1.KillRequest{Kind: "user", Subject: "bobb"}, problem.NotFound},
		"a tool that is not in the server": {b.owner(t), &adminv1.KillRequest{Kind: "tool", Subject: "payments/refnud"}, problem.NotFound},
	} {
		if _, err := b.acc.Kill(c.ctx, c.req); problem.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if list, err := b.acc.ListKills(b.owner(t), &adminv1.ListKillsRequest{}); err != nil || len(list.GetKills()) != 0 {
		t.Errorf("something was killed: %v %v", list, err)
	}
}

func TestKillsSignedOfflineAreImportedWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sign := func(id, tenant string, by *seal.Signer) []byte {
		env, err := seal.SignKill(&snapshotv1.Kill{
			Id: id, Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: tenant, Subject: "bob", IssuedMs: time.Now().UnixMilli(),
		}, by)
		if err != nil {
			t.Fatal(err)
		}
		return env
	}
	good := sign("01GOOD", string(b.acme.ID), b.auth.Kill)
	for name, c := range map[string]struct {
		env  []byte
		want problem.Code
	}{
		"by a stranger":                {sign("01BAD", string(b.acme.ID), snapshottest.Signer("stranger")), problem.Invalid},
		"by a head key":                {sign("01BAD", string(b.acme.ID), b.auth.Head), problem.Invalid},
		"of another tenant":            {sign("01BAD", "0192ffff", b.auth.Kill), problem.Invalid},
		"of every tenant, by an admin": {sign("01BAD", "", b.auth.Kill), problem.Denied},
	} {
		if _, err := b.acc.ImportKills(b.ctx, &adminv1.ImportKillsRequest{Envelopes: [][]byte{good, c.env}}); problem.CodeOf(err) != c.want || !strings.Contains(err.Error(), "kill 2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, err := b.acc.ListKills(b.ctx, &adminv1.ListKillsRequest{}); err != nil || len(list.GetKills()) != 0 {
		t.Fatalf("half of it was taken: %v %v", list, err)
	}
	res, err := b.acc.ImportKills(b.ctx, &adminv1.ImportKillsRequest{Envelopes: [][]byte{good}})
	if err != nil || !slices.Equal(res.GetIds(), []string{"01GOOD"}) {
		t.Fatalf("%v %v", res, err)
	}
	if again, err := b.acc.ImportKills(b.ctx, &adminv1.ImportKillsRequest{Envelopes: [][]byte{good}}); err != nil || len(again.GetIds()) != 0 {
		t.Errorf("twice: %v %v", again, err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		v, _, ok := b.pub.View("local")
		if ok && len(v.Kills) == 1 && proto.Equal(must(t, v.Kills[0].Envelope, b), must(t, good, b)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it did not reach the cells")
		}
	}
}

func must(t *testing.T, env []byte, b *bundle) *snapshotv1.Kill {
	t.Helper()
	k, err := b.auth.Trust.OpenKill(env)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
