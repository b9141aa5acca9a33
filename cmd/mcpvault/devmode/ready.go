package devmode

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// settle gives the installation its content, makes today's tokens and waits until every node serves the result.
func (d *Dev) settle(ctx context.Context) (*Info, error) {
	raw, err := os.ReadFile(d.plan.bootstrapToken())
	if err != nil {
		return nil, fmt.Errorf("read the first administrator's token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	c, err := admin.Dial(admin.Config{URL: d.plan.adminURL(), Token: token, Version: "dev"})
	if err != nil {
		return nil, err
	}
	if err := d.seed(ctx, c); err != nil {
		return nil, err
	}
	tokens, err := mint(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := d.served(ctx, c); err != nil {
		return nil, err
	}
	return d.describe(token, tokens), nil
}

// served waits until every node serves everything that has been written.
func (d *Dev) served(ctx context.Context, c *admin.Client) error {
	list, err := c.Organisations.ListTenants(ctx, &adminv1.ListTenantsRequest{})
	if err != nil {
		return admin.Problem(err, c.URL)
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range list.GetTenants() {
		g.Go(func() error {
			return poll(ctx, nil, func(ctx context.Context) (bool, error) { return d.applied(ctx, c, t) })
		})
	}
	for _, n := range d.plan.nodes {
		g.Go(func() error { return d.nodeReady(ctx, n) })
	}
	return g.Wait()
}

// applied reports whether every node has acknowledged the tenant's revision.
func (d *Dev) applied(ctx context.Context, c *admin.Client, t *adminv1.Tenant) (bool, error) {
	resp, err := c.Snapshots.WaitRevision(ctx, &adminv1.WaitRevisionRequest{
		Tenant: t.GetName(), Revision: t.GetRevision(), Timeout: durationpb.New(time.Second),
	})
	if err != nil {
		return false, admin.Problem(err, c.URL)
	}
	have := map[string]bool{}
	for _, ack := range resp.GetAcks() {
		if ack.GetStatus() == "applied" && ack.GetGeneration() >= resp.GetGeneration() {
			have[ack.GetCell()+"/"+ack.GetNode()] = true
		}
	}
	for _, n := range d.plan.nodes {
		if !have[n.id()] {
			return false, nil
		}
	}
	return resp.GetComplete(), nil
}

// nodeReady waits until a node says that it serves.
func (d *Dev) nodeReady(ctx context.Context, n node) error {
	d.mu.Lock()
	c := d.children[n.id()]
	d.mu.Unlock()
	return poll(ctx, c, func(ctx context.Context) (bool, error) {
		return answers(ctx, "http://"+addr(n.metrics)+"/readyz"), nil
	})
}
