package policy

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type exported struct {
	Revision uint64          `json:"revision"`
	Cedar    string          `json:"cedar"`
	Entities json.RawMessage `json:"entities"`
}

func export(a *cli.App) *cobra.Command {
	var dir string
	cmd := a.AdminLeaf("export", "Prints everything about access, grants included, as Cedar; with -o json the entities too.",
		`  mcpvault policy export > everything.cedar
  mcpvault policy export --dir audit    # writes audit/policies.cedar and audit/entities.json`, cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := c.Policies.ExportPolicy(ctx, &adminv1.ExportPolicyRequest{Tenant: tenant})
			if err != nil {
				return err
			}
			if dir != "" {
				if !filepath.IsAbs(dir) {
					dir = filepath.Join(a.WorkDir(), dir)
				}
				if err := writeAll(dir, map[string]string{"policies.cedar": resp.GetCedar(), "entities.json": resp.GetEntities()}); err != nil {
					return problem.Newf(problem.Invalid, "check the folder and who may write it", "%s cannot be written", dir).Because(err)
				}
				a.Notef("wrote revision %d to %s", resp.GetRevision(), dir)
				return nil
			}
			v := exported{resp.GetRevision(), resp.GetCedar(), json.RawMessage(resp.GetEntities())}
			return text(a, resp.GetCedar(), v, output.Column[exported]{Head: "CEDAR", Cell: func(v exported) string { return v.Cedar }})
		})
	cmd.Flags().StringVar(&dir, "dir", "", "folder to write policies.cedar and entities.json into")
	return cmd
}

func writeAll(dir string, files map[string]string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func schemaOf(a *cli.App) *cobra.Command {
	type published struct {
		Version uint32 `json:"version"`
		Text    string `json:"text"`
	}
	return a.AdminLeaf("schema", "Prints the Cedar schema that policies are checked against.", "  mcpvault policy schema > mcpvault.cedarschema", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := c.Policies.GetSchema(ctx, &adminv1.GetSchemaRequest{Tenant: tenant})
			if err != nil {
				return err
			}
			return text(a, resp.GetText(), published{resp.GetVersion(), resp.GetText()},
				output.Column[published]{Head: "TEXT", Cell: func(v published) string { return v.Text }})
		})
}
