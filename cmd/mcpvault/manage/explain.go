package manage

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/mcpclient"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func accessCommand(a *cli.App) *cobra.Command {
	return a.Group("access", "Who may do what, and why.", "  mcpvault access explain alice payments/refund amount=500",
		explainCommand(a), whoCanCommand(a), whatCanCommand(a), replayCommand(a))
}

type explanation struct {
	Allowed  bool             `json:"allowed"`
	Visible  bool             `json:"visible"`
	Reason   string           `json:"reason"`
	Sentence string           `json:"sentence"`
	Grants   []explainedGrant `json:"grants"`
	Fixes    []string         `json:"fixes"`
	Snapshot string           `json:"snapshot"`
}

type explainedGrant struct {
	grantView
	Path    string `json:"path"`
	Outcome string `json:"outcome"`
	Detail  string `json:"detail,omitempty"`
	Policy  string `json:"policy,omitempty"`
	Decided bool   `json:"decided"`
}

// circumstances are what a decision may depend on besides the arguments.
type circumstances struct{ ip, at, actor, region string }

func (c *circumstances) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.ip, "ip", "", "address that the call comes from; not known when not given")
	cmd.Flags().StringVar(&c.at, "at", "", "time of the call, for example 2026-11-24T18:00:00Z; now when not given")
	cmd.Flags().StringVar(&c.actor, "acting", "", "who acts for the principal; nobody when not given")
	cmd.Flags().StringVar(&c.region, "region", "", "region of the cell; none when not given")
}

func (c *circumstances) fill(req *adminv1.ExplainRequest) error {
	if c.ip != "" {
		if _, err := netip.ParseAddr(c.ip); err != nil {
			return problem.Newf(problem.Invalid, "write one like 192.0.2.7 or 2001:db8::7", "--ip: %q is no address", c.ip)
		}
	}
	if c.at != "" {
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil || at.UnixMilli() <= 0 {
			return problem.Newf(problem.Invalid, "write it like 2026-11-24T18:00:00Z, or with an offset: 2026-11-24T18:00:00+01:00", "--at: %q is no time", c.at)
		}
		req.AtMs = at.UnixMilli()
	}
	req.Ip, req.Actor, req.Region = c.ip, c.actor, c.region
	return nil
}

func explainCommand(a *cli.App) *cobra.Command {
	var raw string
	var c circumstances
	cmd := a.AdminLeaf("explain PRINCIPAL SERVER/TOOL [KEY=VALUE...]", "Decides as a cell would, and says why and what would change it. Exit status 4 when it is denied.",
		`  mcpvault access explain alice payments/refund amount=500
  mcpvault access explain alice payments/refund amount=500 --ip 203.0.113.7 --at 2026-11-24T22:00:00Z
  mcpvault access explain alice docs/prompt:review --acting bot
  mcpvault access explain alice docs/resource:file:///pub/a.md --region eu
  mcpvault access explain alice demo/echo -o json`, cli.Args("PRINCIPAL", "SERVER/TOOL", "[KEY=VALUE...]"),
		func(ctx context.Context, cl *admin.Client, tenant string, args []string) error {
			server, tool, err := mcpclient.SplitTool(strings.TrimPrefix(args[1], "server:"))
			if err != nil {
				return err
			}
			req := &adminv1.ExplainRequest{Tenant: tenant, Principal: strings.TrimPrefix(args[0], "user:"), Server: server, Tool: tool}
			if err := c.fill(req); err != nil {
				return err
			}
			if req.Arguments, err = explainArguments(ctx, cl, tenant, server, tool, args[2:], raw); err != nil {
				return err
			}
			resp, err := cl.Access.Explain(ctx, req)
			if err != nil {
				return err
			}
			e := viewExplanation(resp)
			if err := printExplanation(a, e); err != nil {
				return err
			}
			if !e.Allowed {
				return cli.Exit(problem.Denied.Exit())
			}
			return nil
		})
	cmd.Flags().StringVar(&raw, "args", "", "the call's arguments as a JSON object")
	c.flags(cmd)
	return cmd
}

// explainArguments types key=value words by the schema of the published version.
func explainArguments(ctx context.Context, c *admin.Client, tenant, server, tool string, words []string, raw string) (string, error) {
	if raw != "" || len(words) == 0 {
		return raw, nil
	}
	var schema []byte
	if resp, err := c.Registry.GetServer(ctx, &adminv1.GetServerRequest{Tenant: tenant, Name: server}); err == nil {
		schema = schemaOf(resp.GetVersion(), strings.TrimPrefix(tool, "tool:"))
	}
	typed, err := mcpclient.Arguments(words, schema)
	return string(typed), err
}

func viewExplanation(r *adminv1.ExplainResponse) explanation {
	return explanation{
		Allowed: r.GetAllowed(), Visible: r.GetVisible(), Reason: r.GetReason(), Sentence: r.GetSentence(),
		Grants: output.Map(r.GetGrants(), func(g *adminv1.ExplainedGrant) explainedGrant {
			return explainedGrant{viewGrant(g.GetGrant()), g.GetPath(), g.GetOutcome(), g.GetDetail(), g.GetPolicy(), g.GetDecided()}
		}),
		Fixes: append([]string{}, r.GetFixes()...), Snapshot: fmt.Sprintf("%d.%d", r.GetEpoch(), r.GetGeneration()),
	}
}

func explanationColumns() []output.Column[explanation] {
	return []output.Column[explanation]{
		{Head: "REASON", Cell: func(e explanation) string { return e.Reason }},
		{Head: "ALLOWED", Cell: func(e explanation) string { return output.YesNo(e.Allowed) }},
		{Head: "VISIBLE", Cell: func(e explanation) string { return output.YesNo(e.Visible) }},
		{Head: "SNAPSHOT", Cell: func(e explanation) string { return e.Snapshot }},
		{Head: "SENTENCE", Cell: func(e explanation) string { return e.Sentence }},
	}
}

func printExplanation(a *cli.App, e explanation) error {
	if a.Format() != output.Table && a.Format() != output.Wide {
		return cli.Print(a, e, explanationColumns()...)
	}
	w := &lines{w: a.World().Stdout}
	verdict := "denied"
	if e.Allowed {
		verdict = "allowed"
	}
	w.printf("%s: %s (%s, snapshot %s)", verdict, e.Sentence, e.Reason, e.Snapshot)
	for _, g := range e.Grants {
		w.printf("  %s", g.line())
	}
	if !e.Allowed && len(e.Fixes) > 0 {
		w.printf("what would allow it:")
		for _, f := range e.Fixes {
			w.printf("  %s", f)
		}
	}
	return w.err
}

func (g explainedGrant) line() string {
	line := g.Effect + " " + g.Subject
	if g.Target != "" {
		line += " on " + g.Target
	}
	if c := g.clause(); c != "" {
		line += " " + c
	}
	line += ": " + g.Outcome
	if g.Detail != "" {
		line += ", " + g.Detail
	}
	source := "grant " + g.ID
	if g.Policy != "" {
		source = "policy " + g.Policy
	}
	return line + " (through " + g.Path + ", " + source + ")"
}

// lines prints lines and remembers the first failure.
type lines struct {
	w   io.Writer
	err error
}

func (l *lines) printf(format string, args ...any) {
	if l.err == nil {
		_, l.err = fmt.Fprintln(l.w, output.Clean(fmt.Sprintf(format, args...)))
	}
}
