package manage

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/mcpclient"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type grantView struct {
	ID        string `json:"id"`
	Effect    string `json:"effect"`
	Subject   string `json:"subject"`
	Target    string `json:"target"`
	Condition string `json:"condition,omitempty"`
	Expires   string `json:"expires,omitempty"`
	Reason    string `json:"reason,omitempty"`
	CreatedBy string `json:"created_by,omitempty"`
	Created   string `json:"created,omitempty"`
}

func viewGrant(g *adminv1.Grant) grantView {
	effect := "allow"
	if g.GetEffect() == adminv1.GrantEffect_GRANT_EFFECT_DENY {
		effect = "deny"
	}
	return grantView{
		g.GetId(), effect, g.GetSubject(), g.GetTarget(), g.GetCondition(), output.Time(g.GetExpiresMs()),
		g.GetReason(), g.GetCreatedBy(), output.Time(g.GetCreatedMs()),
	}
}

func grantColumns() []output.Column[grantView] {
	return []output.Column[grantView]{
		{Head: "ID", Cell: func(v grantView) string { return v.ID }},
		{Head: "EFFECT", Cell: func(v grantView) string { return v.Effect }},
		{Head: "SUBJECT", Cell: func(v grantView) string { return v.Subject }},
		{Head: "TARGET", Cell: func(v grantView) string { return v.Target }},
		{Head: "CONDITION", Cell: func(v grantView) string { return v.Condition }},
		{Head: "EXPIRES", Cell: func(v grantView) string { return v.Expires }},
		{Head: "REASON", Cell: func(v grantView) string { return v.Reason }, Wide: true},
		{Head: "CREATED BY", Cell: func(v grantView) string { return v.CreatedBy }, Wide: true},
		{Head: "CREATED", Cell: func(v grantView) string { return v.Created }, Wide: true},
	}
}

// subject completes the short form of a principal: alice is user:alice.
func subject(s string) string {
	if s == "everyone" || strings.Contains(s, ":") && !strings.HasPrefix(s, "spiffe://") {
		return s
	}
	return "user:" + s
}

// target completes the short form of a server or tool: payments/refund is server:payments/refund.
func target(s string) string {
	if strings.HasPrefix(s, "server:") {
		return s
	}
	return "server:" + s
}

func grantCommand(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var deny bool
	var when, reason, lasting string
	cmd := a.AdminLeaf("grant SUBJECT TARGET", "Lets a user, team, group, unit, role or everyone use a server or one of its tools.",
		`  mcpvault grant user:alice server:payments/refund --when 'context.args.amount < 100' --for 1h --reason "ticket 4711"
  mcpvault grant role:analyst server:demo
  mcpvault grant everyone server:payments/refund --deny
  mcpvault grant alice demo/echo                # short for user:alice server:demo/echo`, cli.Args("SUBJECT", "TARGET"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.CreateGrantRequest{
				Tenant: tenant, Subject: subject(args[0]), Target: target(args[1]), Condition: when, Reason: reason,
				Effect: adminv1.GrantEffect_GRANT_EFFECT_ALLOW,
			}
			if deny {
				req.Effect = adminv1.GrantEffect_GRANT_EFFECT_DENY
			}
			if lasting != "" {
				d, err := cli.Duration(lasting)
				if err != nil {
					return err
				}
				req.ValidFor = durationpb.New(d)
			}
			resp, err := c.Access.CreateGrant(ctx, req)
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return cli.Print(a, viewGrant(resp.GetGrant()), grantColumns()...)
		})
	cmd.Flags().BoolVar(&deny, "deny", false, "forbid instead; what is forbidden no other grant allows")
	cmd.Flags().StringVar(&when, "when", "", "condition on the call's arguments, in Cedar")
	cmd.Flags().StringVar(&lasting, "for", "", "how long it lasts, for example 90m, 1h or 7d; for ever when not given")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for whoever reviews it")
	return a.Publishes(cmd, &w)
}

func revokeCommand(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var deny bool
	var when, id string
	cmd := a.AdminLeaf("revoke SUBJECT TARGET", "Takes away grants that were given with the same words.",
		`  mcpvault revoke user:alice server:payments/refund
  mcpvault revoke everyone server:payments/refund --deny
  mcpvault revoke --id 0197f3c2-5d7e-7c3b-9a51-2f6f1d1f8a10`, cli.Args("[SUBJECT]", "[TARGET]"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.DeleteGrantsRequest{Tenant: tenant, Id: id, Condition: when}
			switch {
			case id != "" && len(args) > 0 || id == "" && len(args) != 2:
				return problem.New(problem.Invalid, "mcpvault revoke needs SUBJECT and TARGET, or --id",
					"for example: `mcpvault revoke user:alice server:payments/refund`")
			case id == "":
				req.Subject, req.Target = subject(args[0]), target(args[1])
				req.Effect = adminv1.GrantEffect_GRANT_EFFECT_ALLOW
				if deny {
					req.Effect = adminv1.GrantEffect_GRANT_EFFECT_DENY
				}
			}
			resp, err := c.Access.DeleteGrants(ctx, req)
			if err != nil {
				return err
			}
			if len(resp.GetDeleted()) == 0 {
				return problem.New(problem.NotFound, "no grant has these words", "see `mcpvault grants list`")
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return cli.PrintList(a, output.Map(resp.GetDeleted(), viewGrant), grantColumns()...)
		})
	cmd.Flags().BoolVar(&deny, "deny", false, "take away what forbids")
	cmd.Flags().StringVar(&when, "when", "", "only the grants with this condition")
	cmd.Flags().StringVar(&id, "id", "", "the one grant with this id")
	cmd.Flags().String("for", "", "accepted so that the words of grant can be repeated; has no meaning here")
	cmd.Flags().String("reason", "", "accepted so that the words of grant can be repeated; has no meaning here")
	return a.Publishes(cmd, &w)
}

func grantsCommand(a *cli.App) *cobra.Command {
	var who, what string
	list := a.AdminLeaf("list", "Lists the grants.", "  mcpvault grants list --subject role:analyst", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			req := &adminv1.ListGrantsRequest{Tenant: tenant}
			if who != "" {
				req.Subject = subject(who)
			}
			if what != "" {
				req.Target = target(what)
			}
			resp, err := c.Access.ListGrants(ctx, req)
			if err != nil {
				return err
			}
			return cli.PrintList(a, output.Map(resp.GetGrants(), viewGrant), grantColumns()...)
		})
	list.Flags().StringVar(&who, "subject", "", "only grants to this user, team, group, unit or role")
	list.Flags().StringVar(&what, "target", "", "only grants on this server or tool")
	return a.Group("grants", "What has been granted.", "  mcpvault grants list", list)
}

func killCommand(a *cli.App) *cobra.Command {
	var reason string
	cmd := a.AdminLeaf("kill KIND SUBJECT", "Denies a user, token, session, server, version or tool at once, everywhere. It is not taken back.",
		`  mcpvault kill user mallory --reason "stolen laptop"
  mcpvault kill tool payments/refund
  mcpvault kill token 01K8Z3V9QJ7W2M5T4R6Y8X0ABC`, cli.Args("KIND", "SUBJECT"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Access.Kill(ctx, &adminv1.KillRequest{Tenant: tenant, Kind: args[0], Subject: args[1], Reason: reason})
			if err != nil {
				return err
			}
			type kill struct {
				ID      string `json:"id"`
				Kind    string `json:"kind"`
				Subject string `json:"subject"`
			}
			return cli.Print(a, kill{resp.GetId(), args[0], args[1]},
				output.Column[kill]{Head: "ID", Cell: func(v kill) string { return v.ID }},
				output.Column[kill]{Head: "KIND", Cell: func(v kill) string { return v.Kind }},
				output.Column[kill]{Head: "SUBJECT", Cell: func(v kill) string { return v.Subject }})
		})
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.ValidArgs = []string{"user", "token", "session", "server", "tool", "version"}
	return cmd
}

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
		if g.Condition != "" {
			line += " when " + g.Condition
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
