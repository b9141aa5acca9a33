package devmode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/mcpvault/mcpvault/controlplane/server"
	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/pgdev"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// The names of the processes that are not nodes.
const (
	controlPlane = "controlplane"
	postgres     = "postgres"
)

// cellRole is what a node is started in.
const cellRole = "cell"

// loopback is what an upstream may be in development.
func loopback() []string { return []string{"127.0.0.0/8:*", "::1/128:*"} }

// startControlPlane starts the database and then the control plane, and returns when it answers.
func (d *Dev) startControlPlane(ctx context.Context) error {
	url, err := d.startDatabase(ctx)
	if err != nil {
		return err
	}
	return d.launchControlPlane(ctx, url, true)
}

func (d *Dev) startDatabase(ctx context.Context) (string, error) {
	if d.cfg.DatabaseURL != "" {
		return d.cfg.DatabaseURL, nil
	}
	pg, err := pgdev.Start(ctx, pgdev.Config{Dir: d.plan.data(postgres), Ephemeral: d.cfg.Ephemeral, Logger: d.log})
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	d.pg = pg
	d.mu.Unlock()
	d.watchers.Go(func() {
		<-pg.Done()
		d.mu.Lock()
		quiet := d.stopping || d.pg != pg
		d.mu.Unlock()
		if !quiet {
			d.event("postgres (pid %d) ended; start it again with `mcpvault dev restart postgres`", pg.PID())
		}
	})
	return pg.URL(), nil
}

func (d *Dev) launchControlPlane(ctx context.Context, databaseURL string, fresh bool) error {
	config := d.plan.config(controlPlane)
	if err := writeYAML(config, d.plan.controlPlaneConfig(databaseURL)); err != nil {
		return err
	}
	c, err := d.spawn(controlPlane, "controlplane", config, fresh)
	if err != nil {
		return err
	}
	return poll(ctx, c, func(ctx context.Context) (bool, error) {
		return answers(ctx, d.plan.adminURL()+"/readyz"), nil
	})
}

// startNodes starts every node as soon as there are roots to trust. On a first start the control plane makes them.
func (d *Dev) startNodes(ctx context.Context) error {
	err := poll(ctx, nil, func(context.Context) (bool, error) {
		_, err := os.Stat(d.plan.rootsFile())
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	for _, n := range d.plan.nodes {
		if err := d.launchNode(n, true); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dev) launchNode(n node, fresh bool) error {
	config := d.plan.config(n.file())
	c := d.plan.cellConfig(n)
	d.reroute(n, &c)
	if err := d.plan.overlay(&c); err != nil {
		return err
	}
	if err := writeYAML(config, c); err != nil {
		return err
	}
	ch, err := d.spawn(n.id(), cellRole, config, fresh)
	if err != nil {
		return err
	}
	// A node that was broken before it ended begins so.
	return ch.faults.send(d.nodeFaults(n))
}

func (p *plan) controlPlaneConfig(databaseURL string) server.Config {
	cells := map[string][]string{}
	for _, name := range p.cellNames() {
		cells[name] = []string{"*"}
	}
	return server.Config{
		Listen: addr(p.adminPort()), CellListen: addr(p.cellapiPort()), DatabaseURL: databaseURL,
		CADir: p.caDir(), CellURL: p.cellURL(),
		KeysDir: p.keys(), IdentityDir: p.identity(controlPlane), TrustDomain: trustDomain, PublicURL: p.adminURL(),
		Cells: cells, EgressAllow: loopback(),
		BootstrapTokenFile: p.bootstrapToken(), BootstrapTenant: tenant, BootstrapHosts: []string{tenant + hostSuffix},
	}
}

func (p *plan) cellConfig(n node) cell.Config {
	c := cell.Config{
		Cell: n.cell, Node: n.name, DataDir: p.data(n.file()),
		ControlPlane: p.cellURL(),
		Listen: cell.Listen{
			HTTP: addr(n.http), TLS: addr(n.tls), Raft: addr(n.raft), Peer: addr(n.peer), Metrics: addr(n.metrics),
		},
		TrustDomain: trustDomain, IdentityDir: p.identity(n.file()), Roots: p.rootsFile(),
		TLSCert: p.frontCert(), TLSKey: p.frontKey(),
		PublicURLs:    []string{mcpURL(n), mcpTLSURL(n)},
		DefaultTenant: tenant, Region: n.cell, EgressAllow: loopback(), Dev: true, Heartbeat: 300,
		WorkloadBundles: []cell.WorkloadBundle{{TrustDomain: workloadDomain(n.cell), Bundle: svid.CACert(p.workloadCA(n.cell))}},
	}
	for _, m := range p.nodes {
		if m.cell == n.cell {
			c.Members = append(c.Members, cell.Member{Node: m.name, Raft: addr(m.raft), Peer: addr(m.peer)})
		}
	}
	return c
}

// overlay puts what the person wants of every node over what dev wants.
func (p *plan) overlay(c *cell.Config) error {
	if p.cfg.NodeConfig == "" {
		return nil
	}
	f, err := os.Open(p.cfg.NodeConfig)
	if err != nil {
		return problem.New(problem.Invalid, "the node settings cannot be read: "+err.Error(), "check --node-config")
	}
	defer func() { _ = f.Close() }()
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	if err := d.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return problem.New(problem.Invalid, "the node settings are not understood: "+err.Error(), "check --node-config against docs/operations.md")
	}
	if wrong := c.Problems(); len(wrong) > 0 {
		return problem.New(problem.Invalid, "the node settings are wrong: "+strings.Join(wrong, "; "), "check --node-config against docs/operations.md")
	}
	return nil
}

func mcpURL(n node) string    { return "http://" + addr(n.http) + "/mcp" }
func mcpTLSURL(n node) string { return "https://" + addr(n.tls) + "/mcp" }

func writeYAML(path string, v any) error {
	raw, err := yaml.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return writeFile(path, raw)
}

// probe is for pages on loopback that answer at once or not at all.
func probe() *http.Client {
	return &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
}

// answers reports whether a page says 200.
func answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := probe().Do(req)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return errors.Join(err, resp.Body.Close()) == nil && resp.StatusCode == http.StatusOK
}
