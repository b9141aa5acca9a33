package access

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/replay"
)

// Replay makes a recorded decision of the caller's tenant again, under the generation that its record names, and compares.
func (s *Service) Replay(ctx context.Context, req *adminv1.ReplayRequest) (*adminv1.ReplayResponse, error) {
	var args []byte
	if req.GetArguments() != "" {
		args = []byte(req.GetArguments())
		if err := checkArguments(args); err != nil {
			return nil, err
		}
	}
	var rec *auditv1.Record
	v := &view{}
	err := s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, func(tx *store.Tx) (err error) {
		if rec, err = recordOf(ctx, tx, req.GetId()); err != nil {
			return err
		}
		version := snapshot.Version{Epoch: snapshot.Epoch(rec.GetEpoch()), Generation: snapshot.Generation(rec.GetGeneration())}
		if version == (snapshot.Version{}) {
			return problem.Newf(problem.Invalid, noDecisionFix, "decision %s was made before any policy was read", req.GetId())
		}
		return s.views.read(ctx, tx, v, version)
	})
	if err != nil {
		return nil, err
	}
	out, err := replay.Decide(v.index, rec, args)
	if errors.Is(err, replay.ErrNoDecision) {
		return nil, problem.Newf(problem.Invalid, noDecisionFix, "record %s (%s, %s) holds no decision about a tool, a prompt or a resource",
			req.GetId(), rec.GetMethod(), rec.GetReason())
	}
	if err != nil {
		return nil, fmt.Errorf("replay %s: %w", req.GetId(), err)
	}
	return showReplay(v, rec, out), nil
}

const noDecisionFix = "give the id of a tools/call, prompts/get or resources/read, as `mcpvault audit tail` lists them"

func showReplay(v *view, rec *auditv1.Record, out *replay.Result) *adminv1.ReplayResponse {
	if !slices.Equal(rec.GetHeadSha256(), v.digest) {
		out.Differences = append(out.Differences, replay.Difference{
			Field: "generation", Recorded: fmt.Sprintf("%x", rec.GetHeadSha256()), Replayed: fmt.Sprintf("%x", v.digest),
		})
	}
	state := v.index.StateHash()
	res := &adminv1.ReplayResponse{
		Same: len(out.Differences) == 0, Epoch: v.epoch, Generation: v.generation, StateHash: state[:],
		Principal: rec.GetPrincipal().GetName(), Server: rec.GetServer(), Item: itemWord(rec.GetItem()), DecidedMs: rec.GetDecisionMs(),
		Allowed: out.Decision.Allow, Reason: out.Reason, Grants: out.Grants, Evaluated: out.Evaluated, Overruled: out.Overruled,
	}
	for _, d := range out.Differences {
		res.Differences = append(res.Differences, &adminv1.ReplayDifference{Field: d.Field, Recorded: d.Recorded, Replayed: d.Replayed})
	}
	return res
}

// itemWord is an item as people name it.
func itemWord(item string) string {
	kind, name := snapshot.KindOf(item)
	return thing{kind: kind, name: name}.word()
}

// recordOf finds the record of a decision, by its own id or by that of what became of it.
func recordOf(ctx context.Context, tx *store.Tx, id string) (*auditv1.Record, error) {
	list, err := tx.AuditDecision(ctx, id)
	if err != nil {
		return nil, err
	}
	of := func(id string) int {
		return slices.IndexFunc(list, func(r store.AuditRecord) bool { return r.ID == id })
	}
	i := of(id)
	if i >= 0 && list[i].IntentID != "" {
		intent := list[i].IntentID
		if list, err = tx.AuditDecision(ctx, intent); err != nil {
			return nil, err
		}
		i = of(intent)
	}
	if i < 0 {
		return nil, problem.Newf(problem.NotFound, "a record arrives within a second of its call while its cell is connected; `mcpvault audit tail` shows the newest",
			"there is no audit record %s", id)
	}
	rec := &auditv1.Record{}
	if err := proto.Unmarshal(list[i].Leaf, rec); err != nil {
		return nil, problem.Newf(problem.Invalid, "look at it with `mcpvault audit get`", "record %s cannot be read", id).Because(err)
	}
	return rec, nil
}
