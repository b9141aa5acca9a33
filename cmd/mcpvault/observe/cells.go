package observe

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/machines"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type cellView struct {
	Name    string     `json:"name"`
	Tenants []string   `json:"orgs"`
	Nodes   []nodeView `json:"nodes"`
}

type nodeView struct {
	Cell      string            `json:"cell"`
	Node      string            `json:"node"`
	Connected bool              `json:"connected"`
	Raft      string            `json:"raft_state"`
	Leader    string            `json:"leader"`
	Applied   map[string]string `json:"applied"`
	States    map[string]string `json:"state_hashes"`
	Heartbeat string            `json:"heartbeat,omitempty"`
	// Confirmed is when each tenant's generation was last confirmed: its staleness bounds count from then.
	Confirmed map[string]string `json:"confirmed"`
	Roots     uint64            `json:"roots_version"`
	Seen      string            `json:"seen,omitempty"`
	Audit     uint64            `json:"audit_size"`
	Delivered uint64            `json:"audit_delivered"`
	Sessions  uint64            `json:"sessions"`
	MCPURL    string            `json:"mcp_url,omitempty"`
	Version   string            `json:"version,omitempty"`
	Started   string            `json:"started,omitempty"`
	SVIDUntil string            `json:"svid_not_after,omitempty"`
	Problems  []string          `json:"problems"`
}

func viewCell(c *adminv1.Cell) cellView {
	return cellView{c.GetName(), append([]string{}, c.GetTenants()...), output.Map(c.GetNodes(), func(n *adminv1.CellNode) nodeView { return viewNode(c, n) })}
}

func viewNode(c *adminv1.Cell, n *adminv1.CellNode) nodeView {
	s := n.GetStatus()
	applied, states, confirmed := map[string]string{}, map[string]string{}, map[string]string{}
	for _, h := range s.GetApplied() {
		states[h.GetTenantId()] = hex.EncodeToString(h.GetStateHash())
		confirmed[h.GetTenantId()] = output.Time(h.GetConfirmedMs())
		applied[h.GetTenantId()] = fmt.Sprintf("%d.%d", h.GetEpoch(), h.GetGeneration())
	}
	return nodeView{
		Cell: c.GetName(), Node: s.GetNode(), Connected: n.GetConnected(), Raft: s.GetRaftState(), Leader: s.GetLeader(), Applied: applied, States: states,
		Heartbeat: output.Time(s.GetHeartbeatMs()), Confirmed: confirmed, Roots: s.GetRootsVersion(), Seen: output.Time(n.GetSeenMs()), Audit: s.GetAuditSize(), Delivered: s.GetAuditDelivered(),
		Sessions: s.GetSessions(), MCPURL: s.GetMcpUrl(), Version: s.GetVersion(), Started: output.Time(s.GetStartedMs()),
		SVIDUntil: output.Time(s.GetSvidNotAfterMs()), Problems: append([]string{}, s.GetProblems()...),
	}
}

// oldestConfirmed is the time from which the first staleness bound counts.
func (n nodeView) oldestConfirmed() string {
	oldest := ""
	for _, at := range n.Confirmed {
		if oldest == "" || at < oldest {
			oldest = at
		}
	}
	return oldest
}

func (c cellView) connected() string {
	n := 0
	for _, node := range c.Nodes {
		if node.Connected {
			n++
		}
	}
	return fmt.Sprintf("%d of %d", n, len(c.Nodes))
}

func (c cellView) leader() string {
	for _, n := range c.Nodes {
		if n.Connected && n.Raft == "leader" {
			return n.Node
		}
	}
	return ""
}

func cells(ctx context.Context, c *admin.Client) ([]cellView, error) {
	resp, err := c.Cells.ListCells(ctx, &adminv1.ListCellsRequest{})
	return output.Map(resp.GetCells(), viewCell), err
}

func cellCommand(a *cli.App) *cobra.Command {
	list := a.AdminLeaf("list", "Lists the cells.", "  mcpvault cell list", cli.Args(),
		func(ctx context.Context, c *admin.Client, _ string, _ []string) error {
			rows, err := cells(ctx, c)
			if err != nil {
				return err
			}
			return cli.PrintList(a, rows,
				output.Column[cellView]{Head: "CELL", Cell: func(v cellView) string { return v.Name }},
				output.Column[cellView]{Head: "CONNECTED", Cell: cellView.connected},
				output.Column[cellView]{Head: "LEADER", Cell: cellView.leader},
				output.Column[cellView]{Head: "ORGS", Cell: func(v cellView) string { return strings.Join(v.Tenants, ",") }})
		})
	status := a.AdminLeaf("status [CELL]", "Shows each node: what it serves, how fresh it is, what is wrong with it.", "  mcpvault cell status local -o wide", cli.Args("[CELL]"),
		func(ctx context.Context, c *admin.Client, _ string, args []string) error {
			rows, err := cells(ctx, c)
			if err != nil {
				return err
			}
			nodes, found := []nodeView{}, false
			for _, r := range rows {
				if len(args) == 0 || r.Name == args[0] {
					nodes, found = append(nodes, r.Nodes...), true
				}
			}
			if !found && len(args) > 0 {
				return cli.Missing("cell", args[0], "cell")
			}
			return cli.PrintList(a, nodes, nodeColumns()...)
		})
	return a.Group("cell", "Cells: the places where calls are decided.", "  mcpvault cell status", list, status,
		machines.JoinTokens(a), machines.Join(a))
}

// states are the beginnings of the state hashes: nodes that serve one generation have the same.
func (n nodeView) states() string {
	var all []string
	for _, t := range output.Keys(n.States) {
		h := n.States[t]
		all = append(all, h[:min(len(h), 12)])
	}
	return strings.Join(all, ",")
}

func nodeColumns() []output.Column[nodeView] {
	text := func(f func(nodeView) string) func(nodeView) string { return f }
	return []output.Column[nodeView]{
		{Head: "NODE", Cell: func(v nodeView) string { return v.Cell + "/" + v.Node }},
		{Head: "CONNECTED", Cell: func(v nodeView) string { return output.YesNo(v.Connected) }},
		{Head: "RAFT", Cell: func(v nodeView) string { return v.Raft }},
		{Head: "SNAPSHOTS", Cell: text(func(v nodeView) string {
			var all []string
			for _, t := range output.Keys(v.Applied) {
				all = append(all, v.Applied[t])
			}
			return strings.Join(all, ",")
		})},
		{Head: "HEARTBEAT", Cell: func(v nodeView) string { return v.Heartbeat }},
		{Head: "CONFIRMED", Cell: nodeView.oldestConfirmed},
		{Head: "ROOTS", Cell: func(v nodeView) string { return fmt.Sprint(v.Roots) }, Wide: true},
		{Head: "AUDIT", Cell: func(v nodeView) string { return fmt.Sprintf("%d/%d", v.Delivered, v.Audit) }},
		{Head: "PROBLEMS", Cell: func(v nodeView) string { return strings.Join(v.Problems, "; ") }},
		{Head: "STATES", Cell: nodeView.states, Wide: true},
		{Head: "SESSIONS", Cell: func(v nodeView) string { return fmt.Sprint(v.Sessions) }, Wide: true},
		{Head: "MCP", Cell: func(v nodeView) string { return v.MCPURL }, Wide: true},
		{Head: "SEEN", Cell: func(v nodeView) string { return v.Seen }, Wide: true},
		{Head: "SVID UNTIL", Cell: func(v nodeView) string { return v.SVIDUntil }, Wide: true},
		{Head: "VERSION", Cell: func(v nodeView) string { return v.Version }, Wide: true},
	}
}

type generationView struct {
	Org        string    `json:"org"`
	Epoch      uint64    `json:"epoch"`
	Generation uint64    `json:"generation"`
	Revision   uint64    `json:"revision"`
	Digest     string    `json:"digest"`
	Kind       string    `json:"kind"`
	Base       uint64    `json:"base"`
	Bytes      uint64    `json:"bytes"`
	Created    string    `json:"created"`
	Acks       []ackView `json:"acks"`
}

type ackView struct {
	Node   string `json:"node"`
	Status string `json:"status"`
	Reason string `json:"reason,omitempty"`
	At     string `json:"at"`
}

func viewGeneration(g *adminv1.Generation) generationView {
	return generationView{
		g.GetTenant(), g.GetEpoch(), g.GetGeneration(), g.GetRevision(), g.GetDigest(), g.GetKind(), g.GetBase(), g.GetBytes(), output.Time(g.GetCreatedMs()),
		output.Map(g.GetAcks(), func(k *adminv1.NodeAck) ackView {
			return ackView{k.GetCell() + "/" + k.GetNode(), k.GetStatus(), k.GetReason(), output.Time(k.GetAtMs())}
		}),
	}
}

func (g generationView) applied() string {
	n := 0
	for _, k := range g.Acks {
		if k.Status == "applied" {
			n++
		}
	}
	return fmt.Sprintf("%d of %d", n, len(g.Acks))
}

// kind says of a delta on which head it rests.
func (g generationView) kind() string {
	if g.Base == g.Generation {
		return g.Kind
	}
	return fmt.Sprintf("%s on %d", g.Kind, g.Base)
}

func generationColumns() []output.Column[generationView] {
	return []output.Column[generationView]{
		{Head: "SNAPSHOT", Cell: func(v generationView) string { return fmt.Sprintf("%d.%d", v.Epoch, v.Generation) }},
		{Head: "ORG", Cell: func(v generationView) string { return v.Org }},
		{Head: "REVISION", Cell: func(v generationView) string { return fmt.Sprint(v.Revision) }},
		{Head: "KIND", Cell: generationView.kind},
		{Head: "BYTES", Cell: func(v generationView) string { return fmt.Sprint(v.Bytes) }},
		{Head: "CREATED", Cell: func(v generationView) string { return v.Created }},
		{Head: "APPLIED", Cell: generationView.applied},
		{Head: "DIGEST", Cell: func(v generationView) string { return v.Digest }, Wide: true},
	}
}

func snapshotCommand(a *cli.App) *cobra.Command {
	var limit uint32
	list := a.AdminLeaf("list", "Lists what was published, newest first.", "  mcpvault snapshot list --limit 5", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := c.Snapshots.ListGenerations(ctx, &adminv1.ListGenerationsRequest{Tenant: tenant, Limit: limit})
			if err != nil {
				return err
			}
			return cli.PrintList(a, output.Map(resp.GetGenerations(), viewGeneration), generationColumns()...)
		})
	list.Flags().Uint32Var(&limit, "limit", 20, "how many")
	get := a.AdminLeaf("get [GENERATION]", "Shows a generation, the newest when none is given.", "  mcpvault snapshot get 4 -o json", cli.Args("[GENERATION]"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			n, err := generationArg(args)
			if err != nil {
				return err
			}
			resp, err := c.Snapshots.GetGeneration(ctx, &adminv1.GetGenerationRequest{Tenant: tenant, Generation: n})
			if err != nil {
				return err
			}
			return cli.Print(a, viewGeneration(resp.GetGeneration()), generationColumns()...)
		})
	return a.Group("snapshot", "Snapshots: compiled policy, signed and numbered.", "  mcpvault snapshot list", list, get, verifySnapshot(a))
}

func generationArg(args []string) (uint64, error) {
	if len(args) == 0 {
		return 0, nil
	}
	var n uint64
	text := args[0]
	if _, after, ok := strings.Cut(text, "."); ok {
		text = after // epoch.generation, as it is printed elsewhere.
	}
	if _, err := fmt.Sscanf(text, "%d", &n); err != nil || fmt.Sprint(n) != text {
		return 0, problem.Newf(problem.Invalid, "give a number from `mcpvault snapshot list`", "%q is not a generation", args[0])
	}
	return n, nil
}

// filePrivate reports whether only its owner can read a file.
func filePrivate(path string) bool {
	info, err := os.Stat(path)
	return err != nil || info.Mode().Perm()&0o077 == 0
}
