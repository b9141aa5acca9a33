package observe

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

type memberView struct {
	Cell   string `json:"cell"`
	Node   string `json:"node"`
	Votes  bool   `json:"votes"`
	Leader bool   `json:"leader"`
	// Heard is in milliseconds; null when the leader has not heard of it, or nobody leads.
	Heard   *int64 `json:"last_contact_ms"`
	Behind  uint64 `json:"behind"`
	Version string `json:"version,omitempty"`
	Raft    string `json:"raft,omitempty"`
	Peer    string `json:"peer,omitempty"`
}

func (v memberView) heard() string {
	if v.Heard == nil {
		return "-"
	}
	return (time.Duration(*v.Heard) * time.Millisecond).String()
}

func viewMembers(cell string, r *adminv1.ListMembersResponse) []memberView {
	all := []memberView{}
	for _, m := range r.GetMembers() {
		v := memberView{
			Cell: cell, Node: m.GetNode(), Votes: m.GetVotes(), Leader: m.GetNode() == r.GetLeader(), Behind: m.GetBehind(),
			Version: m.GetVersion(), Raft: m.GetRaft(), Peer: m.GetPeer(),
		}
		if m.GetKnown() {
			heard := m.GetHeardMs()
			v.Heard = &heard
		}
		all = append(all, v)
	}
	return all
}

func memberColumns() []output.Column[memberView] {
	return []output.Column[memberView]{
		{Head: "NODE", Cell: func(v memberView) string { return v.Cell + "/" + v.Node }},
		{Head: "VOTES", Cell: func(v memberView) string { return output.YesNo(v.Votes) }},
		{Head: "LEADER", Cell: func(v memberView) string { return output.YesNo(v.Leader) }},
		{Head: "LAST CONTACT", Cell: memberView.heard},
		{Head: "BEHIND", Cell: func(v memberView) string { return fmt.Sprint(v.Behind) }},
		{Head: "VERSION", Cell: func(v memberView) string { return v.Version }},
		{Head: "RAFT", Cell: func(v memberView) string { return v.Raft }, Wide: true},
		{Head: "PEER", Cell: func(v memberView) string { return v.Peer }, Wide: true},
	}
}

func membersCommand(a *cli.App) *cobra.Command {
	return a.AdminLeaf("members [CELL]", "Shows who belongs to a cell: who votes, who leads, when each was last heard of.", "  mcpvault cell members local -o wide", cli.Args("[CELL]"),
		func(ctx context.Context, c *admin.Client, _ string, args []string) error {
			cell, err := theCell(ctx, c, args)
			if err != nil {
				return err
			}
			r, err := c.Cells.ListMembers(ctx, &adminv1.ListMembersRequest{Cell: cell})
			if err != nil {
				return err
			}
			if r.GetLeader() == "" {
				a.Warnf("nobody leads cell %s: decisions go on, sessions and policy do not replicate", cell)
			}
			if len(r.GetRemoved()) > 0 {
				a.Notef("removed for good: %s", strings.Join(r.GetRemoved(), ", "))
			}
			return cli.PrintList(a, viewMembers(cell, r), memberColumns()...)
		})
}

// theCell is the one that is named, or the only one.
func theCell(ctx context.Context, c *admin.Client, args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	all, err := cells(ctx, c)
	if err != nil {
		return "", err
	}
	if len(all) != 1 {
		return "", problem.Newf(problem.Invalid, "name one of those that `mcpvault cell list` shows", "there are %d cells", len(all))
	}
	return all[0].Name, nil
}

// aNode reads CELL/NODE, or NODE where there is only one cell.
func aNode(ctx context.Context, c *admin.Client, arg string) (cell, node string, err error) {
	cell, node, ok := strings.Cut(arg, "/")
	if ok && cell != "" && node != "" {
		return cell, node, nil
	}
	if ok || arg == "" {
		return "", "", problem.Newf(problem.Invalid, "give it as `mcpvault cell members` shows it: CELL/NODE", "%q is no node", arg)
	}
	cell, err = theCell(ctx, c, nil)
	return cell, arg, err
}

func addMember(a *cli.App) *cobra.Command {
	var raft, peer string
	cmd := a.AdminLeaf("add NODE", "Takes a node into its cell. It gets a vote when it has caught up.",
		`  mcpvault cell add eu/n4
  mcpvault cell add eu/n4 --raft 10.0.0.4:7000 --peer 10.0.0.4:7001`, cli.Args("NODE"),
		func(ctx context.Context, c *admin.Client, _ string, args []string) error {
			cell, node, err := aNode(ctx, c, args[0])
			if err != nil {
				return err
			}
			if _, err := c.Cells.AddMember(ctx, &adminv1.AddMemberRequest{Cell: cell, Node: node, Raft: raft, Peer: peer}); err != nil {
				return err
			}
			a.Notef("%s/%s is a member and catches up: `mcpvault cell members %s` shows when it votes", cell, node, cell)
			return nil
		})
	cmd.Flags().StringVar(&raft, "raft", "", "host:port of its log, when it has not said so itself")
	cmd.Flags().StringVar(&peer, "peer", "", "host:port where its peers reach it, likewise")
	return cmd
}

func removeMember(a *cli.App) *cobra.Command {
	var yes bool
	cmd := a.AdminLeaf("remove NODE", "Removes a node from its cell for good: no node lets it in any more, and what the cell seals has a new key.",
		"  mcpvault cell remove eu/n3 --yes", cli.Args("NODE"),
		func(ctx context.Context, c *admin.Client, _ string, args []string) error {
			cell, node, err := aNode(ctx, c, args[0])
			if err != nil {
				return err
			}
			if err := sure(a, yes, "remove "+cell+"/"+node+" for good", node); err != nil {
				return err
			}
			if _, err := c.Cells.RemoveMember(ctx, &adminv1.RemoveMemberRequest{Cell: cell, Node: node}); err != nil {
				return err
			}
			a.Notef("removed: %s/%s. Its name never returns; if its machine is not in your hands, `mcpvault kill node %s/%s` too", cell, node, cell, node)
			return nil
		})
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// sure asks a person, and needs --yes where there is none.
func sure(a *cli.App, yes bool, deed, word string) error {
	if yes {
		return nil
	}
	f, ok := a.World().Stdin.(*os.File)
	if !ok || !isatty.IsTerminal(f.Fd()) {
		return problem.New(problem.Invalid, "this cannot be undone, and nobody is here to be asked", "add --yes to "+deed)
	}
	_, _ = fmt.Fprintf(a.World().Stderr, "To %s, type %s: ", deed, word)
	line, _ := bufio.NewReader(f).ReadString('\n')
	if strings.TrimSpace(line) != word {
		return problem.New(problem.Conflict, "nothing was done", "type "+word+" to "+deed)
	}
	return nil
}

func stepDown(a *cli.App) *cobra.Command {
	return a.AdminLeaf("step-down [CELL]", "Lets another node lead the cell.", "  mcpvault cell step-down eu", cli.Args("[CELL]"),
		func(ctx context.Context, c *admin.Client, _ string, args []string) error {
			cell, err := theCell(ctx, c, args)
			if err != nil {
				return err
			}
			r, err := c.Cells.StepDown(ctx, &adminv1.StepDownRequest{Cell: cell})
			if err != nil {
				return err
			}
			a.Notef("%s/%s leads now", cell, r.GetLeader())
			return nil
		})
}

func drainNode(a *cli.App) *cobra.Command {
	var force bool
	grace, wait := 30*time.Second, 90*time.Second
	cmd := a.AdminLeaf("drain NODE", "Has a node hand over leadership, end its streams, finish its calls and stop. It comes back when it is started again.",
		"  mcpvault cell drain eu/n2 --grace 1m", cli.Args("NODE"),
		func(ctx context.Context, c *admin.Client, _ string, args []string) error {
			cell, node, err := aNode(ctx, c, args[0])
			if err != nil {
				return err
			}
			if _, err := c.Cells.DrainNode(ctx, &adminv1.DrainNodeRequest{Cell: cell, Node: node, GraceMs: grace.Milliseconds(), Force: force}); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, wait)
			defer cancel()
			return awaitDrained(ctx, a, c, cell, node)
		})
	cmd.Flags().DurationVar(&grace, "grace", grace, "how long calls may take to finish")
	cmd.Flags().DurationVar(&wait, "wait", wait, "how long to wait for the node to be gone")
	cmd.Flags().BoolVar(&force, "force", false, "drain it even where the cell loses its quorum by it")
	return cmd
}

// awaitDrained waits until the control plane has no stream of the node any more.
func awaitDrained(ctx context.Context, a *cli.App, c *admin.Client, cell, node string) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		all, err := cells(ctx, c)
		if err == nil && !connected(all, cell, node) {
			a.Notef("drained: %s/%s has stopped", cell, node)
			return nil
		}
		select {
		case <-ctx.Done():
			a.Warnf("%s/%s is being drained and has not stopped yet: look with `mcpvault cell status %s`", cell, node, cell)
			return nil
		case <-tick.C:
		}
	}
}

func connected(all []cellView, cell, node string) bool {
	for _, c := range all {
		for _, n := range c.Nodes {
			if c.Name == cell && n.Node == node {
				return n.Connected
			}
		}
	}
	return false
}
