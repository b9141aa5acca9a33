package cli

import (
	"context"
	"errors"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// maxToken bounds what is read as a token.
const maxToken = 16 << 10

type identity struct {
	Principal string   `json:"principal"`
	Org       string   `json:"org,omitempty"`
	Roles     []string `json:"roles"`
	Expires   string   `json:"expires,omitempty"`
	AdminURL  string   `json:"admin_url"`
}

func (a *App) printIdentity(r *adminv1.WhoamiResponse, address string) error {
	return Print(a, identity{r.GetPrincipal(), r.GetTenant(), append([]string{}, r.GetRoles()...), output.Time(r.GetExpiresMs()), address},
		output.Column[identity]{Head: "PRINCIPAL", Cell: func(v identity) string { return v.Principal }},
		output.Column[identity]{Head: "ORG", Cell: func(v identity) string { return v.Org }},
		output.Column[identity]{Head: "ROLES", Cell: func(v identity) string { return strings.Join(v.Roles, ",") }},
		output.Column[identity]{Head: "EXPIRES", Cell: func(v identity) string { return v.Expires }},
		output.Column[identity]{Head: "CONTROL PLANE", Cell: func(v identity) string { return v.AdminURL }})
}

func (a *App) whoamiCommand() *cobra.Command {
	return a.AdminLeaf("whoami", "Says who the control plane takes you for.", "  mcpvault whoami\n  mcpvault whoami --as alice", Args(),
		func(ctx context.Context, c *admin.Client, _ string, _ []string) error {
			resp, err := c.System.Whoami(ctx, &adminv1.WhoamiRequest{})
			if err != nil {
				return err
			}
			return a.printIdentity(resp, c.URL)
		})
}

func (a *App) loginCommand() *cobra.Command {
	var tokenFile, name string
	var nodes []string
	cmd := a.Leaf("login", "Checks an access token and keeps it in a context.",
		`  mcpvault login --addr https://vault.example.com --token-file token.jwt
  printf %s "$TOKEN" | mcpvault login --addr https://vault.example.com --token-file - --name prod`, Args(),
		func(ctx context.Context, _ []string) error {
			path := a.ContextFile()
			file, err := contexts.Load(path)
			if err != nil {
				return err
			}
			c, name, err := a.loginTarget(file, name)
			if err != nil {
				return err
			}
			token, err := a.readToken(tokenFile)
			if err != nil {
				return err
			}
			a.adminURL = c.AdminURL
			client, err := admin.Dial(admin.Config{URL: c.AdminURL, Token: token, CAFile: c.CAFile, Version: a.cfg.Version})
			if err != nil {
				return err
			}
			who, err := client.System.Whoami(ctx, &adminv1.WhoamiRequest{})
			if err != nil {
				return err
			}
			remember(c, who, token, nodes, a.flags.org)
			file.Set(name, c)
			file.Current = name
			if err := contexts.Save(path, file); err != nil {
				return err
			}
			a.Notef("logged in as %s; context %s is now the current one", who.GetPrincipal(), name)
			return a.printIdentity(who, c.AdminURL)
		})
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "file that holds the token, - for standard input; else MCPVAULT_TOKEN")
	cmd.Flags().StringVar(&name, "name", "", "name of the context; the host's when not given")
	cmd.Flags().StringSliceVar(&nodes, "mcp-url", nil, "address of a cell's MCP endpoint, ending in /mcp; may be given again")
	return cmd
}

// loginTarget is the context that a login fills, and its name.
func (a *App) loginTarget(file *contexts.File, name string) (*contexts.Context, string, error) {
	if a.flags.addr == "" {
		if name == "" {
			name = a.flags.context
		}
		if name == "" {
			name = file.Current
		}
		c, err := file.Get(name)
		if err != nil {
			return nil, "", problem.New(problem.Invalid, "it is not said where to log in", "give --addr URL, for example `mcpvault login --addr https://vault.example.com`")
		}
		return c, name, nil
	}
	if name == "" {
		u, err := url.Parse(a.flags.addr)
		if err != nil || u.Host == "" {
			return nil, "", problem.Newf(problem.Invalid, "give it as https://HOST:PORT", "%q is not an address", a.flags.addr)
		}
		name = u.Host
	}
	c := file.Contexts[name]
	if c == nil {
		c = &contexts.Context{}
	}
	c.AdminURL = a.flags.addr
	if a.flags.caFile != "" {
		c.CAFile = a.flags.caFile
	}
	return c, name, nil
}

func remember(c *contexts.Context, who *adminv1.WhoamiResponse, token string, nodes []string, org string) {
	c.AdminToken = token
	if c.Tokens == nil {
		c.Tokens = map[string]string{}
	}
	if p := who.GetPrincipal(); p != "" {
		c.Tokens[p], c.As = token, p
	}
	if len(nodes) > 0 {
		c.MCPURLs = nodes
	}
	switch {
	case org != "":
		c.Tenant = org
	case who.GetTenant() != "":
		c.Tenant = who.GetTenant()
	}
}

// readToken reads a token from the named file or the environment. There is no flag for the token itself: a command line
// is for everybody on the machine to see.
func (a *App) readToken(path string) (string, error) {
	var in io.Reader
	switch path {
	case "":
		if t := a.Getenv("MCPVAULT_TOKEN"); t != "" {
			return t, nil
		}
		return "", problem.New(problem.Invalid, "there is no token to log in with", "give --token-file FILE (- for standard input), or set MCPVAULT_TOKEN")
	case "-":
		in = a.cfg.Stdin
	default:
		f, err := os.Open(path)
		if err != nil {
			return "", problem.New(problem.NotFound, "the token cannot be read: "+err.Error(), "check --token-file")
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxToken+1))
	if err != nil {
		return "", problem.New(problem.Invalid, "the token cannot be read: "+err.Error(), "check --token-file")
	}
	token := strings.TrimSpace(string(raw))
	if token == "" || len(raw) > maxToken || strings.ContainsAny(token, " \r\n\t") {
		return "", problem.New(problem.Invalid, "what was given is not a token", "a token is one word of at most 16 KiB")
	}
	return token, nil
}

func (a *App) logoutCommand() *cobra.Command {
	return a.Leaf("logout", "Forgets the tokens of a context.", "  mcpvault logout\n  mcpvault logout --context prod", Args(),
		func(context.Context, []string) error {
			return a.changeContexts(func(f *contexts.File) error {
				c, err := f.Get(a.flags.context)
				if err != nil {
					return err
				}
				c.AdminToken, c.Tokens, c.As = "", nil, ""
				a.Notef("the tokens are forgotten here; take them back everywhere with `mcpvault token revoke`")
				return nil
			})
		})
}

// changeContexts changes the file of contexts.
func (a *App) changeContexts(change func(*contexts.File) error) error {
	path := a.ContextFile()
	file, err := contexts.Load(path)
	if err != nil {
		return err
	}
	if err := change(file); err != nil {
		return err
	}
	return contexts.Save(path, file)
}

type contextView struct {
	Name     string   `json:"name"`
	Current  bool     `json:"current"`
	AdminURL string   `json:"admin_url"`
	Org      string   `json:"org,omitempty"`
	People   []string `json:"people"`
	MCPURLs  []string `json:"mcp_urls"`
}

func (a *App) contextCommand() *cobra.Command {
	names := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		f, err := contexts.Load(a.ContextFile())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return f.Names(), cobra.ShellCompDirectiveNoFileComp
	}
	use := a.Leaf("use NAME", "Makes a context the current one.", "  mcpvault context use prod", Args("NAME"),
		func(_ context.Context, args []string) error {
			return a.changeContexts(func(f *contexts.File) error {
				if _, err := f.Get(args[0]); err != nil {
					return err
				}
				f.Current = args[0]
				return nil
			})
		})
	rm := a.Leaf("rm NAME", "Forgets a context.", "  mcpvault context rm prod", Args("NAME"),
		func(_ context.Context, args []string) error {
			return a.changeContexts(func(f *contexts.File) error { return f.Remove(args[0]) })
		})
	use.ValidArgsFunction, rm.ValidArgsFunction = names, names
	return a.Group("context", "Installations that this command line knows.", "  mcpvault context list", a.listContexts(), use, a.addContext(), rm)
}

func (a *App) listContexts() *cobra.Command {
	return a.Leaf("list", "Lists the contexts.", "  mcpvault context list -o wide", Args(),
		func(context.Context, []string) error {
			f, err := contexts.Load(a.ContextFile())
			if err != nil {
				return err
			}
			rows := output.Map(f.Names(), func(n string) contextView {
				c := f.Contexts[n]
				return contextView{n, n == f.Current, c.AdminURL, c.Tenant, output.Keys(c.Tokens), append([]string{}, c.MCPURLs...)}
			})
			return PrintList(a, rows,
				output.Column[contextView]{Head: "NAME", Cell: func(v contextView) string { return v.Name }},
				output.Column[contextView]{Head: "CURRENT", Cell: func(v contextView) string { return mark(v.Current) }},
				output.Column[contextView]{Head: "CONTROL PLANE", Cell: func(v contextView) string { return v.AdminURL }},
				output.Column[contextView]{Head: "ORG", Cell: func(v contextView) string { return v.Org }},
				output.Column[contextView]{Head: "PEOPLE", Cell: func(v contextView) string { return strings.Join(v.People, ",") }},
				output.Column[contextView]{Head: "MCP", Cell: func(v contextView) string { return strings.Join(v.MCPURLs, ",") }, Wide: true})
		})
}

func mark(b bool) string {
	if b {
		return "*"
	}
	return " "
}

func (a *App) addContext() *cobra.Command {
	var nodes []string
	var roots string
	cmd := a.Leaf("add NAME", "Adds a context; log in to it afterwards.",
		"  mcpvault context add prod --addr https://vault.example.com --mcp-url https://eu.vault.example.com/mcp", Args("NAME"),
		func(_ context.Context, args []string) error {
			if a.flags.addr == "" {
				return problem.New(problem.Invalid, "mcpvault context add needs --addr", "for example: `mcpvault context add prod --addr https://vault.example.com`")
			}
			return a.changeContexts(func(f *contexts.File) error {
				if f.Contexts[args[0]] != nil {
					return problem.Newf(problem.Conflict, "remove it first with `mcpvault context rm "+args[0]+"`", "context %q exists already", args[0])
				}
				f.Set(args[0], &contexts.Context{AdminURL: a.flags.addr, CAFile: a.flags.caFile, RootsFile: roots, MCPURLs: nodes, Tenant: a.flags.org})
				return nil
			})
		})
	cmd.Flags().StringSliceVar(&nodes, "mcp-url", nil, "address of a cell's MCP endpoint, ending in /mcp; may be given again")
	cmd.Flags().StringVar(&roots, "roots", "", "file of root keys that snapshots are checked against")
	return cmd
}

// SaveToken keeps a person's token in the current context.
func (a *App) saveToken(who, token string) error {
	return a.changeContexts(func(f *contexts.File) error {
		c, err := f.Get(a.flags.context)
		if err != nil {
			return errors.Join(problem.New(problem.NotFound, "there is no context to save the token in", "print it instead: leave --save out"), err)
		}
		if c.Tokens == nil {
			c.Tokens = map[string]string{}
		}
		c.Tokens[who] = token
		return nil
	})
}
