package cli

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/mcpclient"
	"github.com/mcpvault/mcpvault/kit/nearest"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// ContextFile is where contexts are kept.
func (a *App) ContextFile() string {
	if a.flags.config != "" {
		return a.flags.config
	}
	return contexts.Locate(a.Getenv, a.WorkDir())
}

// Context returns the context in use, with what flags and environment put in place of its values.
func (a *App) Context() (*contexts.Context, error) {
	file, err := contexts.Load(a.ContextFile())
	if err != nil {
		return nil, err
	}
	c, err := file.Get(a.flags.context)
	if err != nil {
		if a.flags.addr == "" || a.flags.context != "" {
			return nil, err
		}
		c = &contexts.Context{}
	}
	used := *c
	if a.flags.addr != "" && a.flags.addr != used.AdminURL {
		// A token is for the place that it was made for.
		used.AdminURL, used.AdminToken, used.Tokens = a.flags.addr, "", nil
	}
	if a.flags.caFile != "" {
		used.CAFile = a.flags.caFile
	}
	if a.flags.org != "" {
		used.Tenant = a.flags.org
	}
	return &used, nil
}

// token returns the token to use: that of --as, else MCPVAULT_TOKEN, else fallback.
func (a *App) token(c *contexts.Context, fallback string) (string, error) {
	if a.flags.as != "" {
		return personToken(c, a.flags.as)
	}
	if t := a.Getenv("MCPVAULT_TOKEN"); t != "" {
		return t, nil
	}
	return fallback, nil
}

func personToken(c *contexts.Context, who string) (string, error) {
	if t := c.Tokens[who]; t != "" {
		return t, nil
	}
	fix := "make one with `mcpvault token create " + who + " --save`"
	if len(c.Tokens) > 0 {
		fix += ", or use one of " + strings.Join(slices.Sorted(maps.Keys(c.Tokens)), ", ")
	}
	return "", problem.Newf(problem.Unauthenticated, fix, "the context has no token of %s", who)
}

// Admin connects to the control plane.
func (a *App) Admin() (*admin.Client, *contexts.Context, error) {
	c, err := a.Context()
	if err != nil {
		return nil, nil, err
	}
	token, err := a.token(c, c.AdminToken)
	if err != nil {
		return nil, nil, err
	}
	if c.AdminURL == "" {
		return nil, nil, problem.New(problem.Invalid, "the context names no control plane", "give --addr URL, or log in with `mcpvault login --addr URL`")
	}
	a.adminURL = c.AdminURL
	client, err := admin.Dial(admin.Config{URL: c.AdminURL, Token: token, CAFile: c.CAFile, Version: a.cfg.Version})
	return client, c, err
}

// AdminLeaf makes a command that talks to the control plane.
func (a *App) AdminLeaf(use, short, example string, args cobra.PositionalArgs,
	run func(ctx context.Context, c *admin.Client, tenant string, args []string) error,
) *cobra.Command {
	return a.Leaf(use, short, example, args, func(ctx context.Context, args []string) error {
		client, c, err := a.Admin()
		if err != nil {
			return err
		}
		return run(ctx, client, c.Tenant, args)
	})
}

// Names completes words with what the control plane knows. A shell waits for it, so errors are silence.
func (a *App) Names(list func(ctx context.Context, c *admin.Client, tenant string) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		client, c, err := a.Admin()
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		found, err := list(ctx, client, c.Tenant)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// caller makes MCP clients for one person.
type caller struct {
	app    *App
	who    string
	token  string
	host   string
	nodes  []string
	http   *http.Client
	era    string
	notify func(method string, params json.RawMessage)
	// near chooses the node; nil when there is one only.
	near *nearest.Transport
}

// newCaller finds out as whom and through which nodes to call; node picks one by position (1 is the first), by address
// or by name.
func (a *App) newCaller(node, era string) (*caller, error) {
	c, err := a.Context()
	if err != nil {
		return nil, err
	}
	who := a.flags.as
	if who == "" {
		who = c.As
	}
	fallback := c.Tokens[who]
	token, err := a.token(c, fallback)
	if err != nil {
		return nil, err
	}
	if token == "" {
		fix := "give --as NAME"
		if len(c.Tokens) > 0 {
			fix += ", one of " + strings.Join(slices.Sorted(maps.Keys(c.Tokens)), ", ")
		}
		return nil, problem.New(problem.Unauthenticated, "it is not said who calls", fix)
	}
	nodes, err := pickNodes(c.MCPURLs, node)
	if err != nil {
		return nil, err
	}
	base, err := admin.HTTPTransport(c.CAFile)
	if err != nil {
		return nil, err
	}
	base.DisableKeepAlives = true
	k := &caller{app: a, who: who, token: token, host: c.HostFor(token), nodes: nodes, http: mcpclient.NewHTTP(base), era: era}
	if len(nodes) > 1 {
		err = k.useNearest()
	}
	return k, err
}

// useNearest sends calls to the nearest of the cells that the nodes know, and to the next where it is gone.
func (c *caller) useNearest() error {
	near, err := nearest.New(nearest.Config{
		Seeds: c.nodes, Host: c.host, Base: c.http.Transport,
		OnSwitch: func(from, to string) {
			if from != "" {
				c.app.Notef("%s does not answer, using %s", from, to)
			}
		},
	})
	if err != nil {
		return problem.New(problem.Invalid, err.Error(), "check mcp_urls of the context")
	}
	c.near, c.http.Transport = near, near
	return nil
}

// client makes a client for one server of one node; "" means the aggregate of all servers.
func (c *caller) client(node, server string) *mcpclient.Client {
	endpoint := strings.TrimRight(node, "/")
	if server != "" {
		endpoint += "/" + url.PathEscape(server)
	}
	return mcpclient.New(mcpclient.Config{
		URL: endpoint, Host: c.host, Token: c.token, HTTP: c.http, Era: c.era,
		ClientVersion: c.app.cfg.Version, Notify: c.notify,
	})
}

// do talks to a server through whichever node it is.
func (c *caller) do(ctx context.Context, server string, f func(ctx context.Context, client *mcpclient.Client) error) error {
	if c.near != nil {
		defer func() { _ = c.near.Close() }()
	}
	client := c.client(c.nodes[0], server)
	err := f(ctx, client)
	_ = client.Close(context.WithoutCancel(ctx)) // The session ends by itself otherwise.
	return err
}
