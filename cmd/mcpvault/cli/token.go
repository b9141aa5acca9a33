package cli

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type tokenView struct {
	ID        string `json:"id"`
	Principal string `json:"principal"`
	Issued    string `json:"issued"`
	Expires   string `json:"expires"`
	Revoked   bool   `json:"revoked"`
	CreatedBy string `json:"created_by,omitempty"`
	// Token is there once, when it has been made.
	Token string `json:"token,omitempty"`
}

func viewToken(t *adminv1.Token) tokenView {
	return tokenView{t.GetId(), t.GetPrincipal(), output.Time(t.GetIssuedMs()), output.Time(t.GetExpiresMs()), t.GetRevoked(), t.GetCreatedBy(), ""}
}

func (t tokenView) state() string {
	if t.Revoked {
		return "revoked"
	}
	return "valid"
}

func tokenColumns() []output.Column[tokenView] {
	return []output.Column[tokenView]{
		{Head: "ID", Cell: func(v tokenView) string { return v.ID }},
		{Head: "PRINCIPAL", Cell: func(v tokenView) string { return v.Principal }},
		{Head: "STATE", Cell: tokenView.state},
		{Head: "EXPIRES", Cell: func(v tokenView) string { return v.Expires }},
		{Head: "ISSUED", Cell: func(v tokenView) string { return v.Issued }, Wide: true},
		{Head: "CREATED BY", Cell: func(v tokenView) string { return v.CreatedBy }, Wide: true},
	}
}

func (a *App) tokenCommand() *cobra.Command {
	return a.Group("token", "Access tokens of people and service accounts.", "  mcpvault token create alice --ttl 8h", a.createToken(),
		a.AdminLeaf("list", "Lists the tokens; the tokens themselves are not kept.", "  mcpvault token list", Args(),
			func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
				resp, err := c.Tokens.ListTokens(ctx, &adminv1.ListTokensRequest{Tenant: tenant})
				if err != nil {
					return err
				}
				return PrintList(a, output.Map(resp.GetTokens(), viewToken), tokenColumns()...)
			}),
		a.AdminLeaf("revoke ID", "Makes a token worthless at once, everywhere.", "  mcpvault token revoke 01K8Z3V9QJ7W2M5T4R6Y8X0ABC", Args("ID"),
			func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
				_, err := c.Tokens.RevokeToken(ctx, &adminv1.RevokeTokenRequest{Tenant: tenant, Id: args[0]})
				return err
			}))
}

func (a *App) createToken() *cobra.Command {
	var ttl string
	var save bool
	cmd := a.AdminLeaf("create NAME", "Makes an access token for a person or a service account and prints it, once.",
		`  mcpvault token create alice --ttl 8h
  mcpvault token create ci -o json
  mcpvault token create alice --save            # keep it for --as alice`, Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.CreateTokenRequest{Tenant: tenant, Principal: args[0]}
			if ttl != "" {
				d, err := Duration(ttl)
				if err != nil {
					return err
				}
				req.Ttl = durationpb.New(d)
			}
			resp, err := c.Tokens.CreateToken(ctx, req)
			if err != nil {
				return err
			}
			if save {
				if err := a.saveToken(args[0], resp.GetSecret()); err != nil {
					return err
				}
				a.Notef("saved: use it with --as %s", args[0])
				return Print(a, viewToken(resp.GetToken()), tokenColumns()...)
			}
			v := viewToken(resp.GetToken())
			v.Token = resp.GetSecret()
			a.Notef("token %s of %s, valid until %s; it is not shown again", v.ID, v.Principal, v.Expires)
			return Print(a, v, output.Column[tokenView]{Head: "TOKEN", Cell: func(v tokenView) string { return v.Token }})
		})
	cmd.Flags().StringVar(&ttl, "ttl", "", "how long it is valid, for example 8h or 30d; 24h when not given")
	cmd.Flags().BoolVar(&save, "save", false, "keep it in the context instead of printing it")
	return cmd
}
