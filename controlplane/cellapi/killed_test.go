package cellapi_test

import (
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/mcpvault/mcpvault/controlplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

func (b *bundle) killNode(t *testing.T, id, subject string) {
	t.Helper()
	env, err := seal.SignKill(&snapshotv1.Kill{Id: id, Kind: snapshotv1.KillKind_KILL_KIND_NODE, Subject: subject, IssuedMs: 1}, b.auth.Kill)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.st.Write(t.Context(), b.acme.ID, "test", func(tx *store.Tx) error {
		tx.SetKind(store.OutboxKill)
		if _, err := tx.InsertPlatformKill(t.Context(), store.Kill{ID: id, Kind: "node", Subject: subject, IssuedAt: tx.Now(), Envelope: env}); err != nil {
			return err
		}
		return tx.Change(t.Context(), "kill.node", subject, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// drain reads a stream until it ends, or until ok holds.
func drain(t *testing.T, events <-chan *cellv1.WatchResponse, ok func(*cellv1.WatchResponse) bool) (all []*cellv1.WatchResponse) {
	t.Helper()
	end := time.After(limit)
	for {
		select {
		case ev, open := <-events:
			if !open {
				return all
			}
			all = append(all, ev)
			if ok(ev) {
				return all
			}
		case <-end:
			t.Fatal("the stream neither ends nor brings what it should")
		}
	}
}

func TestANodeThatWasKilledIsToldSoAndNothingElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.published(t, b.acme, b.write(t, b.acme, "alice"))
	b.published(t, b.globex, b.write(t, b.globex, "mallory"))
	mine, other, far := b.node(t, "eu", "n1"), b.node(t, "eu", "n2"), b.node(t, "us", "n1")
	events, stop := b.watch(t, mine, &cellv1.WatchRequest{})
	defer stop()
	isKill := func(ev *cellv1.WatchResponse) bool { return ev.GetKill() != nil }
	drain(t, events, func(ev *cellv1.WatchResponse) bool { return ev.GetHeartbeat() != nil })

	b.killNode(t, "kn1", "eu/n1")
	drain(t, events, isKill)
	if _, err := mine.Acknowledge(t.Context(), &cellv1.AcknowledgeRequest{KillId: "kn1", Status: cellv1.AckStatus_ACK_STATUS_APPLIED}); err != nil {
		t.Errorf("it cannot say that it has heard: %v", err)
	}
	never := func(*cellv1.WatchResponse) bool { return false }
	if rest := drain(t, events, never); len(rest) > 0 {
		t.Errorf("after its kill it was sent %v", rest)
	}
	events, stop = b.watch(t, mine, &cellv1.WatchRequest{})
	defer stop()
	for _, ev := range drain(t, events, never) {
		if u := ev.GetUpdate(); u != nil && (len(u.GetManifest()) > 0 || len(u.GetHeads()) > 0) || ev.GetHeartbeat() != nil {
			t.Errorf("a killed node is sent %v", ev)
		}
	}
	_, err := mine.ReportStatus(t.Context(), &cellv1.ReportStatusRequest{Status: &cellv1.NodeStatus{}})
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("status: %v", err)
	}
	if _, err := mine.DeliverAudit(t.Context(), &cellv1.DeliverAuditRequest{LogId: "l"}); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("audit: %v", err)
	}
	blob := b.pub.Head(b.acme.ID).Shards[0]
	stream, err := mine.FetchBlob(t.Context(), &cellv1.FetchBlobRequest{Sha256: blob[:]})
	if err == nil {
		_, err = stream.Receive()
	}
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("blob: %v", err)
	}

	// Everybody else learns of it, in every cell, and is served as before.
	for name, node := range map[string]cellv1connect.CellServiceClient{"eu/n2": other, "us/n1": far} {
		if _, err := node.ReportStatus(t.Context(), &cellv1.ReportStatusRequest{Status: &cellv1.NodeStatus{}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	events, stop = b.watch(t, far, &cellv1.WatchRequest{})
	defer stop()
	drain(t, events, isKill)
	var acks []store.KillAck
	err = b.st.Platform(t.Context(), func(tx *store.Tx) (err error) {
		acks, err = tx.PlatformKillAcks(t.Context())
		return err
	})
	if err != nil || len(acks) != 1 || acks[0].Cell != "eu" || acks[0].Node != "n1" {
		t.Errorf("acknowledgements: %v %v", acks, err)
	}
}
