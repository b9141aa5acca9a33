package manage

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// killKinds are what may be killed, and what their subjects look like.
func killKinds() []string {
	return []string{"user", "token", "session", "server", "tool", "version", "secret", "node", "issuer", "key"}
}

type killView struct {
	ID      string    `json:"id"`
	Kind    string    `json:"kind"`
	Subject string    `json:"subject"`
	Scope   string    `json:"scope"`
	Reason  string    `json:"reason,omitempty"`
	Issued  string    `json:"issued,omitempty"`
	Acks    []killAck `json:"acks"`
	Waiting []string  `json:"waiting"`
}

type killAck struct {
	Node string `json:"node"`
	At   string `json:"at"`
	MS   int64  `json:"ms"`
}

func viewKill(k *adminv1.KillRecord) killView {
	v := killView{
		ID: k.GetId(), Kind: k.GetKind(), Subject: k.GetSubject(), Scope: "org", Reason: k.GetReason(), Issued: output.Time(k.GetIssuedMs()),
		Acks: []killAck{}, Waiting: append([]string{}, k.GetWaiting()...),
	}
	if k.GetEverywhere() {
		v.Scope = "everywhere"
	}
	for _, a := range k.GetAcks() {
		v.Acks = append(v.Acks, killAck{a.GetCell() + "/" + a.GetNode(), output.Time(a.GetAtMs()), a.GetAtMs() - k.GetIssuedMs()})
	}
	return v
}

func (v killView) nodes() string {
	return fmt.Sprintf("%d of %d", len(v.Acks), len(v.Acks)+len(v.Waiting))
}

func (v killView) acknowledged() string {
	var all []string
	for _, a := range v.Acks {
		all = append(all, fmt.Sprintf("%s +%d ms", a.Node, a.MS))
	}
	return strings.Join(all, ", ")
}

func killColumns() []output.Column[killView] {
	return []output.Column[killView]{
		{Head: "ID", Cell: func(v killView) string { return v.ID }},
		{Head: "KIND", Cell: func(v killView) string { return v.Kind }},
		{Head: "SUBJECT", Cell: func(v killView) string { return v.Subject }},
		{Head: "SCOPE", Cell: func(v killView) string { return v.Scope }},
		{Head: "NODES", Cell: killView.nodes},
		{Head: "WAITING", Cell: func(v killView) string { return strings.Join(v.Waiting, ", ") }},
		{Head: "ISSUED", Cell: func(v killView) string { return v.Issued }},
		{Head: "REASON", Cell: func(v killView) string { return v.Reason }},
		{Head: "ACKNOWLEDGED", Cell: killView.acknowledged, Wide: true},
	}
}

func killCommand(a *cli.App) *cobra.Command {
	var reason string
	var everywhere bool
	wait := 3 * time.Second
	cmd := a.AdminLeaf("kill KIND SUBJECT", "Denies a "+strings.Join(killKinds(), ", ")+" at once, and says which nodes enforce it. It is not taken back.",
		`  mcpvault kill user mallory --reason "stolen laptop"
  mcpvault kill tool payments/refund
  mcpvault kill token 01K8Z3V9QJ7W2M5T4R6Y8X0ABC
  mcpvault kill secret vault/payments               # no call sends this credential any more
  mcpvault kill node eu/n3 --reason "disk stolen"    # neither peers nor the control plane speak to it
  mcpvault kill key 3f2a9c0d11e4b7a5 --everywhere    # tokens signed with this key, in every organisation
  mcpvault kill list
  mcpvault kill sign user mallory --key glass.key --tenant-id ID --out mallory.kills    # with no network`, cli.Args("KIND", "SUBJECT"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			resp, err := c.Access.Kill(ctx, &adminv1.KillRequest{Tenant: tenant, Kind: args[0], Subject: args[1], Reason: reason, Everywhere: everywhere})
			if err != nil {
				return err
			}
			v, err := awaitKill(ctx, c, tenant, resp.GetId(), wait)
			if err != nil {
				a.Warnf("the kill %s is signed and on its way, but who enforces it is not known: %s", resp.GetId(), admin.Wait(err, c.URL))
				v = killView{ID: resp.GetId(), Kind: args[0], Subject: args[1], Acks: []killAck{}, Waiting: []string{}}
			}
			if len(v.Waiting) > 0 {
				a.Warnf("not acknowledged by %s: a silent node goes on until its lease ends; look with `mcpvault kill list`", strings.Join(v.Waiting, ", "))
			} else if err == nil {
				a.Notef("enforced by %s nodes: %s", v.nodes(), v.acknowledged())
			}
			return cli.Print(a, v, killColumns()...)
		})
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.Flags().BoolVar(&everywhere, "everywhere", false, "in every organisation; for an owner of the platform")
	cmd.Flags().DurationVar(&wait, "wait", wait, "how long to wait for the nodes to acknowledge")
	cmd.ValidArgs = killKinds()
	cmd.AddCommand(killList(a), killSign(a), killInspect(a), killImport(a), killDeliver(a))
	return cmd
}

// awaitKill asks until every node has acknowledged, or until the time is over.
func awaitKill(ctx context.Context, c *admin.Client, tenant, id string, wait time.Duration) (v killView, err error) {
	deadline := time.Now().Add(wait)
	for {
		resp, err := c.Access.ListKills(ctx, &adminv1.ListKillsRequest{Tenant: tenant, Id: id})
		if err != nil {
			return v, err
		}
		for _, k := range resp.GetKills() {
			v = viewKill(k)
		}
		if v.ID != "" && len(v.Waiting) == 0 || !time.Now().Before(deadline) {
			return v, nil
		}
		select {
		case <-ctx.Done():
			return v, nil
		case <-time.After(25 * time.Millisecond):
		}
	}
}

func killList(a *cli.App) *cobra.Command {
	return a.AdminLeaf("list", "Lists what was killed, and which nodes enforce it.", "  mcpvault kill list -o wide", cli.Args(),
		func(ctx context.Context, c *admin.Client, tenant string, _ []string) error {
			resp, err := c.Access.ListKills(ctx, &adminv1.ListKillsRequest{Tenant: tenant})
			if err != nil {
				return err
			}
			return cli.PrintList(a, output.Map(resp.GetKills(), viewKill), killColumns()...)
		})
}
