package manage

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
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
	// Terms are all that the grant asks for, in words.
	Terms     []string `json:"terms,omitempty"`
	Begins    string   `json:"begins,omitempty"`
	Expires   string   `json:"expires,omitempty"`
	Reason    string   `json:"reason,omitempty"`
	CreatedBy string   `json:"created_by,omitempty"`
	Created   string   `json:"created,omitempty"`
}

func viewGrant(g *adminv1.Grant) grantView {
	effect := "allow"
	if g.GetEffect() == adminv1.GrantEffect_GRANT_EFFECT_DENY {
		effect = "deny"
	}
	return grantView{
		g.GetId(), effect, g.GetSubject(), g.GetTarget(), g.GetCondition(), g.GetTerms(),
		output.Time(g.GetNotBeforeMs()), output.Time(g.GetExpiresMs()),
		g.GetReason(), g.GetCreatedBy(), output.Time(g.GetCreatedMs()),
	}
}

// clause is all that the grant asks for, as the end of a sentence. A control plane of before does not send its words.
func (v grantView) clause() string {
	if len(v.Terms) == 0 && v.Condition != "" {
		return "when " + v.Condition
	}
	return strings.Join(v.Terms, ", ")
}

func (v grantView) asks() string { return strings.TrimPrefix(v.clause(), "when ") }

func grantColumns() []output.Column[grantView] {
	return []output.Column[grantView]{
		{Head: "ID", Cell: func(v grantView) string { return v.ID }},
		{Head: "EFFECT", Cell: func(v grantView) string { return v.Effect }},
		{Head: "SUBJECT", Cell: func(v grantView) string { return v.Subject }},
		{Head: "TARGET", Cell: func(v grantView) string { return v.Target }},
		{Head: "CONDITION", Cell: grantView.asks},
		{Head: "BEGINS", Cell: func(v grantView) string { return v.Begins }, Wide: true},
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
	for _, kind := range []string{"server:", "tools:", "endpoint:"} {
		if strings.HasPrefix(s, kind) {
			return s
		}
	}
	return "server:" + s
}

// grantFlags are the words of a grant besides its subject and its target.
type grantFlags struct {
	deny                            bool
	when, reason, from, until, last string
	between, days, zone             string
	networks, regions               []string
	clearance, notActing            bool
}

func (f *grantFlags) flags(set *pflag.FlagSet) {
	set.StringVar(&f.from, "from", "", "when it begins: 2026-12-01, or 2026-12-01T09:00:00+01:00; at once when not given")
	set.StringVar(&f.last, "for", "", "how long it lasts, for example 90m, 1h or 7d; for ever when not given")
	set.StringVar(&f.until, "until", "", "when it ends, in place of --for")
	set.StringSliceVar(&f.networks, "network", nil, "only from an address in this network, such as 10.20.0.0/16; several with commas")
	set.StringVar(&f.between, "between", "", "only at these hours, such as 09:00-17:00 or, over midnight, 22:00-06:00")
	set.StringVar(&f.days, "days", "", "only on these days, such as mon-fri; hours over midnight belong to the day on which they begin")
	set.StringVar(&f.zone, "tz", "", "time zone of the hours and days, such as Europe/Berlin; UTC when not given")
	set.StringSliceVar(&f.regions, "region", nil, "only through a cell in this region; several with commas")
	set.BoolVar(&f.clearance, "clearance", false, "only what is of a class of data within the user's clearance")
	set.BoolVar(&f.notActing, "not-acting", false, "only while nobody acts for the user")
	set.StringVar(&f.reason, "reason", "", "why, for whoever reviews it")
}

// fill writes the flags into the request.
func (f *grantFlags) fill(req *adminv1.CreateGrantRequest) (err error) {
	req.Effect, req.Condition, req.Reason = f.effect(), f.when, f.reason
	req.Limits = &adminv1.GrantLimits{
		Networks: f.networks, Between: f.between, Days: f.days, TimeZone: f.zone, Regions: f.regions,
		WithinClearance: f.clearance, NotActing: f.notActing,
	}
	if f.last != "" {
		d, err := cli.Duration(f.last)
		if err != nil {
			return err
		}
		req.ValidFor = durationpb.New(d)
	}
	if req.NotBeforeMs, err = moment(f.from); err != nil {
		return err
	}
	req.NotAfterMs, err = moment(f.until)
	return err
}

func (f *grantFlags) effect() adminv1.GrantEffect {
	if f.deny {
		return adminv1.GrantEffect_GRANT_EFFECT_DENY
	}
	return adminv1.GrantEffect_GRANT_EFFECT_ALLOW
}

// moment reads a time; a day is its first moment in UTC. "" is 0.
func moment(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	for _, form := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(form, s); err == nil {
			return t.UnixMilli(), nil
		}
	}
	return 0, problem.Newf(problem.Invalid, "write it like 2026-12-01 or 2026-12-01T09:00:00+01:00", "%q is no time", s)
}

func grantCommand(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var f grantFlags
	cmd := a.AdminLeaf("grant SUBJECT TARGET", "Lets a user, team, group, unit, role or everyone use a server, something of it, or what a selector picks.",
		`  mcpvault grant user:alice server:payments/refund --when 'context.args.amount < 100' --for 1h --reason "ticket 4711"
  mcpvault grant role:analyst server:demo
  mcpvault grant everyone server:payments/refund --deny
  mcpvault grant alice demo/echo                # short for user:alice server:demo/echo
  mcpvault grant unit:emea server:docs/prompt:review
  mcpvault grant team:ops 'server:docs/resource:file:///pub/*'
  mcpvault grant group:eng server:payments@3    # while version 3 is the published one
  mcpvault grant role:analyst tools:readOnlyHint
  mcpvault grant role:analyst tools:effect=read,label.pci=false
  mcpvault grant everyone tools:destructiveHint=true --deny
  mcpvault grant team:sales endpoint:crm/read --clearance
  mcpvault grant team:ops server:deploy --between 22:00-06:00 --days fri,sat --tz Europe/Berlin --network 10.20.0.0/16`, cli.Args("SUBJECT", "TARGET"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.CreateGrantRequest{Tenant: tenant, Subject: subject(args[0]), Target: target(args[1])}
			if err := f.fill(req); err != nil {
				return err
			}
			resp, err := c.Access.CreateGrant(ctx, req)
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return cli.Print(a, viewGrant(resp.GetGrant()), grantColumns()...)
		})
	cmd.Flags().BoolVar(&f.deny, "deny", false, "forbid instead; what is forbidden no other grant allows")
	cmd.Flags().StringVar(&f.when, "when", "", "condition on the call's arguments, in Cedar")
	f.flags(cmd.Flags())
	return a.Publishes(cmd, &w)
}

func revokeCommand(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var id string
	// The words of a grant can be repeated; those that it is not found by have no meaning here.
	var f grantFlags
	cmd := a.AdminLeaf("revoke SUBJECT TARGET", "Takes away grants that were given with the same words.",
		`  mcpvault revoke user:alice server:payments/refund
  mcpvault revoke everyone server:payments/refund --deny
  mcpvault revoke --id 0197f3c2-5d7e-7c3b-9a51-2f6f1d1f8a10`, cli.Args("[SUBJECT]", "[TARGET]"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.DeleteGrantsRequest{Tenant: tenant, Id: id, Condition: f.when}
			switch {
			case id != "" && len(args) > 0 || id == "" && len(args) != 2:
				return problem.New(problem.Invalid, "mcpvault revoke needs SUBJECT and TARGET, or --id",
					"for example: `mcpvault revoke user:alice server:payments/refund`")
			case id == "":
				req.Subject, req.Target, req.Effect = subject(args[0]), target(args[1]), f.effect()
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
	cmd.Flags().BoolVar(&f.deny, "deny", false, "take away what forbids")
	cmd.Flags().StringVar(&f.when, "when", "", "only the grants with this condition")
	cmd.Flags().StringVar(&id, "id", "", "the one grant with this id")
	repeated := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.flags(repeated)
	repeated.VisitAll(func(fl *pflag.Flag) { fl.Hidden = true })
	cmd.Flags().AddFlagSet(repeated)
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
	list.Flags().StringVar(&what, "target", "", "only grants with this target")
	return a.Group("grants", "What has been granted.", "  mcpvault grants list", list)
}
