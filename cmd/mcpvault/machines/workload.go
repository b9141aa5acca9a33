package machines

import (
	"context"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type svidView struct {
	ID    string `json:"spiffe_id"`
	Dir   string `json:"dir"`
	Until string `json:"not_after"`
}

// WorkloadSVID is `workload svid`.
func WorkloadSVID(a *cli.App) *cobra.Command {
	var cell, out string
	ttl := time.Hour
	cmd := a.AdminLeaf("svid NAME", "Makes a key for a workload here, and has an SVID of at most an hour signed for it by the authority of the cell's workloads.",
		`  mcpvault workload create spiffe://eu-west.workloads.mcpvault.example/org/acme/billing
  mcpvault workload svid billing --cell eu-west --out /run/billing      # svid.pem, key.pem, bundle.pem; again before the hour is over`,
		cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			if cell == "" || out == "" {
				return problem.New(problem.Invalid, "--cell and --out are required", "see `mcpvault cell list`")
			}
			req := &adminv1.IssueWorkloadRequest{Tenant: tenant, Cell: cell, Name: args[0]}
			about, err := c.Identity.IssueWorkload(ctx, req)
			if err != nil {
				return err
			}
			id, err := svid.ParseID(about.GetSpiffeId())
			if err != nil {
				return err
			}
			key, err := svid.NewKey()
			if err != nil {
				return err
			}
			if req.Csr, err = svid.NewRequest(key, id); err != nil {
				return err
			}
			req.Ttl = durationpb.New(ttl)
			resp, err := c.Identity.IssueWorkload(ctx, req)
			if err != nil {
				return err
			}
			if _, err := svid.Issued(resp.GetSvid(), key, resp.GetBundle(), id, time.Now()); err != nil {
				return problem.New(problem.Internal, "what the control plane signed is not what was asked for", "compare the clocks; the control plane's log says more").Because(err)
			}
			dir, err := filepath.Abs(out)
			if err != nil {
				return err
			}
			if err := svid.WriteIdentity(dir, resp.GetSvid(), key, resp.GetBundle()); err != nil {
				return problem.Newf(problem.Invalid, "choose another --out", "the SVID cannot be written to %s", dir).Because(err)
			}
			return cli.Print(a, svidView{id.String(), dir, output.Time(resp.GetNotAfterMs())},
				output.Column[svidView]{Head: "SPIFFE ID", Cell: func(v svidView) string { return v.ID }},
				output.Column[svidView]{Head: "UNTIL", Cell: func(v svidView) string { return v.Until }},
				output.Column[svidView]{Head: "DIR", Cell: func(v svidView) string { return v.Dir }})
		})
	cmd.Flags().StringVar(&cell, "cell", "", "the cell that it is to call")
	cmd.Flags().StringVar(&out, "out", "", "directory for svid.pem, key.pem and bundle.pem")
	cmd.Flags().DurationVar(&ttl, "ttl", ttl, "how long it is good, from 1m to 1h")
	return cmd
}
