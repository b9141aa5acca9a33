package ledger

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/tlog"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

const (
	defaultRecords = 100
	maxRecords     = 1000
	defaultLeaves  = 1000
	maxLeaves      = 5000
	// maxLeafBytes bounds the answer of ReadLog, unless its first leaf alone is larger.
	maxLeafBytes = 4 << 20
)

// SearchRecords lists records of the caller's tenant, oldest first: the newest ones that fit, or, with After, the next ones
// received after that. Last is what to ask after next time.
func (l *Ledger) SearchRecords(ctx context.Context, req *adminv1.SearchRecordsRequest) (*adminv1.SearchRecordsResponse, error) {
	tenant, err := callersTenant(ctx)
	if err != nil {
		return nil, err
	}
	q := store.AuditQuery{
		Principal: req.GetPrincipal(), Server: req.GetServer(), Target: req.GetTarget(), After: req.GetAfter(),
		Limit: bounded(req.GetLimit(), defaultRecords, maxRecords),
	}
	switch req.GetDecision() {
	case "allow":
		q.Decision = int32(auditv1.Decision_DECISION_ALLOW)
	case "deny":
		q.Decision = int32(auditv1.Decision_DECISION_DENY)
	}
	if ms := req.GetSinceMs(); ms > 0 {
		q.Since = time.UnixMilli(ms)
	}
	res := &adminv1.SearchRecordsResponse{Last: req.GetAfter()}
	err = l.store.Read(ctx, tenant, func(tx *store.Tx) error {
		recs, err := tx.SearchAudit(ctx, q)
		if err != nil {
			return err
		}
		res.Records = nil
		for _, r := range recs {
			res.Records = append(res.Records, wireRecord(r))
			res.Last = r.Received
		}
		return nil
	})
	return res, err
}

// GetRecord returns the records of one decision of the caller's tenant, each with the proof that its log holds it.
func (l *Ledger) GetRecord(ctx context.Context, req *adminv1.GetRecordRequest) (*adminv1.GetRecordResponse, error) {
	tenant, err := callersTenant(ctx)
	if err != nil {
		return nil, err
	}
	var res *adminv1.GetRecordResponse
	err = l.store.Read(ctx, tenant, func(tx *store.Tx) error {
		recs, err := decision(ctx, tx, req.GetId())
		if err != nil {
			return err
		}
		if len(recs) == 0 {
			return problem.Newf(problem.NotFound, "a record arrives within a second of its call while its cell is connected; `mcpvault audit tail` shows the newest",
				"there is no audit record %s", req.GetId())
		}
		res = &adminv1.GetRecordResponse{}
		for _, r := range recs {
			p, err := prove(ctx, tx, r)
			if err != nil {
				return err
			}
			res.Records = append(res.Records, p)
		}
		return nil
	})
	return res, err
}

// decision finds an intent by its outcome's id too.
func decision(ctx context.Context, tx *store.Tx, id string) ([]store.AuditRecord, error) {
	recs, err := tx.AuditDecision(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, r := range recs {
		if r.ID == id && r.IntentID != "" {
			return tx.AuditDecision(ctx, id, r.IntentID)
		}
	}
	return recs, nil
}

func prove(ctx context.Context, tx *store.Tx, r store.AuditRecord) (*adminv1.ProvenRecord, error) {
	head, err := tx.AuditLog(ctx, r.LogID)
	if err != nil {
		return nil, err
	}
	p := &adminv1.ProvenRecord{Record: wireRecord(r), Log: wireLog(head)}
	if r.Index >= head.Witnessed {
		return p, nil
	}
	proof, err := tlog.ProveRecord(head.Witnessed, r.Index, newTree(tx, head.No, head.Size).reader(ctx))
	if err != nil {
		return nil, fmt.Errorf("prove record %d of %s: %w", r.Index, head.ID, err)
	}
	p.Proof = tlog.HashesToBytes(proof)
	return p, nil
}

// ListLogs lists the logs of all nodes. It shows no record.
func (l *Ledger) ListLogs(ctx context.Context, _ *adminv1.ListLogsRequest) (*adminv1.ListLogsResponse, error) {
	if _, err := callersTenant(ctx); err != nil {
		return nil, err
	}
	res := &adminv1.ListLogsResponse{}
	err := l.store.Platform(ctx, func(tx *store.Tx) error {
		logs, err := tx.AuditLogs(ctx)
		if err != nil {
			return err
		}
		res.Logs = nil
		for _, log := range logs {
			res.Logs = append(res.Logs, wireLog(log))
		}
		return nil
	})
	return res, err
}

// ReadLog returns the leaves of a log in order, up to its newest witnessed checkpoint. A log mixes the tenants of its cell,
// so that only an owner may read one; everybody else proves single records with GetRecord.
func (l *Ledger) ReadLog(ctx context.Context, req *adminv1.ReadLogRequest) (*adminv1.ReadLogResponse, error) {
	if !controlplane.CallerFrom(ctx).Has(controlplane.RoleOwner) {
		return nil, problem.New(problem.Denied, "a whole log holds records of other tenants",
			"ask an owner of the platform, or prove records one by one with `mcpvault audit get`")
	}
	if req.GetFirst() > 1<<60 {
		return nil, problem.New(problem.Invalid, "impossible index", "")
	}
	first := int64(req.GetFirst())
	end := first + int64(bounded(req.GetLimit(), defaultLeaves, maxLeaves))
	res := &adminv1.ReadLogResponse{}
	err := l.store.Platform(ctx, func(tx *store.Tx) error {
		head, err := tx.AuditLog(ctx, req.GetLogId())
		if err != nil {
			return err
		}
		leaves, err := tx.AuditLeaves(ctx, head.No, first, min(end, head.Size))
		if err != nil {
			return err
		}
		res.Leaves = leaves[:fitting(leaves)]
		res.Next = req.GetFirst() + uint64(len(res.Leaves))
		return nil
	})
	return res, err
}

// fitting is how many of the leaves go into one answer.
func fitting(leaves [][]byte) int {
	total := 0
	for i, leaf := range leaves {
		if total += len(leaf); total > maxLeafBytes && i > 0 {
			return i
		}
	}
	return len(leaves)
}

// ListChanges lists the newest admin writes of the caller's tenant, newest first.
func (l *Ledger) ListChanges(ctx context.Context, req *adminv1.ListChangesRequest) (*adminv1.ListChangesResponse, error) {
	tenant, err := callersTenant(ctx)
	if err != nil {
		return nil, err
	}
	res := &adminv1.ListChangesResponse{}
	err = l.store.Read(ctx, tenant, func(tx *store.Tx) error {
		changes, err := tx.Changes(ctx, bounded(req.GetLimit(), defaultRecords, maxRecords))
		if err != nil {
			return err
		}
		res.Changes = nil
		for _, c := range changes {
			res.Changes = append(res.Changes, &adminv1.Change{
				Sequence: c.Sequence, AtMs: c.At.UnixMilli(), Actor: c.Actor, Action: c.Action, Object: c.Object,
				Detail: c.Detail, Hash: hex.EncodeToString(c.Hash), Revision: c.Revision,
			})
		}
		return nil
	})
	return res, err
}

// callersTenant is the tenant that the request is about.
func callersTenant(ctx context.Context) (controlplane.TenantID, error) {
	c := controlplane.CallerFrom(ctx)
	if c.TenantID == "" {
		return "", problem.New(problem.Unauthenticated, "the request names no caller", "log in with `mcpvault login`")
	}
	return c.TenantID, nil
}

func bounded(asked uint32, otherwise, most int) int {
	if asked == 0 {
		return otherwise
	}
	return min(int(asked), most)
}

func wireRecord(r store.AuditRecord) *adminv1.AuditRecord {
	return &adminv1.AuditRecord{LogId: r.LogID, Index: uint64(r.Index), Leaf: r.Leaf, ReceivedMs: r.ReceivedAt.UnixMilli()}
}

func wireLog(l store.AuditLog) *adminv1.AuditLog {
	w := &adminv1.AuditLog{
		LogId: l.ID, Cell: l.Cell, Node: l.Node, VerifierKey: l.VerifierKey, Size: uint64(l.Size),
		Checkpoint: l.Checkpoint, Alarm: l.Alarm,
	}
	if !l.WitnessedAt.IsZero() {
		w.WitnessedMs = l.WitnessedAt.UnixMilli()
	}
	return w
}
