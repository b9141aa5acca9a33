package manage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

type serverView struct {
	Name        string       `json:"name"`
	ID          string       `json:"id"`
	URL         string       `json:"url"`
	Description string       `json:"description,omitempty"`
	Published   uint32       `json:"published_version"`
	Latest      uint32       `json:"latest_version"`
	LastError   string       `json:"last_error,omitempty"`
	Scanned     string       `json:"scanned,omitempty"`
	Labels      []string     `json:"labels,omitempty"`
	Version     *versionView `json:"version,omitempty"`
}

type versionView struct {
	Number    uint32     `json:"number"`
	Digest    string     `json:"digest"`
	State     string     `json:"state"`
	Server    string     `json:"server,omitempty"`
	Protocols []string   `json:"protocol_versions"`
	Created   string     `json:"created"`
	Approved  string     `json:"approved,omitempty"`
	Approver  string     `json:"approved_by,omitempty"`
	Tools     []toolView `json:"tools"`
	Prompts   []toolView `json:"prompts,omitempty"`
	Resources []toolView `json:"resources,omitempty"`
	Templates []toolView `json:"resource_templates,omitempty"`
}

// all are the tools and whatever else a version has, as one list of what can be granted.
func (v versionView) all() []toolView {
	return slices.Concat(v.Tools, v.Prompts, v.Resources, v.Templates)
}

type toolView struct {
	Name        string          `json:"name"`
	Effect      string          `json:"effect,omitempty"`
	Labels      []string        `json:"labels,omitempty"`
	Change      string          `json:"change,omitempty"`
	Description string          `json:"description,omitempty"`
	Raw         json.RawMessage `json:"raw,omitempty"`
	// kind goes before the name of what is no tool.
	kind string
}

func viewServer(s *adminv1.Server, v *adminv1.ServerVersion) serverView {
	view := serverView{
		s.GetName(), s.GetId(), s.GetUrl(), s.GetDescription(), s.GetPublishedVersion(), s.GetLatestVersion(),
		s.GetLastError(), output.Time(s.GetScannedMs()), s.GetLabels(), nil,
	}
	if v != nil {
		version := viewVersion(v)
		view.Version = &version
	}
	return view
}

func viewVersion(v *adminv1.ServerVersion) versionView {
	return versionView{
		v.GetNumber(), v.GetDigest(), output.Word(v.GetState().String(), "VERSION_STATE_"),
		strings.TrimSpace(v.GetServerName() + " " + v.GetServerVersion()), append([]string{}, v.GetProtocolVersions()...),
		output.Time(v.GetCreatedMs()), output.Time(v.GetApprovedMs()), v.GetApprovedBy(),
		output.Map(v.GetTools(), func(t *adminv1.Tool) toolView {
			return toolView{t.GetName(), output.Word(t.GetEffect().String(), "EFFECT_"), t.GetLabels(), t.GetChange(), t.GetDescription(), rawOf(t.GetRaw()), ""}
		}),
		viewEntries("prompt:", v.GetPrompts()), viewEntries("resource:", v.GetResources()), viewEntries("template:", v.GetResourceTemplates()),
	}
}

func viewEntries(kind string, list []*adminv1.SurfaceEntry) []toolView {
	return output.Map(list, func(e *adminv1.SurfaceEntry) toolView {
		return toolView{e.GetName(), "", nil, e.GetChange(), e.GetDescription(), rawOf(e.GetRaw()), kind}
	})
}

func rawOf(b []byte) json.RawMessage {
	if !json.Valid(b) {
		return nil
	}
	return b
}

func schemaOf(v *adminv1.ServerVersion, tool string) json.RawMessage {
	for _, t := range v.GetTools() {
		if t.GetName() == tool {
			var body struct {
				InputSchema json.RawMessage `json:"inputSchema"`
			}
			_ = json.Unmarshal(t.GetRaw(), &body) // A tool without a schema types nothing.
			return body.InputSchema
		}
	}
	return nil
}

func serverColumns() []output.Column[serverView] {
	return []output.Column[serverView]{
		{Head: "NAME", Cell: func(v serverView) string { return v.Name }},
		{Head: "URL", Cell: func(v serverView) string { return v.URL }},
		{Head: "PUBLISHED", Cell: func(v serverView) string { return number(v.Published) }},
		{Head: "LATEST", Cell: func(v serverView) string { return number(v.Latest) }},
		{Head: "PROBLEM", Cell: func(v serverView) string { return v.LastError }},
		{Head: "LABELS", Cell: func(v serverView) string { return strings.Join(v.Labels, ",") }, Wide: true},
		{Head: "SCANNED", Cell: func(v serverView) string { return v.Scanned }, Wide: true},
		{Head: "DESCRIPTION", Cell: func(v serverView) string { return v.Description }, Wide: true},
		{Head: "ID", Cell: func(v serverView) string { return v.ID }, Wide: true},
	}
}

func number(n uint32) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(n), 10)
}

func toolColumns() []output.Column[toolView] {
	return []output.Column[toolView]{
		{Head: "TOOL", Cell: func(t toolView) string { return t.kind + t.Name }},
		{Head: "EFFECT", Cell: func(t toolView) string { return t.Effect }},
		{Head: "CHANGE", Cell: func(t toolView) string { return t.Change }},
		{Head: "LABELS", Cell: func(t toolView) string { return strings.Join(t.Labels, ",") }, Wide: true},
		{Head: "DESCRIPTION", Cell: func(t toolView) string { return t.Description }},
	}
}

// printServer prints a server and the tools of its version.
func printServer(a *cli.App, s *adminv1.Server, v *adminv1.ServerVersion) error {
	view := viewServer(s, v)
	if err := cli.Print(a, view, serverColumns()...); err != nil || view.Version == nil || (a.Format() != output.Table && a.Format() != output.Wide) {
		return err
	}
	if _, err := fmt.Fprintf(a.World().Stdout, "\nversion %d (%s), %s\n", view.Version.Number, view.Version.State, view.Version.Digest); err != nil {
		return err
	}
	return cli.PrintList(a, view.Version.all(), toolColumns()...)
}

func serverCommand(a *cli.App) *cobra.Command {
	return a.Group("server", "MCP servers behind the vault, and the versions of them that were approved.", "  mcpvault server list",
		addServer(a), listServers(a),
		completed(a, a.AdminLeaf("get NAME", "Shows a server and what its published version offers.", "  mcpvault server get payments", cli.Args("NAME"),
			func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
				resp, err := c.Registry.GetServer(ctx, &adminv1.GetServerRequest{Tenant: tenant, Name: args[0]})
				if err != nil {
					return err
				}
				return printServer(a, resp.GetServer(), resp.GetVersion())
			})),
		completed(a, serverVersions(a)), completed(a, scanServer(a)), completed(a, approveServer(a)), completed(a, labelServer(a)), completed(a, removeServer(a)))
}

func completed(a *cli.App, cmd *cobra.Command) *cobra.Command {
	cmd.ValidArgsFunction = a.Names(func(ctx context.Context, c *admin.Client, tenant string) ([]string, error) {
		resp, err := c.Registry.ListServers(ctx, &adminv1.ListServersRequest{Tenant: tenant})
		return output.Map(resp.GetServers(), (*adminv1.Server).GetName), err
	})
	return cmd
}

func addServer(a *cli.App) *cobra.Command {
	var address, description, surface, identity string
	var remoteRefs bool
	cmd := a.AdminLeaf("add NAME", "Registers a server and reads its tools. Nobody is served before a version is approved.",
		"  mcpvault server add jira --url https://jira.example.com/mcp\n  mcpvault server add files --url stdio:files --surface files.json", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			if address == "" {
				return problem.New(problem.Invalid, "mcpvault server add needs --url", "for example: `mcpvault server add jira --url https://jira.example.com/mcp`")
			}
			given, err := readSurface(a, surface)
			if err != nil {
				return err
			}
			if address, err = svid.JoinAddress(address, identity); err != nil {
				return problem.New(problem.Invalid, "the server cannot prove that identity: "+err.Error(), "for example: `--url https://pay.internal/mcp --spiffe-id spiffe://corp.example/pay`")
			}
			resp, err := c.Registry.AddServer(ctx, &adminv1.AddServerRequest{Tenant: tenant, Name: args[0], Url: address, Description: description, Surface: given, RemoteRefs: remoteRefs})
			if err != nil {
				return err
			}
			if e := resp.GetServer().GetLastError(); e != "" {
				a.Warnf("%s is registered, but its tools could not be read: %s; try again with `mcpvault server scan %s`", args[0], output.Clean(e), args[0])
			} else {
				a.Notef("approve it with `mcpvault server approve %s --effect hints`", args[0])
			}
			return printServer(a, resp.GetServer(), resp.GetVersion())
		})
	cmd.Flags().StringVar(&address, "url", "", "address of its Streamable HTTP endpoint; sse+https://... for the transport of 2024-11-05; stdio:NAME for a server that the nodes run")
	cmd.Flags().StringVar(&identity, "spiffe-id", "", "who must answer at the address, by mTLS with SVIDs instead of the host's name: spiffe://corp.example/pay")
	cmd.Flags().StringVar(&surface, "surface", "", surfaceUsage)
	cmd.Flags().BoolVar(&remoteRefs, "remote-refs", false, remoteRefsUsage)
	cmd.Flags().StringVar(&description, "description", "", "what it is for")
	return cmd
}

const remoteRefsUsage = "take tools whose schemas refer to something outside of themselves; nothing here fetches that, but a client might"

const surfaceUsage = "with stdio:NAME: the file that `mcpvault-cell stdio scan` printed"

// maxSurface bounds the file of a surface.
const maxSurface = 8 << 20

func readSurface(a *cli.App, path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(a.WorkDir(), path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, problem.New(problem.Invalid, "the surface cannot be read: "+err.Error(), "give the file that `mcpvault-cell stdio scan` printed")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSurface+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(b) > maxSurface {
		return nil, problem.Newf(problem.Invalid, "have the server offer less", "the surface is larger than %d MiB", maxSurface>>20)
	}
	return b, nil
}

func listServers(a *cli.App) *cobra.Command {
	return a.AdminLeaf("list", "Lists the servers.", "  mcpvault server list -o wide", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := c.Registry.ListServers(ctx, &adminv1.ListServersRequest{Tenant: tenant})
			if err != nil {
				return err
			}
			return cli.PrintList(a, output.Map(resp.GetServers(), func(s *adminv1.Server) serverView { return viewServer(s, nil) }), serverColumns()...)
		})
}

func serverVersions(a *cli.App) *cobra.Command {
	return a.AdminLeaf("versions NAME", "Lists the versions of a server: each is one state of its tools.", "  mcpvault server versions payments", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Registry.ListVersions(ctx, &adminv1.ListVersionsRequest{Tenant: tenant, Name: args[0]})
			if err != nil {
				return err
			}
			return cli.PrintList(a, output.Map(resp.GetVersions(), viewVersion),
				output.Column[versionView]{Head: "VERSION", Cell: func(v versionView) string { return number(v.Number) }},
				output.Column[versionView]{Head: "STATE", Cell: func(v versionView) string { return v.State }},
				output.Column[versionView]{Head: "TOOLS", Cell: func(v versionView) string { return strconv.Itoa(len(v.Tools)) }},
				output.Column[versionView]{Head: "APPROVED BY", Cell: func(v versionView) string { return v.Approver }},
				output.Column[versionView]{Head: "CREATED", Cell: func(v versionView) string { return v.Created }},
				output.Column[versionView]{Head: "DIGEST", Cell: func(v versionView) string { return v.Digest }, Wide: true},
				output.Column[versionView]{Head: "SERVER", Cell: func(v versionView) string { return v.Server }, Wide: true},
				output.Column[versionView]{Head: "PROTOCOLS", Cell: func(v versionView) string { return strings.Join(v.Protocols, ",") }, Wide: true})
		})
}

func scanServer(a *cli.App) *cobra.Command {
	var surface string
	var remoteRefs bool
	cmd := a.AdminLeaf("scan NAME", "Reads a server's tools again.", "  mcpvault server scan payments", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			given, err := readSurface(a, surface)
			if err != nil {
				return err
			}
			resp, err := c.Registry.ScanServer(ctx, &adminv1.ScanServerRequest{Tenant: tenant, Name: args[0], Surface: given, RemoteRefs: remoteRefs})
			if err != nil {
				return err
			}
			switch {
			case resp.GetServer().GetLastError() != "":
				a.Warnf("its tools could not be read: %s", output.Clean(resp.GetServer().GetLastError()))
			case resp.GetIsNew():
				a.Notef("its tools have changed: this is a new version, not served before it is approved")
			default:
				a.Notef("nothing has changed")
			}
			return printServer(a, resp.GetServer(), resp.GetVersion())
		})
	cmd.Flags().StringVar(&surface, "surface", "", surfaceUsage)
	cmd.Flags().BoolVar(&remoteRefs, "remote-refs", false, remoteRefsUsage)
	return cmd
}

func approveServer(a *cli.App) *cobra.Command {
	var w cli.Waiting
	var version uint32
	var effect string
	var tools []string
	cmd := a.AdminLeaf("approve NAME", "Publishes the newest version of a server and says what each of its tools can do to the world.",
		`  mcpvault server approve payments --effect hints --tool refund=destructive
  mcpvault server approve wiki --effect read`, cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			req := &adminv1.ApproveVersionRequest{Tenant: tenant, Name: args[0], Version: version}
			if err := effects(req, effect, tools); err != nil {
				return err
			}
			resp, err := c.Registry.ApproveVersion(ctx, req)
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return printServer(a, resp.GetServer(), resp.GetVersion())
		})
	cmd.Flags().Uint32Var(&version, "version", 0, "number of the version; the newest when not given")
	cmd.Flags().StringVar(&effect, "effect", "", "class of every tool not named by --tool: read, write, destructive, or hints to take what the server says; destructive when not given")
	cmd.Flags().StringArrayVar(&tools, "tool", nil, "TOOL=CLASS: the class of one tool; may be given again")
	return a.Publishes(cmd, &w)
}

// effects reads the effect classes that an approver gave.
func effects(req *adminv1.ApproveVersionRequest, all string, tools []string) error {
	req.Source = adminv1.EffectSource_EFFECT_SOURCE_GIVEN
	switch all {
	case "":
		req.DefaultEffect = snapshotv1.Effect_EFFECT_DESTRUCTIVE
	case "hints":
		req.Source = adminv1.EffectSource_EFFECT_SOURCE_HINTS
	default:
		e, err := effectClass(all)
		if err != nil {
			return err
		}
		req.DefaultEffect = e
	}
	for _, t := range tools {
		name, class, ok := strings.Cut(t, "=")
		if !ok || name == "" {
			return problem.Newf(problem.Invalid, "write --tool TOOL=CLASS, for example --tool refund=destructive", "%q gives no tool a class", t)
		}
		e, err := effectClass(class)
		if err != nil {
			return err
		}
		if req.ToolEffects == nil {
			req.ToolEffects = map[string]snapshotv1.Effect{}
		}
		req.ToolEffects[name] = e
	}
	return nil
}

func effectClass(s string) (snapshotv1.Effect, error) {
	switch s {
	case "read":
		return snapshotv1.Effect_EFFECT_READ, nil
	case "write":
		return snapshotv1.Effect_EFFECT_WRITE, nil
	case "destructive":
		return snapshotv1.Effect_EFFECT_DESTRUCTIVE, nil
	}
	return 0, problem.Newf(problem.Invalid, "use read, write or destructive", "%q is not a class of effects", s)
}

func removeServer(a *cli.App) *cobra.Command {
	var w cli.Waiting
	cmd := a.AdminLeaf("rm NAME", "Takes a server away.", "  mcpvault server rm jira", cli.Args("NAME"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Registry.RemoveServer(ctx, &adminv1.RemoveServerRequest{Tenant: tenant, Name: args[0]})
			if err != nil {
				return err
			}
			a.Published(ctx, c, tenant, resp.GetRevision(), w)
			return nil
		})
	return a.Publishes(cmd, &w)
}
