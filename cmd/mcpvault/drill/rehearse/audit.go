package rehearse

import (
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/bench/drill/judge"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/kit/tlog/check"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// page is how many leaves of a log are read at once.
const page = 5000

// skip notes how long the logs are, so that a drill's records are those after.
func (s *Stage) skip(ctx context.Context) error {
	_, err := s.records(ctx)
	return err
}

// records reads what the control plane has of every log since it was last asked.
func (s *Stage) records(ctx context.Context) (all []judge.Record, err error) {
	logs, err := s.site.Admin.Audit.ListLogs(ctx, &adminv1.ListLogsRequest{})
	if err != nil {
		return nil, admin.Problem(err, s.site.Admin.URL)
	}
	for _, l := range logs.GetLogs() {
		for {
			resp, err := s.site.Admin.Audit.ReadLog(ctx, &adminv1.ReadLogRequest{LogId: l.GetLogId(), First: s.read[l.GetLogId()], Limit: page})
			if err != nil {
				return nil, admin.Problem(err, s.site.Admin.URL)
			}
			for i, leaf := range resp.GetLeaves() {
				r, err := record(leaf)
				if err != nil {
					return nil, fmt.Errorf("read %s: %w", l.GetLogId(), err)
				}
				r.Where = fmt.Sprintf("%s, %s#%d", r.Where, l.GetLogId(), s.read[l.GetLogId()]+uint64(i))
				all = append(all, r)
			}
			s.read[l.GetLogId()] += uint64(len(resp.GetLeaves()))
			if len(resp.GetLeaves()) < page {
				break
			}
		}
	}
	return all, nil
}

func record(leaf []byte) (judge.Record, error) {
	var r auditv1.Record
	if err := proto.Unmarshal(leaf, &r); err != nil {
		return judge.Record{}, err
	}
	kind := strings.ToLower(strings.TrimPrefix(r.GetKind().String(), "RECORD_KIND_"))
	out := judge.Record{Where: kind + " " + r.GetReason() + " " + r.GetOutcome(), ID: r.GetId(), Intent: r.GetKind() == auditv1.RecordKind_RECORD_KIND_INTENT, Refused: r.GetDecision() == auditv1.Decision_DECISION_DENY}
	switch r.GetKind() {
	case auditv1.RecordKind_RECORD_KIND_OUTCOME, auditv1.RecordKind_RECORD_KIND_UNKNOWN_OUTCOME:
		out.Outcome, out.Of = true, r.GetIntentId()
	default:
	}
	return out, nil
}

// deliveryLimit is how long nodes may take to hand over their records once they are connected.
const deliveryLimit = 20 * time.Second

// audit compares answers and records until none is missing, or until nodes have had time enough to hand them over.
func (s *Stage) audit(ctx context.Context, j *judge.Judge) (judge.Audited, error) {
	var all []judge.Record
	for deadline := time.Now().Add(deliveryLimit); ; {
		more, err := s.records(ctx)
		if err != nil {
			return judge.Audited{}, err
		}
		all = append(all, more...)
		if found := j.Audit(all); found.Lost == 0 || time.Now().After(deadline) {
			return found, nil
		}
		select {
		case <-ctx.Done():
			return judge.Audited{}, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Audit reads every log in full, computes its tree again and holds it against the signed checkpoints. It returns what is wrong.
func (s *Stage) Audit(ctx context.Context) (wrong []string, err error) {
	resp, err := s.site.Admin.Audit.ListLogs(ctx, &adminv1.ListLogsRequest{})
	if err != nil {
		return nil, admin.Problem(err, s.site.Admin.URL)
	}
	var logs []check.Log
	for _, l := range resp.GetLogs() {
		log := check.Log{Origin: l.GetLogId(), VerifierKey: l.GetVerifierKey()}
		if len(l.GetCheckpoint()) > 0 {
			log.Checkpoints = [][]byte{l.GetCheckpoint()}
		}
		logs = append(logs, log)
		if l.GetAlarm() != "" {
			wrong = append(wrong, l.GetLogId()+": "+l.GetAlarm())
		}
	}
	reports, err := check.Online(ctx, logs, nil, func(ctx context.Context, id string, first int64) ([][]byte, error) {
		got, err := s.site.Admin.Audit.ReadLog(ctx, &adminv1.ReadLogRequest{LogId: id, First: uint64(first), Limit: page})
		return got.GetLeaves(), err
	})
	for _, r := range reports {
		if !r.OK() {
			wrong = append(wrong, fmt.Sprintf("%s: %v", r.Origin, r.Fault))
		}
	}
	return wrong, err
}
