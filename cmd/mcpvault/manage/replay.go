package manage

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type replayView struct {
	Decision  string   `json:"decision"`
	Same      bool     `json:"same"`
	Principal string   `json:"principal"`
	Server    string   `json:"server"`
	Item      string   `json:"item"`
	At        string   `json:"at"`
	Effect    string   `json:"effect"`
	Reason    string   `json:"reason"`
	Overruled string   `json:"overruled,omitempty"`
	Grants    []string `json:"grants"`
	Snapshot  string   `json:"snapshot"`
	StateHash string   `json:"state_hash"`
	// Conditions says what they were judged by: record or arguments.
	Conditions  string           `json:"conditions"`
	Differences []differenceView `json:"differences"`
}

type differenceView struct {
	Field    string `json:"field"`
	Recorded string `json:"recorded"`
	Replayed string `json:"replayed"`
}

func replayCommand(a *cli.App) *cobra.Command {
	var raw string
	cmd := a.AdminLeaf("replay DECISION", "Makes a recorded decision again, under the policy that was in force, and compares. Exit status 1 when it comes out otherwise.",
		`  mcpvault access replay 01K8Z3V9QJ7W2M5T4R6Y8X0ABC
  mcpvault access replay 01K8Z3V9QJ7W2M5T4R6Y8X0ABC --args '{"amount": 500}'   # evaluates the conditions anew`, cli.Args("DECISION"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Access.Replay(ctx, &adminv1.ReplayRequest{Tenant: tenant, Id: args[0], Arguments: raw})
			if err != nil {
				return err
			}
			if err := printReplay(a, viewReplay(args[0], resp)); err != nil {
				return err
			}
			if !resp.GetSame() {
				return cli.Exit(1)
			}
			return nil
		})
	cmd.Flags().StringVar(&raw, "args", "", "the call's arguments as a JSON object; records do not hold them")
	return cmd
}

func viewReplay(id string, r *adminv1.ReplayResponse) replayView {
	v := replayView{
		Decision: id, Same: r.GetSame(), Principal: r.GetPrincipal(), Server: r.GetServer(), Item: r.GetItem(), At: output.Time(r.GetDecidedMs()),
		Effect: "deny", Reason: r.GetReason(), Overruled: r.GetOverruled(), Grants: append([]string{}, r.GetGrants()...),
		Snapshot: fmt.Sprintf("%d.%d", r.GetEpoch(), r.GetGeneration()), StateHash: hex.EncodeToString(r.GetStateHash()),
		Conditions: "record",
		Differences: output.Map(r.GetDifferences(), func(d *adminv1.ReplayDifference) differenceView {
			return differenceView{d.GetField(), d.GetRecorded(), d.GetReplayed()}
		}),
	}
	if r.GetAllowed() {
		v.Effect = "allow"
	}
	if r.GetEvaluated() {
		v.Conditions = "arguments"
	}
	return v
}

func printReplay(a *cli.App, v replayView) error {
	if a.Format() != output.Table && a.Format() != output.Wide {
		return cli.Print(a, v,
			output.Column[replayView]{Head: "DECISION", Cell: func(v replayView) string { return v.Decision }},
			output.Column[replayView]{Head: "SAME", Cell: func(v replayView) string { return output.YesNo(v.Same) }},
			output.Column[replayView]{Head: "EFFECT", Cell: func(v replayView) string { return v.Effect }},
			output.Column[replayView]{Head: "REASON", Cell: func(v replayView) string { return v.Reason }},
			output.Column[replayView]{Head: "SNAPSHOT", Cell: func(v replayView) string { return v.Snapshot }})
	}
	w := &lines{w: a.World().Stdout}
	verdict := "same"
	if !v.Same {
		verdict = "differs"
	}
	w.printf("%s: %s for %s on %s/%s at %s (%s, snapshot %s)", verdict, v.Effect, v.Principal, v.Server, v.Item, v.At, v.Reason, v.Snapshot)
	w.printf("  conditions by the %s; grants: %s", v.Conditions, output.OrDash(strings.Join(v.Grants, ", ")))
	w.printf("  state %s", v.StateHash)
	if v.Overruled != "" {
		w.printf("  the call was refused all the same: %s", v.Overruled)
	}
	for _, d := range v.Differences {
		w.printf("  %s: recorded %s, now %s", d.Field, output.OrDash(d.Recorded), output.OrDash(d.Replayed))
	}
	return w.err
}
