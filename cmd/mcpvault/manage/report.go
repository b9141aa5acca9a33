package manage

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type holderView struct {
	User       string   `json:"user"`
	Kind       string   `json:"kind"`
	Access     string   `json:"access"`
	Paths      []string `json:"paths"`
	Conditions []string `json:"conditions"`
}

// progressEvery is the pause after which a person is told how far a long report is.
const progressEvery = time.Second

func whoCanCommand(a *cli.App) *cobra.Command {
	return a.AdminLeaf("who-can SERVER[/TOOL]", "Lists everybody who may use a server, or a tool, prompt or resource of it, and by which way.",
		`  mcpvault access who-can payments/refund
  mcpvault access who-can docs/prompt:review
  mcpvault access who-can docs/resource:file:///pub/a.md
  mcpvault access who-can payments -o csv > payments.csv`, cli.Args("SERVER[/TOOL]"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			server, item, _ := strings.Cut(strings.TrimPrefix(args[0], "server:"), "/")
			req := &adminv1.WhoCanRequest{Tenant: tenant, Server: server, Tool: item}
			rows, told := []holderView{}, time.Now()
			for {
				resp, err := c.Access.WhoCan(ctx, req)
				if err != nil {
					return err
				}
				rows = append(rows, output.Map(resp.GetHolders(), viewHolder)...)
				if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
					break
				}
				if time.Since(told) > progressEvery {
					told = time.Now()
					a.Notef("looked at %d of %d", resp.GetDone(), resp.GetTotal())
				}
			}
			return cli.PrintList(a, rows,
				output.Column[holderView]{Head: "USER", Cell: func(v holderView) string { return v.User }},
				output.Column[holderView]{Head: "KIND", Cell: func(v holderView) string { return v.Kind }, Wide: true},
				output.Column[holderView]{Head: "ACCESS", Cell: func(v holderView) string { return v.Access }},
				output.Column[holderView]{Head: "THROUGH", Cell: func(v holderView) string { return strings.Join(v.Paths, "; ") }},
				output.Column[holderView]{Head: "CONDITIONS", Cell: func(v holderView) string { return strings.Join(v.Conditions, "; ") }})
		})
}

func viewHolder(h *adminv1.Holder) holderView {
	return holderView{h.GetUser(), h.GetKind(), h.GetAccess(), append([]string{}, h.GetPaths()...), append([]string{}, h.GetConditions()...)}
}

type usableView struct {
	Server     string   `json:"server"`
	Kind       string   `json:"kind"`
	Name       string   `json:"name"`
	Access     string   `json:"access"`
	Paths      []string `json:"paths"`
	Conditions []string `json:"conditions"`
}

func whatCanCommand(a *cli.App) *cobra.Command {
	return a.AdminLeaf("what-can PRINCIPAL", "Lists everything that somebody may use: tools, prompts, patterns of resources, and the rest of a server; and by which way.",
		`  mcpvault access what-can alice
  mcpvault access what-can alice -o csv > alice.csv`, cli.Args("PRINCIPAL"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.WhatCanRequest{Tenant: tenant, Principal: strings.TrimPrefix(args[0], "user:")}
			rows, told := []usableView{}, time.Now()
			for {
				resp, err := c.Access.WhatCan(ctx, req)
				if err != nil {
					return err
				}
				rows = append(rows, output.Map(resp.GetUsable(), viewUsable)...)
				if resp.GetDisabled() && req.GetPageToken() == "" {
					a.Warnf("%s is disabled and may use nothing; this is what it could use otherwise", args[0])
				}
				if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
					break
				}
				if time.Since(told) > progressEvery {
					told = time.Now()
					a.Notef("%d so far", len(rows))
				}
			}
			return cli.PrintList(a, rows,
				output.Column[usableView]{Head: "SERVER", Cell: func(v usableView) string { return v.Server }},
				output.Column[usableView]{Head: "KIND", Cell: func(v usableView) string { return v.Kind }},
				output.Column[usableView]{Head: "NAME", Cell: func(v usableView) string { return v.Name }},
				output.Column[usableView]{Head: "ACCESS", Cell: func(v usableView) string { return v.Access }},
				output.Column[usableView]{Head: "THROUGH", Cell: func(v usableView) string { return strings.Join(v.Paths, "; ") }},
				output.Column[usableView]{Head: "CONDITIONS", Cell: func(v usableView) string { return strings.Join(v.Conditions, "; ") }})
		})
}

func viewUsable(u *adminv1.Usable) usableView {
	return usableView{
		u.GetServer(), u.GetKind(), u.GetName(), u.GetAccess(), append([]string{}, u.GetPaths()...), append([]string{}, u.GetConditions()...),
	}
}
