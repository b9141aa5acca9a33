package manage

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type issuerView struct {
	Name        string      `json:"name"`
	URL         string      `json:"url"`
	JWKSURL     string      `json:"jwks_url"`
	Audiences   []string    `json:"audiences"`
	AnyType     bool        `json:"any_type"`
	UserClaim   string      `json:"user_claim"`
	UserDomain  string      `json:"user_domain,omitempty"`
	UserPrefix  string      `json:"user_prefix,omitempty"`
	Requires    []string    `json:"requires"`
	GroupsClaim string      `json:"groups_claim,omitempty"`
	Mappings    []string    `json:"mappings"`
	CreateUsers bool        `json:"create_users"`
	Keys        []issuerKey `json:"keys"`
	UpdatedBy   string      `json:"updated_by"`
	Updated     string      `json:"updated"`
}

type issuerKey struct {
	KID         string `json:"kid"`
	Alg         string `json:"alg"`
	First       string `json:"first"`
	Missing     string `json:"missing,omitempty"`
	Withdrawn   string `json:"withdrawn,omitempty"`
	WithdrawnBy string `json:"withdrawn_by,omitempty"`
}

func viewIssuer(i *adminv1.Issuer) issuerView {
	user := i.GetUserClaim()
	if user == "" {
		user = "sub"
	}
	return issuerView{
		Name: i.GetName(), URL: i.GetUrl(), JWKSURL: i.GetJwksUrl(), Audiences: append([]string{}, i.GetAudiences()...), AnyType: i.GetAnyType(),
		UserClaim: user, UserDomain: i.GetUserDomain(), UserPrefix: i.GetUserPrefix(), GroupsClaim: i.GetGroupsClaim(), CreateUsers: i.GetCreateUsers(),
		Requires: output.Map(i.GetScopes(), requirement),
		Mappings: output.Map(i.GetMappings(), func(m *adminv1.ClaimMapping) string { return m.GetValue() + "=" + m.GetTarget() }),
		Keys: output.Map(i.GetKeys(), func(k *adminv1.IssuerPublicKey) issuerKey {
			v := issuerKey{KID: k.GetKid(), Alg: k.GetAlg(), First: output.Time(k.GetFirstMs()), WithdrawnBy: k.GetWithdrawnBy()}
			if k.GetMissingMs() != 0 {
				v.Missing = output.Time(k.GetMissingMs())
			}
			if k.GetWithdrawnMs() != 0 {
				v.Withdrawn = output.Time(k.GetWithdrawnMs())
			}
			return v
		}),
		UpdatedBy: i.GetUpdatedBy(), Updated: output.Time(i.GetUpdatedMs()),
	}
}

// names are the user's name as the issuer's rule makes it, in words.
func (v issuerView) names() string {
	s := v.UserPrefix + "<" + v.UserClaim + ">"
	if v.UserDomain != "" {
		s += " without @" + v.UserDomain
	}
	return s
}

func (v issuerView) live() string {
	var kids []string
	for _, k := range v.Keys {
		if k.Withdrawn == "" && !slices.Contains(kids, k.KID) {
			kids = append(kids, k.KID)
		}
	}
	return strings.Join(kids, ",")
}

func issuerColumns() []output.Column[issuerView] {
	return []output.Column[issuerView]{
		{Head: "NAME", Cell: func(v issuerView) string { return v.Name }},
		{Head: "URL", Cell: func(v issuerView) string { return v.URL }},
		{Head: "USER", Cell: issuerView.names},
		{Head: "REQUIRES", Cell: func(v issuerView) string { return strings.Join(v.Requires, " ") }},
		{Head: "KEYS", Cell: issuerView.live},
		{Head: "MAPPINGS", Cell: func(v issuerView) string { return strings.Join(v.Mappings, " ") }, Wide: true},
		{Head: "JWKS URL", Cell: func(v issuerView) string { return v.JWKSURL }, Wide: true},
	}
}

// requirement writes a scope rule as parseRequirement reads it.
func requirement(r *adminv1.IssuerScope) string {
	where := r.GetServer()
	if where == "" {
		where = "*"
	}
	if r.GetEffect() != "" {
		where += "/" + r.GetEffect()
	}
	return where + "=" + strings.Join(append([]string{r.GetScope()}, r.GetWider()...), "|")
}

// parseRequirement reads "[SERVER][/EFFECT]=SCOPE[|WIDER...]", in which the server may be * for all.
func parseRequirement(text string) (*adminv1.IssuerScope, error) {
	where, scopes, ok := strings.Cut(text, "=")
	server, effect, _ := strings.Cut(where, "/")
	list := strings.Split(scopes, "|")
	if !ok || server == "" || slices.Contains(list, "") || !slices.Contains([]string{"", "read", "write", "destructive"}, effect) {
		return nil, problem.Newf(problem.Invalid, "write it like '*=mcp', '*/write=tools:write|admin' or 'crm/destructive=crm:admin'", "%q is no requirement", text)
	}
	if server == "*" {
		server = ""
	}
	return &adminv1.IssuerScope{Server: server, Effect: effect, Scope: list[0], Wider: list[1:]}, nil
}

func issuerCommand(a *cli.App) *cobra.Command {
	list := a.AdminLeaf("list", "Lists the issuers.", "  mcpvault issuer list -o json", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := c.Issuers.ListIssuers(ctx, &adminv1.ListIssuersRequest{Tenant: tenant})
			if err != nil {
				return err
			}
			return cli.PrintList(a, output.Map(resp.GetIssuers(), viewIssuer), issuerColumns()...)
		})
	return a.Group("issuer", "Issuers: the authorization servers whose access tokens callers may bring.", "  mcpvault issuer list",
		list, putIssuer(a), deleteIssuer(a), refreshIssuer(a), withdrawKey(a), provisionUser(a))
}

const putIssuerExample = `  mcpvault issuer put corp https://login.example.com --user-claim email --user-domain example.com \
    --require '*=mcp' --require '*/write=tools:write|admin'
  mcpvault issuer put corp https://login.example.com --groups-claim groups --map Engineers=group:eng --create-users`

func putIssuer(a *cli.App) *cobra.Command {
	var w cli.Waiting
	i := &adminv1.Issuer{}
	var requires, mappings []string
	cmd := a.AdminLeaf("put NAME URL", "Trusts an issuer by these rules, and by no others that were there before. URL is exactly what its tokens have as iss.",
		putIssuerExample, cli.Args("NAME", "URL"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			i.Name, i.Url = args[0], args[1]
			for _, text := range requires {
				r, err := parseRequirement(text)
				if err != nil {
					return err
				}
				i.Scopes = append(i.Scopes, r)
			}
			for _, text := range mappings {
				at := strings.LastIndexByte(text, '=')
				if at < 1 {
					return problem.Newf(problem.Invalid, "write it like Engineers=group:eng", "%q is no mapping", text)
				}
				i.Mappings = append(i.Mappings, &adminv1.ClaimMapping{Value: text[:at], Target: text[at+1:]})
			}
			resp, err := c.Issuers.PutIssuer(ctx, &adminv1.PutIssuerRequest{Tenant: tenant, Issuer: i})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return cli.Print(a, viewIssuer(resp.GetIssuer()), issuerColumns()...)
		})
	f := cmd.Flags()
	f.StringVar(&i.JwksUrl, "jwks-url", "", "address of its keys; what its own metadata says when not given")
	f.StringArrayVar(&i.Audiences, "audience", nil, "audience accepted besides the public URLs of the cells; may be given several times")
	f.BoolVar(&i.AnyType, "any-type", false, "take access tokens whose header does not say at+jwt, as some issuers make them")
	f.StringVar(&i.UserClaim, "user-claim", "", "claim that names the user; sub when not given")
	f.StringVar(&i.UserDomain, "user-domain", "", "what must stand in it behind an @, and is cut off")
	f.StringVar(&i.UserPrefix, "user-prefix", "", "what is put before the name, so that it can mean nobody of another issuer")
	f.StringArrayVar(&requires, "require", nil, "scope that calls need: [SERVER or *][/read, /write or /destructive]=SCOPE[|WIDER]; may be given several times")
	f.StringVar(&i.GroupsClaim, "groups-claim", "", "claim that lists the user's groups, for `issuer provision`")
	f.StringArrayVar(&mappings, "map", nil, "what a value of it makes its holder a member of: VALUE=group:NAME, team:NAME or role:NAME; may be given several times")
	f.BoolVar(&i.CreateUsers, "create-users", false, "`issuer provision` makes users that are not there yet")
	return a.Publishes(cmd, &w)
}

func deleteIssuer(a *cli.App) *cobra.Command {
	var w cli.Waiting
	return a.Publishes(a.AdminLeaf("delete NAME", "Ends the trust in an issuer: no token of it is taken any more.", "  mcpvault issuer delete corp", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Issuers.DeleteIssuer(ctx, &adminv1.DeleteIssuerRequest{Tenant: tenant, Name: args[0]})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return nil
		}), &w)
}

func refreshIssuer(a *cli.App) *cobra.Command {
	var w cli.Waiting
	return a.Publishes(a.AdminLeaf("refresh NAME", "Fetches an issuer's keys now. The control plane does so every five minutes.", "  mcpvault issuer refresh corp", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Issuers.RefreshIssuer(ctx, &adminv1.RefreshIssuerRequest{Tenant: tenant, Name: args[0]})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return cli.Print(a, viewIssuer(resp.GetIssuer()), issuerColumns()...)
		}), &w)
}

func withdrawKey(a *cli.App) *cobra.Command {
	var w cli.Waiting
	return a.Publishes(a.AdminLeaf("withdraw-key NAME KID", "Takes a key of an issuer out of use for ever, even while the issuer goes on publishing it.",
		"  mcpvault issuer withdraw-key corp 2026-11-a", cli.Args("NAME", "KID"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Issuers.WithdrawIssuerKey(ctx, &adminv1.WithdrawIssuerKeyRequest{Tenant: tenant, Name: args[0], Kid: args[1]})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return cli.Print(a, viewIssuer(resp.GetIssuer()), issuerColumns()...)
		}), &w)
}

type provisionView struct {
	User    string   `json:"user"`
	Created bool     `json:"created"`
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
}

func provisionUser(a *cli.App) *cobra.Command {
	var w cli.Waiting
	return a.Publishes(a.AdminLeaf("provision FILE", "Brings a user and their memberships up to what a token in a file says, by the mappings of its issuer; - is standard input.",
		"  mcpvault issuer provision token.jwt", cli.Args("FILE"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			token, err := readToken(a, args[0])
			if err != nil {
				return err
			}
			resp, err := c.Issuers.ProvisionUser(ctx, &adminv1.ProvisionUserRequest{Tenant: tenant, Token: token})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			v := provisionView{resp.GetUser(), resp.GetCreated(), append([]string{}, resp.GetAdded()...), append([]string{}, resp.GetRemoved()...)}
			return cli.Print(a, v,
				output.Column[provisionView]{Head: "USER", Cell: func(v provisionView) string { return v.User }},
				output.Column[provisionView]{Head: "CREATED", Cell: func(v provisionView) string { return fmt.Sprint(v.Created) }},
				output.Column[provisionView]{Head: "ADDED", Cell: func(v provisionView) string { return strings.Join(v.Added, " ") }},
				output.Column[provisionView]{Head: "REMOVED", Cell: func(v provisionView) string { return strings.Join(v.Removed, " ") }})
		}), &w)
}

// readToken reads a token from a file: an argument would be seen in the list of processes.
func readToken(a *cli.App, name string) (string, error) {
	in := a.World().Stdin
	if name != "-" {
		if !filepath.IsAbs(name) {
			name = filepath.Join(a.WorkDir(), name)
		}
		f, err := os.Open(name)
		if err != nil {
			return "", problem.Newf(problem.NotFound, "check the name", "%s cannot be read", name).Because(err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	const most = 16 << 10
	raw, err := io.ReadAll(io.LimitReader(in, most+1))
	if err != nil {
		return "", err
	}
	if len(raw) > most {
		return "", problem.New(problem.Invalid, "the token is larger than 16 KiB", "give a file with nothing else in it")
	}
	return strings.TrimSpace(string(raw)), nil
}
