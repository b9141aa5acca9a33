package devmode

import (
	"encoding/json"
	"fmt"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
)

// Info is dev.json: what other programs need to use a running installation.
type Info struct {
	AdminURL    string            `json:"admin_url"`
	AdminToken  string            `json:"admin_token"`
	MCPURLs     []string          `json:"mcp_urls"`
	MCPTLSURLs  []string          `json:"mcp_tls_urls"`
	DatabaseURL string            `json:"database_url"`
	CAFile      string            `json:"ca_file"`
	Tokens      map[string]string `json:"tokens"`
	PIDs        PIDs              `json:"pids"`
	// CLIConfig is the file that MCPVAULT_CONFIG names to use it from the command line.
	CLIConfig string `json:"cli_config"`
	// Metrics are the nodes' pages for /livez, /readyz and /metrics.
	Metrics []string `json:"metrics_urls"`
	DataDir string   `json:"data_dir"`
	// Workload is the SPIFFE ID whose SVID and key are in WorkloadDir, svid.pem and key.pem: a caller without a token.
	Workload    string `json:"workload"`
	WorkloadDir string `json:"workload_dir"`
	Demo        bool   `json:"demo"`
}

// PIDs are the process ids of the servers; 0 for one that does not run.
type PIDs struct {
	ControlPlane int   `json:"controlplane"`
	Nodes        []int `json:"nodes"`
	Postgres     int   `json:"postgres"`
}

func (d *Dev) describe(adminToken string, tokens map[string]string) *Info {
	info := &Info{
		AdminURL: d.plan.adminURL(), AdminToken: adminToken, CAFile: d.plan.caFile(), Tokens: tokens,
		CLIConfig: d.plan.cliYAML(), DataDir: d.plan.dir, Workload: d.plan.workload(), WorkloadDir: d.plan.workloadDir(), Demo: !d.cfg.NoDemo, DatabaseURL: d.cfg.DatabaseURL,
	}
	for _, n := range d.plan.nodes {
		info.MCPURLs = append(info.MCPURLs, mcpURL(n))
		info.MCPTLSURLs = append(info.MCPTLSURLs, mcpTLSURL(n))
		info.Metrics = append(info.Metrics, "http://"+addr(n.metrics))
	}
	return info
}

// pids reads the book. Callers hold mu.
func (d *Dev) pids() PIDs {
	p := PIDs{Nodes: []int{}}
	pid := func(name string) int {
		if c := d.children[name]; c != nil && c.running() {
			return c.pid()
		}
		return 0
	}
	p.ControlPlane = pid(controlPlane)
	for _, n := range d.plan.nodes {
		p.Nodes = append(p.Nodes, pid(n.id()))
	}
	if d.pg != nil {
		select {
		case <-d.pg.Done():
		default:
			p.Postgres = d.pg.PID()
		}
	}
	return p
}

// announce writes the CLI's file and then, last of all, dev.json.
func (d *Dev) announce(info *Info) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	info.PIDs = d.pids()
	if d.pg != nil {
		info.DatabaseURL = d.pg.URL()
	}
	d.info = info
	f := &contexts.File{}
	f.Set("dev", &contexts.Context{
		AdminURL: info.AdminURL, AdminToken: info.AdminToken, CAFile: info.CAFile, RootsFile: d.plan.rootsFile(),
		MCPURLs: info.MCPURLs, Tenant: tenant, As: "",
		Hosts:  map[string]string{tenant: tenant + hostSuffix, otherTenant: otherTenant + hostSuffix},
		Tokens: info.Tokens,
	})
	if err := contexts.Save(d.plan.cliYAML(), f); err != nil {
		return err
	}
	return d.writeInfo()
}

// writeInfo writes dev.json. Callers hold mu.
func (d *Dev) writeInfo() error {
	raw, err := json.MarshalIndent(d.info, "", "  ")
	if err != nil {
		return fmt.Errorf("write dev.json: %w", err)
	}
	return writeFile(d.plan.devJSON(), append(raw, '\n'))
}
