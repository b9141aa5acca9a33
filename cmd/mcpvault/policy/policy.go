// Package policy holds the commands for policies that people write as Cedar: checking and formatting files, with or without
// a control plane, and putting them into law.
package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	cedar "github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

const example = `  cat > refunds.cedar <<'END'
  @id("small-refunds")
  permit (principal in Role::"analyst", action == Action::"call", resource == Tool::"payments/refund")
  when { context.args.amount < 100 }
  unless { context has actor };
  END
  mcpvault policy validate refunds.cedar
  mcpvault policy put refunds refunds.cedar`

// Command is the group of all of them.
func Command(a *cli.App) *cobra.Command {
	return a.Group("policy", "Policies written as Cedar, beside the grants.", example,
		list(a), get(a), put(a), remove(a), validate(a), format(a), export(a), schemaOf(a))
}

type view struct {
	Name        string   `json:"name"`
	Version     uint64   `json:"version"`
	Rules       []string `json:"rules"`
	Description string   `json:"description,omitempty"`
	UpdatedBy   string   `json:"updated_by"`
	Updated     string   `json:"updated"`
	Text        string   `json:"text,omitempty"`
}

func viewPolicy(p *adminv1.Policy) view {
	return view{p.GetName(), p.GetVersion(), append([]string{}, p.GetRules()...), p.GetDescription(), p.GetUpdatedBy(), output.Time(p.GetUpdatedMs()), p.GetText()}
}

func columns() []output.Column[view] {
	return []output.Column[view]{
		{Head: "NAME", Cell: func(v view) string { return v.Name }},
		{Head: "VERSION", Cell: func(v view) string { return fmt.Sprint(v.Version) }},
		{Head: "POLICIES", Cell: func(v view) string { return fmt.Sprint(len(v.Rules)) }},
		{Head: "UPDATED", Cell: func(v view) string { return v.Updated }},
		{Head: "BY", Cell: func(v view) string { return v.UpdatedBy }},
		{Head: "DESCRIPTION", Cell: func(v view) string { return v.Description }, Wide: true},
	}
}

func list(a *cli.App) *cobra.Command {
	return a.AdminLeaf("list", "Lists the policies.", "  mcpvault policy list", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := c.Policies.ListPolicies(ctx, &adminv1.ListPoliciesRequest{Tenant: tenant})
			if err != nil {
				return err
			}
			rows := output.Map(resp.GetPolicies(), viewPolicy)
			for i := range rows {
				rows[i].Text = ""
			}
			return cli.PrintList(a, rows, columns()...)
		})
}

func get(a *cli.App) *cobra.Command {
	return a.AdminLeaf("get NAME", "Prints a policy's text, or with -o json everything about it.", "  mcpvault policy get refunds > refunds.cedar", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Policies.GetPolicy(ctx, &adminv1.GetPolicyRequest{Tenant: tenant, Name: args[0]})
			if err != nil {
				return err
			}
			return text(a, resp.GetPolicy().GetText(), viewPolicy(resp.GetPolicy()), columns()...)
		})
}

// text prints Cedar as it is, and anything about it in the formats for programs. Invisible characters never get into a
// policy, so that none can play with a terminal here.
func text[T any](a *cli.App, cedar string, v T, columns ...output.Column[T]) error {
	if a.Format() != output.Table && a.Format() != output.Wide {
		return cli.Print(a, v, columns...)
	}
	_, err := io.WriteString(a.World().Stdout, cedar)
	return err
}

func put(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var description string
	var expect uint64
	cmd := a.AdminLeaf("put NAME FILE", "Checks a file of policies and makes it law under a name, the first or another one.",
		"  mcpvault policy put refunds refunds.cedar --description 'who may pay back how much'", cli.Args("NAME", "FILE"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			content, err := read(a, args[1])
			if err != nil {
				return err
			}
			resp, err := c.Policies.PutPolicy(ctx, &adminv1.PutPolicyRequest{
				Tenant: tenant, Name: args[0], Text: content, Description: description, ExpectVersion: expect,
			})
			if err != nil {
				return inFile(admin.Problem(err, c.URL), args[1])
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			v := viewPolicy(resp.GetPolicy())
			v.Text = ""
			return cli.Print(a, v, columns()...)
		})
	cmd.Flags().StringVar(&description, "description", "", "what it is for, in words")
	cmd.Flags().Uint64Var(&expect, "expect-version", 0, "write only if this is still the version that is there")
	return a.Publishes(cmd, &w)
}

// inFile puts the file before the place that a refusal begins with.
func inFile(err error, file string) error {
	p, ok := problem.As(err)
	if !ok || p.Code != problem.Invalid || p.What == "" || p.What[0] < '0' || p.What[0] > '9' {
		return err
	}
	return problem.New(p.Code, file+":"+p.What, p.Fix)
}

func remove(a *cli.App) *cobra.Command {
	var w cli.Waiting
	cmd := a.AdminLeaf("delete NAME", "Takes a policy away.", "  mcpvault policy delete refunds", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Policies.DeletePolicy(ctx, &adminv1.DeletePolicyRequest{Tenant: tenant, Name: args[0]})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return nil
		})
	return a.Publishes(cmd, &w)
}

// read reads a file, or standard input for "-".
func read(a *cli.App, name string) (string, error) {
	if name == "-" {
		raw, err := io.ReadAll(io.LimitReader(a.World().Stdin, cedar.MaxDocument+1))
		return string(raw), err
	}
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(a.WorkDir(), path)
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", problem.Newf(problem.NotFound, "check the name", "%s does not exist", name)
	}
	if err != nil {
		return "", problem.Newf(problem.Invalid, "check the file and who may read it", "%s cannot be read", name).Because(err)
	}
	return string(raw), nil
}

func format(a *cli.App) *cobra.Command {
	var write bool
	cmd := a.Leaf("fmt FILE", "Writes policies in Cedar's one form; asks no server.", "  mcpvault policy fmt refunds.cedar -w", cli.Args("FILE"),
		func(_ context.Context, args []string) error {
			content, err := read(a, args[0])
			if err != nil {
				return err
			}
			out, err := cedar.Format(content)
			if err != nil {
				return inFile(err, args[0])
			}
			if !write || args[0] == "-" {
				_, err = io.WriteString(a.World().Stdout, out)
				return err
			}
			if out == content {
				return nil
			}
			path := args[0]
			if !filepath.IsAbs(path) {
				path = filepath.Join(a.WorkDir(), path)
			}
			return os.WriteFile(path, []byte(out), 0o644) //nolint:gosec // a policy is no secret
		})
	cmd.Flags().BoolVarP(&write, "write", "w", false, "write the file instead of printing")
	return cmd
}

// baseName is the name that a file's policies would have.
func baseName(file string) string {
	return strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
}
