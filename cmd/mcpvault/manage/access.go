package manage

import (
	"context"
	"fmt"
	"io"
	"strings"

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
		explainCommand(a), whoCanCommand(a))
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
}

func explainCommand(a *cli.App) *cobra.Command {
	var raw string
	cmd := a.AdminLeaf("explain PRINCIPAL SERVER/TOOL [KEY=VALUE...]", "Decides as a cell would, and says why and what would change it. Exit status 4 when it is denied.",
		`  mcpvault access explain alice payments/refund amount=500
  mcpvault access explain alice demo/echo -o json`, cli.Args("PRINCIPAL", "SERVER/TOOL", "[KEY=VALUE...]"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			server, tool, err := mcpclient.SplitTool(strings.TrimPrefix(args[1], "server:"))
			if err != nil {
				return err
			}
			arguments, err := explainArguments(ctx, c, tenant, server, tool, args[2:], raw)
			if err != nil {
				return err
			}
			resp, err := c.Access.Explain(ctx, &adminv1.ExplainRequest{
				Tenant: tenant, Principal: strings.TrimPrefix(args[0], "user:"), Server: server, Tool: tool, Arguments: arguments,
			})
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
	return cmd
}

// explainArguments types key=value words by the schema of the published version.
func explainArguments(ctx context.Context, c *admin.Client, tenant, server, tool string, words []string, raw string) (string, error) {
	if raw != "" || len(words) == 0 {
		return raw, nil
	}
	var schema []byte
	if resp, err := c.Registry.GetServer(ctx, &adminv1.GetServerRequest{Tenant: tenant, Name: server}); err == nil {
		schema = schemaOf(resp.GetVersion(), tool)
	}
	typed, err := mcpclient.Arguments(words, schema)
	return string(typed), err
}

func viewExplanation(r *adminv1.ExplainResponse) explanation {
	return explanation{
		Allowed: r.GetAllowed(), Visible: r.GetVisible(), Reason: r.GetReason(), Sentence: r.GetSentence(),
		Grants: output.Map(r.GetGrants(), func(g *adminv1.ExplainedGrant) explainedGrant {
			return explainedGrant{viewGrant(g.GetGrant()), g.GetPath(), g.GetOutcome()}
		}),
		Fixes: append([]string{}, r.GetFixes()...), Snapshot: fmt.Sprintf("%d.%d", r.GetEpoch(), r.GetGeneration()),
	}
}

func printExplanation(a *cli.App, e explanation) error {
	if a.Format() != output.Table && a.Format() != output.Wide {
		return cli.Print(a, e, output.Column[explanation]{Head: "REASON", Cell: func(e explanation) string { return e.Reason }})
	}
	w := &lines{w: a.World().Stdout}
	verdict := "denied"
	if e.Allowed {
		verdict = "allowed"
	}
	w.printf("%s: %s (%s, snapshot %s)", verdict, e.Sentence, e.Reason, e.Snapshot)
	for _, g := range e.Grants {
		line := fmt.Sprintf("  %s %s on %s", g.Effect, g.Subject, g.Target)
		if c := g.clause(); c != "" {
			line += " " + c
		}
		w.printf("%s: %s (through %s, grant %s)", line, g.Outcome, g.Path, g.ID)
	}
	if !e.Allowed && len(e.Fixes) > 0 {
		w.printf("what would allow it:")
		for _, f := range e.Fixes {
			w.printf("  %s", f)
		}
	}
	return w.err
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

type holderView struct {
	User       string   `json:"user"`
	Access     string   `json:"access"`
	Paths      []string `json:"paths"`
	Conditions []string `json:"conditions"`
}

func whoCanCommand(a *cli.App) *cobra.Command {
	return a.AdminLeaf("who-can SERVER[/TOOL]", "Lists everybody who may use a server or tool, and by which way.",
		"  mcpvault access who-can payments/refund", cli.Args("SERVER[/TOOL]"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			server, tool, _ := strings.Cut(strings.TrimPrefix(args[0], "server:"), "/")
			resp, err := c.Access.WhoCan(ctx, &adminv1.WhoCanRequest{Tenant: tenant, Server: server, Tool: tool})
			if err != nil {
				return err
			}
			rows := output.Map(resp.GetHolders(), func(h *adminv1.Holder) holderView {
				return holderView{h.GetUser(), h.GetAccess(), append([]string{}, h.GetPaths()...), append([]string{}, h.GetConditions()...)}
			})
			return cli.PrintList(a, rows,
				output.Column[holderView]{Head: "USER", Cell: func(v holderView) string { return v.User }},
				output.Column[holderView]{Head: "ACCESS", Cell: func(v holderView) string { return v.Access }},
				output.Column[holderView]{Head: "THROUGH", Cell: func(v holderView) string { return strings.Join(v.Paths, "; ") }},
				output.Column[holderView]{Head: "CONDITIONS", Cell: func(v holderView) string { return strings.Join(v.Conditions, "; ") }})
		})
}
