package audit

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/kit/tlog"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// History is the part of the log that recovery reads; *tlog.Log is one.
type History interface {
	Size() int64
	First() int64
	Read(from int64, n, limit int) ([][]byte, error)
}

const (
	// codeStarted marks the end of a recovery: no intent before it is open.
	codeStarted = "MV0001N"
	codeUnknown = "MV1003W"

	recoverBatch = 2048
	recoverBytes = 4 << 20
)

// Recover gives every intent that the last life of this node left open an outcome of its own: unknown. It reads back to
// where the last recovery ended, and then marks its own end.
func (a *Audit) Recover(ctx context.Context, h History) error {
	open, err := openIntents(h)
	if err != nil {
		return fmt.Errorf("look for open intents: %w", err)
	}
	for _, in := range open {
		out := &auditv1.Record{
			Id: a.NewID(), Kind: auditv1.RecordKind_RECORD_KIND_UNKNOWN_OUTCOME, Code: codeUnknown, IntentId: in.GetId(),
			TenantId: in.GetTenantId(), Tenant: in.GetTenant(), Principal: in.GetPrincipal(), Actor: in.GetActor(),
			Method: in.GetMethod(), Server: in.GetServer(), Target: in.GetTarget(), Effect: in.GetEffect(),
			Decision: in.GetDecision(), Reason: in.GetReason(), RequestId: in.GetRequestId(), Outcome: "unknown",
			Detail: "the node stopped between the intent and its outcome",
		}
		if err := a.Outcome(ctx, out); err != nil {
			return err
		}
	}
	if len(open) > 0 {
		a.cfg.Logger.WarnContext(ctx, "calls were under way when this node stopped; their outcome is unknown", "calls", len(open))
	}
	return a.Append(&auditv1.Record{
		Id: a.NewID(), Kind: auditv1.RecordKind_RECORD_KIND_SYSTEM, Code: codeStarted, Outcome: "started",
	})
}

// openIntents walks backwards, so that an outcome is seen before its intent.
func openIntents(h History) ([]*auditv1.Record, error) {
	closed := map[string]bool{}
	var open []*auditv1.Record
	for end := h.Size(); end > h.First(); {
		from := max(h.First(), end-recoverBatch)
		recs, err := readAll(h, from, end)
		if err != nil {
			return nil, err
		}
		for i := len(recs) - 1; i >= 0; i-- {
			var r auditv1.Record
			if err := proto.Unmarshal(recs[i], &r); err != nil {
				return nil, fmt.Errorf("record %d: %w", from+int64(i), err)
			}
			switch {
			case r.GetKind() == auditv1.RecordKind_RECORD_KIND_SYSTEM && r.GetCode() == codeStarted:
				return open, nil
			case r.GetIntentId() != "":
				closed[r.GetIntentId()] = true
			case r.GetKind() == auditv1.RecordKind_RECORD_KIND_INTENT && !closed[r.GetId()]:
				open = append(open, &r)
			}
		}
		end = from
	}
	return open, nil
}

func readAll(h History, from, end int64) ([][]byte, error) {
	var out [][]byte
	for at := from; at < end; {
		recs, err := h.Read(at, int(end-at), recoverBytes)
		if err != nil {
			return nil, err
		}
		if len(recs) == 0 {
			return nil, tlog.ErrRange
		}
		out = append(out, recs...)
		at += int64(len(recs))
	}
	return out, nil
}
