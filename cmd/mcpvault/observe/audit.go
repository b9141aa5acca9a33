package observe

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/proof"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// followEvery is how often tail looks for new records.
const followEvery = 300 * time.Millisecond

type recordView struct {
	ID        string   `json:"id"`
	Time      string   `json:"time"`
	Kind      string   `json:"kind"`
	Code      string   `json:"code"`
	Org       string   `json:"org,omitempty"`
	Principal string   `json:"principal,omitempty"`
	Actor     string   `json:"actor,omitempty"`
	Method    string   `json:"method,omitempty"`
	Server    string   `json:"server,omitempty"`
	Target    string   `json:"target,omitempty"`
	Effect    string   `json:"effect,omitempty"`
	Decision  string   `json:"decision,omitempty"`
	Reason    string   `json:"reason,omitempty"`
	Outcome   string   `json:"outcome,omitempty"`
	Grants    []string `json:"grants,omitempty"`
	Snapshot  string   `json:"snapshot,omitempty"`
	Node      string   `json:"node"`
	IntentID  string   `json:"intent_id,omitempty"`
	RequestID string   `json:"request_id,omitempty"`
	LatencyUS int64    `json:"latency_us,omitempty"`
	Client    string   `json:"client,omitempty"`
	Address   string   `json:"address,omitempty"`
	// What the decision was made on: see mcpvault access replay.
	Region     string   `json:"region,omitempty"`
	Item       string   `json:"item,omitempty"`
	DecidedAt  string   `json:"decided_at,omitempty"`
	Digest     string   `json:"snapshot_sha256,omitempty"`
	State      string   `json:"state_hash,omitempty"`
	Conditions []string `json:"conditions,omitempty"`
	Detail     string   `json:"detail,omitempty"`
	Log        string   `json:"log"`
	Index      uint64   `json:"index"`
	Proof      string   `json:"proof,omitempty"`
}

func viewRecord(r *proof.Record) recordView {
	v := recordView{
		ID: r.GetId(), Time: output.Time(r.GetTimeMs()), Kind: output.Word(r.GetKind().String(), "RECORD_KIND_"), Code: r.GetCode(),
		Org: r.GetTenant(), Principal: r.GetPrincipal().GetName(), Actor: r.GetActor().GetName(), Method: r.GetMethod(),
		Server: r.GetServer(), Target: r.GetTarget(), Effect: output.Word(r.GetEffect().String(), "EFFECT_"),
		Decision: output.Word(r.GetDecision().String(), "DECISION_"), Reason: r.GetReason(), Outcome: r.GetOutcome(), Grants: r.GetGrants(),
		Snapshot: fmt.Sprintf("%d.%d", r.GetEpoch(), r.GetGeneration()), Node: r.GetCell() + "/" + r.GetNode(), IntentID: r.GetIntentId(),
		RequestID: r.GetRequestId(), LatencyUS: r.GetLatencyUs(), Detail: r.GetDetail(), Log: r.LogID, Index: r.Index,
		Client:  strings.TrimSpace(r.GetClient().GetName() + " " + r.GetClient().GetVersion()),
		Address: r.GetClient().GetAddress(), Region: r.GetRegion(), Item: r.GetItem(), DecidedAt: output.Time(r.GetDecisionMs()),
		Digest: hex.EncodeToString(r.GetHeadSha256()), State: hex.EncodeToString(r.GetStateHash()),
	}
	for _, c := range r.GetConditions() {
		v.Conditions = append(v.Conditions, fmt.Sprintf("%d %s", c.GetProgram(), output.Word(c.GetOutcome().String(), "OUTCOME_")))
	}
	switch {
	case r.Proven:
		v.Proof = fmt.Sprintf("included in the signed tree of %d records", r.Size)
	case r.Unproven != "":
		v.Proof = "not yet: " + r.Unproven
	}
	return v
}

func (v recordView) what() string {
	if v.Server == "" && v.Target == "" {
		return v.Method
	}
	return strings.TrimSpace(v.Method + " " + strings.Trim(v.Server+"/"+v.Target, "/"))
}

func recordColumns() []output.Column[recordView] {
	return []output.Column[recordView]{
		{Head: "ID", Cell: func(v recordView) string { return v.ID }},
		{Head: "TIME", Cell: func(v recordView) string { return v.Time }},
		{Head: "KIND", Cell: func(v recordView) string { return v.Kind }},
		{Head: "PRINCIPAL", Cell: func(v recordView) string { return v.Principal }},
		{Head: "WHAT", Cell: recordView.what},
		{Head: "DECISION", Cell: func(v recordView) string { return v.Decision }},
		{Head: "REASON", Cell: func(v recordView) string { return v.Reason }},
		{Head: "OUTCOME", Cell: func(v recordView) string { return v.Outcome }},
		{Head: "NODE", Cell: func(v recordView) string { return v.Node }},
		{Head: "CODE", Cell: func(v recordView) string { return v.Code }, Wide: true},
		{Head: "EFFECT", Cell: func(v recordView) string { return v.Effect }, Wide: true},
		{Head: "SNAPSHOT", Cell: func(v recordView) string { return v.Snapshot }, Wide: true},
		{Head: "INTENT", Cell: func(v recordView) string { return v.IntentID }, Wide: true},
		{Head: "ADDRESS", Cell: func(v recordView) string { return v.Address }, Wide: true},
		{Head: "ACTOR", Cell: func(v recordView) string { return v.Actor }, Wide: true},
		{Head: "REGION", Cell: func(v recordView) string { return v.Region }, Wide: true},
		{Head: "INDEX", Cell: func(v recordView) string { return fmt.Sprint(v.Index) }, Wide: true},
	}
}

// filter is what search and tail look for.
type filter struct {
	principal, server, tool, decision, since string
	limit                                    uint32
}

func (f *filter) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.principal, "principal", "", "only calls of this user")
	cmd.Flags().StringVar(&f.server, "server", "", "only calls of this server")
	cmd.Flags().StringVar(&f.tool, "tool", "", "only calls of this tool")
	cmd.Flags().StringVar(&f.decision, "decision", "", "only allow, or only deny")
	cmd.Flags().StringVar(&f.since, "since", "", "not before: a length of time like 1h or 7d, or a time like 2026-11-22T10:00:00Z")
	cmd.Flags().Uint32Var(&f.limit, "limit", 50, "how many at most")
}

func (f *filter) request(tenant string) (*adminv1.SearchRecordsRequest, error) {
	req := &adminv1.SearchRecordsRequest{
		Tenant: tenant, Principal: f.principal, Server: f.server, Target: f.tool, Decision: f.decision, Limit: f.limit,
	}
	if f.since == "" {
		return req, nil
	}
	if t, err := time.Parse(time.RFC3339, f.since); err == nil {
		req.SinceMs = t.UnixMilli()
		return req, nil
	}
	d, err := cli.Duration(f.since)
	if err != nil {
		return nil, problem.Newf(problem.Invalid, "write it like 1h, 7d or 2026-11-22T10:00:00Z", "%q is not a time", f.since)
	}
	req.SinceMs = time.Now().Add(-d).UnixMilli()
	return req, nil
}

func auditCommand(a *cli.App) *cobra.Command {
	return a.Group("audit", "What happened: every request, decided or refused, in logs that cannot be changed unnoticed.", "  mcpvault audit tail -f",
		auditTail(a), auditSearch(a), auditGet(a), auditVerify(a), auditChanges(a))
}

func auditSearch(a *cli.App) *cobra.Command {
	f := &filter{}
	cmd := a.AdminLeaf("search", "Finds records.", "  mcpvault audit search --principal alice --decision deny --since 24h", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			req, err := f.request(tenant)
			if err != nil {
				return err
			}
			rows, _, err := search(ctx, a, c, req)
			if err != nil {
				return err
			}
			return cli.PrintList(a, rows, recordColumns()...)
		})
	f.flags(cmd)
	return cmd
}

func search(ctx context.Context, a *cli.App, c *admin.Client, req *adminv1.SearchRecordsRequest) ([]recordView, int64, error) {
	resp, err := c.Audit.SearchRecords(ctx, req)
	if err != nil {
		return nil, 0, err
	}
	rows := make([]recordView, 0, len(resp.GetRecords()))
	for _, raw := range resp.GetRecords() {
		r, err := proof.ReadRecord(raw)
		if err != nil {
			a.Warnf("%v", err)
			continue
		}
		rows = append(rows, viewRecord(r))
	}
	return rows, resp.GetLast(), nil
}

func auditTail(a *cli.App) *cobra.Command {
	f := &filter{}
	var follow bool
	cmd := a.LongLeaf("tail", "Shows the newest records, and with -f those that come.", "  mcpvault audit tail -f --principal alice", cli.Args(),
		func(ctx context.Context, _ []string) error {
			c, used, err := a.Admin()
			if err != nil {
				return err
			}
			req, err := f.request(used.Tenant)
			if err != nil {
				return err
			}
			for first := true; ; first = false {
				call, cancel := context.WithTimeout(ctx, a.Timeout())
				rows, last, err := search(call, a, c, req)
				cancel()
				if ctx.Err() != nil {
					return nil //nolint:nilerr // The person has seen enough.
				}
				if err != nil {
					return err
				}
				if first || len(rows) > 0 {
					if err := printTail(a, rows, first, follow); err != nil {
						return err
					}
				}
				if !follow {
					return nil
				}
				req.After = max(req.GetAfter(), last)
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(followEvery):
				}
			}
		})
	f.flags(cmd)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more; end with Ctrl-C")
	return cmd
}

// printTail prints a page. While following, JSON is one record a line, so that a program can read it as it comes.
func printTail(a *cli.App, rows []recordView, first, follow bool) error {
	if !follow {
		return cli.PrintList(a, rows, recordColumns()...)
	}
	if a.Format() == output.JSON || a.Format() == output.YAML {
		for _, r := range rows {
			if err := output.Line(a.World().Stdout, r); err != nil {
				return err
			}
		}
		return nil
	}
	columns := recordColumns()
	if !first {
		for i := range columns {
			columns[i].Head = "" // The heads stand above already.
		}
	}
	return cli.PrintList(a, rows, columns...)
}

func auditGet(a *cli.App) *cobra.Command {
	return a.AdminLeaf("get ID", "Shows every record of one decision, with the proof that it is in its log.",
		"  mcpvault audit get 01K8Z3V9QJ7W2M5T4R6Y8X0ABC -o json", cli.Args("ID"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Audit.GetRecord(ctx, &adminv1.GetRecordRequest{Tenant: tenant, Id: args[0]})
			if err != nil {
				return err
			}
			rows := make([]recordView, 0, len(resp.GetRecords()))
			for _, p := range resp.GetRecords() {
				r, err := proof.CheckRecord(p)
				if err != nil {
					return err
				}
				rows = append(rows, viewRecord(r))
			}
			columns := append(recordColumns(), output.Column[recordView]{Head: "PROOF", Cell: func(v recordView) string { return v.Proof }})
			return cli.PrintList(a, rows, columns...)
		})
}

type changeView struct {
	Sequence uint64 `json:"sequence"`
	At       string `json:"at"`
	Actor    string `json:"actor"`
	Action   string `json:"action"`
	Object   string `json:"object"`
	Detail   string `json:"detail,omitempty"`
	Hash     string `json:"hash"`
	Revision uint64 `json:"revision"`
}

func auditChanges(a *cli.App) *cobra.Command {
	var limit uint32
	cmd := a.AdminLeaf("changes", "Lists who changed what in the control plane, newest first.", "  mcpvault audit changes --limit 10", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := c.Audit.ListChanges(ctx, &adminv1.ListChangesRequest{Tenant: tenant, Limit: limit})
			if err != nil {
				return err
			}
			rows := output.Map(resp.GetChanges(), func(c *adminv1.Change) changeView {
				return changeView{c.GetSequence(), output.Time(c.GetAtMs()), c.GetActor(), c.GetAction(), c.GetObject(), c.GetDetail(), c.GetHash(), c.GetRevision()}
			})
			return cli.PrintList(a, rows,
				output.Column[changeView]{Head: "SEQUENCE", Cell: func(v changeView) string { return fmt.Sprint(v.Sequence) }},
				output.Column[changeView]{Head: "TIME", Cell: func(v changeView) string { return v.At }},
				output.Column[changeView]{Head: "ACTOR", Cell: func(v changeView) string { return v.Actor }},
				output.Column[changeView]{Head: "ACTION", Cell: func(v changeView) string { return v.Action }},
				output.Column[changeView]{Head: "OBJECT", Cell: func(v changeView) string { return v.Object }},
				output.Column[changeView]{Head: "REVISION", Cell: func(v changeView) string { return fmt.Sprint(v.Revision) }},
				output.Column[changeView]{Head: "DETAIL", Cell: func(v changeView) string { return v.Detail }, Wide: true},
				output.Column[changeView]{Head: "HASH", Cell: func(v changeView) string { return v.Hash }, Wide: true})
		})
	cmd.Flags().Uint32Var(&limit, "limit", 50, "how many")
	return cmd
}
