package manage

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type settingsView struct {
	Read   string            `json:"max_staleness_read"`
	Write  string            `json:"max_staleness_write"`
	Labels map[string]string `json:"label_staleness"`
	After  string            `json:"after_staleness"`
	// Rates are as they are set: 100/1s+200.
	Rates    map[string]string `json:"rate_limits"`
	MaxCalls uint32            `json:"max_calls"`
	Idle     string            `json:"session_idle"`
	Max      string            `json:"session_max"`
	// 0 leaves the number to the cell.
	PerPrincipal uint32 `json:"sessions_per_principal"`
	PerTenant    uint32 `json:"sessions_per_org"`
	// What is done about what servers say.
	Guards guardsView `json:"guards"`
}

func viewSettings(s *adminv1.Settings) settingsView {
	v := settingsView{
		Read: lasting(s.GetMaxStalenessRead()), Write: lasting(s.GetMaxStalenessWrite()), Labels: map[string]string{}, After: s.GetAfterStaleness(),
		Rates: viewRates(s.GetRateLimits()), MaxCalls: s.GetMaxCalls(),
		Idle: lasting(s.GetSessionIdle()), Max: lasting(s.GetSessionMax()),
		PerPrincipal: s.GetSessionsPerPrincipal(), PerTenant: s.GetSessionsPerTenant(),
		Guards: viewGuards(s.GetGuards()),
	}
	for label, d := range s.GetLabelStaleness() {
		v.Labels[label] = lasting(d)
	}
	return v
}

// lasting is a length of time without the units that are nothing: 72h, 1h30m.
func lasting(d *durationpb.Duration) string {
	s := d.AsDuration().Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

func settingsColumns() []output.Column[settingsView] {
	return append([]output.Column[settingsView]{
		{Head: "MAX STALENESS READ", Cell: func(v settingsView) string { return v.Read }},
		{Head: "MAX STALENESS WRITE", Cell: func(v settingsView) string { return v.Write }},
		{Head: "OF LABELS", Cell: func(v settingsView) string { return pairs(v.Labels) }},
		{Head: "AFTER IT", Cell: func(v settingsView) string { return v.After }},
		{Head: "RATE LIMITS", Cell: func(v settingsView) string { return pairs(v.Rates) }},
		{Head: "MAX CALLS", Cell: func(v settingsView) string {
			if v.MaxCalls == 0 {
				return "default"
			}
			return strconv.FormatUint(uint64(v.MaxCalls), 10)
		}},
		{Head: "SESSION IDLE", Cell: func(v settingsView) string { return v.Idle }},
		{Head: "SESSION MAX", Cell: func(v settingsView) string { return v.Max }},
		{Head: "PER PRINCIPAL", Cell: func(v settingsView) string { return numberOrDefault(v.PerPrincipal) }},
		{Head: "PER ORG", Cell: func(v settingsView) string { return numberOrDefault(v.PerTenant) }},
	}, guardsColumns()...)
}

// pairs are a map's keys and values in the order of keys.
func pairs(m map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+" "+m[k])
	}
	return strings.Join(out, ", ")
}

func numberOrDefault(n uint32) string {
	if n == 0 {
		return "default"
	}
	return fmt.Sprint(n)
}

func settingsCommand(a *cli.App) *cobra.Command {
	get := a.AdminLeaf("get", "Shows the settings.", "  mcpvault settings get -o json", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := c.Settings.GetSettings(ctx, &adminv1.GetSettingsRequest{Tenant: tenant})
			if err != nil {
				return err
			}
			return cli.Print(a, viewSettings(resp.GetSettings()), settingsColumns()...)
		})
	return a.Group("settings", "Settings of an organisation.", "  mcpvault settings get", get, setSettings(a))
}

func setSettings(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var read, write, after, idle, longest, maxCalls string
	var labels, rates []string
	var perPrincipal, perOrg uint32
	var guards guardsFlags
	var cmd *cobra.Command
	cmd = a.AdminLeaf("set", "Changes settings. What is not given stays; `default` goes back to what it was at first.",
		`  mcpvault settings set --max-staleness-write 12h
  mcpvault settings set --max-staleness-read 24h --after-staleness allow-read-only
  mcpvault settings set --max-staleness-label pci=true:15m --max-staleness-label env=test:default
  mcpvault settings set --rate-limit principal=100/1s+200 --rate-limit tool/payments/refund=10/1m --rate-limit tenant=default
  mcpvault settings set --session-idle 1h --session-max 12h --sessions-per-principal 64
  mcpvault settings set --check-arguments --hidden-text block --question-origin https://login.example.com`, cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			req := &adminv1.UpdateSettingsRequest{Tenant: tenant, AfterStaleness: after, LabelStaleness: map[string]*durationpb.Duration{}}
			var err error
			if req.MaxStalenessRead, err = bound(read); err != nil {
				return err
			}
			if req.MaxStalenessWrite, err = bound(write); err != nil {
				return err
			}
			for _, word := range labels {
				label, d, ok := strings.Cut(word, ":")
				if !ok || d == "" || !strings.Contains(label, "=") {
					return problem.Newf(problem.Invalid, "write it like --max-staleness-label pci=true:15m", "%q gives no label a bound", word)
				}
				if req.LabelStaleness[label], err = bound(d); err != nil {
					return err
				}
			}
			if req.RateLimits, err = parseRates(rates); err != nil {
				return err
			}
			if req.MaxCalls, err = parseMaxCalls(maxCalls); err != nil {
				return err
			}
			if req.SessionIdle, err = bound(idle); err != nil {
				return err
			}
			if req.SessionMax, err = bound(longest); err != nil {
				return err
			}
			if cmd.Flags().Changed("sessions-per-principal") {
				req.SessionsPerPrincipal = &perPrincipal
			}
			if cmd.Flags().Changed("sessions-per-org") {
				req.SessionsPerTenant = &perOrg
			}
			req.Guards = guards.change(cmd)
			if req.Guards == nil && read+write+after+idle+longest+maxCalls == "" && len(labels)+len(rates) == 0 && req.SessionsPerPrincipal == nil && req.SessionsPerTenant == nil {
				return problem.New(problem.Invalid, "nothing to change was given", "`mcpvault settings set --help` lists what can be")
			}
			resp, err := c.Settings.UpdateSettings(ctx, req)
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return cli.Print(a, viewSettings(resp.GetSettings()), settingsColumns()...)
		})
	cmd.Flags().StringVar(&read, "max-staleness-read", "", "how long after the last contact with the control plane a cell still serves reads, for example 72h")
	cmd.Flags().StringVar(&write, "max-staleness-write", "", "the same for everything else, for example 24h")
	cmd.Flags().StringVar(&after, "after-staleness", "", "what a cell does when the bound of reads is over: deny, or allow-read-only")
	cmd.Flags().StringArrayVar(&labels, "max-staleness-label", nil, "KEY=VALUE:TIME: a narrower bound for what carries the label, for example pci=true:15m; may be given again")
	cmd.Flags().StringArrayVar(&rates, "rate-limit", nil, "SUBJECT=REQUESTS/TIME[+BURST]: what may be asked for over time; the subject is principal, tenant, server, tool, discover or resume for each of them, or principal/NAME, server/NAME, tool/SERVER/NAME; may be given again")
	cmd.Flags().StringVar(&maxCalls, "max-calls", "", "how many requests of one principal a node has under way at most")
	cmd.Flags().StringVar(&idle, "session-idle", "", "when a session of a legacy client ends that is not used, for example 30m")
	cmd.Flags().StringVar(&longest, "session-max", "", "when it ends however busy it is, for example 24h")
	cmd.Flags().Uint32Var(&perPrincipal, "sessions-per-principal", 0, "how many sessions one principal may have in a cell; 0 for the default")
	cmd.Flags().Uint32Var(&perOrg, "sessions-per-org", 0, "how many sessions the organisation may have in a cell; 0 for the default")
	guards.add(cmd)
	return a.Publishes(cmd, &w)
}

// bound reads a length of time or the word default; "" is nothing.
func bound(s string) (*durationpb.Duration, error) {
	switch s {
	case "":
		return nil, nil
	case "default":
		return durationpb.New(0), nil
	}
	d, err := cli.Duration(s)
	return durationpb.New(d), err
}
