package policy

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	cedar "github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// issue is one thing that is wrong, with the place in the form that editors jump to.
type issue struct {
	Place string `json:"place"`
	What  string `json:"what"`
	Fix   string `json:"fix"`
}

func newIssue(file string, line, column int, what, fix string) issue {
	switch {
	case line == 0:
		return issue{file, what, fix}
	case column == 0:
		return issue{fmt.Sprintf("%s:%d", file, line), what, fix}
	}
	return issue{fmt.Sprintf("%s:%d:%d", file, line, column), what, fix}
}

func validate(a *cli.App) *cobra.Command {
	var offline bool
	cmd := a.Leaf("validate FILE...", "Checks files of policies against the tenant, and says everything that is wrong. Exit status 2 when something is.",
		`  mcpvault policy validate refunds.cedar crm.cedar
  mcpvault policy validate refunds.cedar --offline    # syntax and schema only: names and arguments are not known`, cli.Args("FILE..."),
		func(ctx context.Context, args []string) error {
			ask := offlineIssues
			if !offline {
				ask = onlineIssues(ctx, a)
			}
			found := []issue{}
			for _, file := range args {
				content, err := read(a, file)
				if err != nil {
					return err
				}
				list, rules, err := ask(file, content)
				if err != nil {
					return err
				}
				if len(list) == 0 {
					a.Notef("%s is valid: it has %d policies", file, rules)
				}
				found = append(found, list...)
			}
			return report(a, found)
		})
	cmd.Flags().BoolVar(&offline, "offline", false, "ask no server")
	return cmd
}

// report prints what is wrong as `file:line:col: what: fix`, one a line.
func report(a *cli.App, found []issue) error {
	if a.Format() == output.Table || a.Format() == output.Wide {
		for _, i := range found {
			if _, err := fmt.Fprintln(a.World().Stdout, output.Clean(i.Place+": "+i.What+": "+i.Fix)); err != nil {
				return err
			}
		}
	} else if err := cli.PrintList(a, found, output.Column[issue]{Head: "PLACE", Cell: func(i issue) string { return i.Place }},
		output.Column[issue]{Head: "WHAT", Cell: func(i issue) string { return i.What }},
		output.Column[issue]{Head: "FIX", Cell: func(i issue) string { return i.Fix }}); err != nil {
		return err
	}
	if len(found) > 0 {
		return cli.Exit(problem.Invalid.Exit())
	}
	return nil
}

func offlineIssues(file, content string) ([]issue, int, error) {
	doc, err := cedar.Parse(baseName(file), content)
	var refusal *cedar.Refusal
	if errors.As(err, &refusal) {
		return []issue{newIssue(file, refusal.Line, refusal.Column, refusal.What, refusal.Fix)}, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	_, refusals := doc.Lower(&cedar.World{})
	var out []issue
	for _, r := range refusals {
		out = append(out, newIssue(file, r.Line, r.Column, r.What, r.Fix))
	}
	return out, len(doc.Policies), nil
}

func onlineIssues(ctx context.Context, a *cli.App) func(file, content string) ([]issue, int, error) {
	return func(file, content string) ([]issue, int, error) {
		client, c, err := a.Admin()
		if err != nil {
			return nil, 0, err
		}
		resp, err := client.Policies.ValidatePolicy(ctx, &adminv1.ValidatePolicyRequest{Tenant: c.Tenant, Name: nameOf(file), Text: content})
		if err != nil {
			return nil, 0, err
		}
		var out []issue
		for _, i := range resp.GetIssues() {
			out = append(out, newIssue(file, int(i.GetLine()), int(i.GetColumn()), i.GetWhat(), i.GetFix()))
		}
		return out, len(resp.GetRules()), nil
	}
}

// nameOf leaves away what is too long for a name; the server takes none for an answer.
func nameOf(file string) string {
	name := baseName(file)
	if len(name) > 63 || file == "-" {
		return ""
	}
	return name
}
