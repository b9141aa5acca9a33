package devmode

import (
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/mcpvault/mcpvault/controlplane/server"
	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/conf"
	"github.com/mcpvault/mcpvault/kit/ports"
	"github.com/mcpvault/mcpvault/kit/problem"
)

func planned(t *testing.T, change func(*Config)) *plan {
	t.Helper()
	cfg := Config{DataDir: t.TempDir(), PortBase: 18400, Nodes: 3, Cells: 1}
	if change != nil {
		change(&cfg)
	}
	p, err := newPlan(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPortsAreWhereEverybodyLooksForThem(t *testing.T) {
	t.Parallel()
	p := planned(t, func(c *Config) { c.Cells = 2 })
	if p.adminPort() != 18400 || p.demoPort() != 18402 || p.paymentsPort() != 18403 || p.cellapiPort() != 18404 {
		t.Fatal(p.ports())
	}
	// Node 2 (n3) of cell 1 (cell2): B+10+40+10.
	if n := p.nodes[5]; n != (node{"cell2", "n3", 18460, 18461, 18462, 18463, 18464}) {
		t.Fatalf("%+v", n)
	}
	all := p.ports()
	slices.Sort(all)
	if len(slices.Compact(slices.Clone(all))) != len(all) || all[len(all)-1] >= 18400+span {
		t.Fatal(all)
	}
}

func TestWhatCannotBeIsRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"two nodes":       func(c *Config) { c.Nodes = 2 },
		"no cell":         func(c *Config) { c.Cells = 0 },
		"too many cells":  func(c *Config) { c.Cells = 6 },
		"a low port":      func(c *Config) { c.PortBase = 80 },
		"too high a port": func(c *Config) { c.PortBase = 65500 },
	} {
		cfg := Config{DataDir: t.TempDir(), PortBase: 18400, Nodes: 3, Cells: 1}
		change(&cfg)
		if _, err := New(cfg); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheServersTakeWhatIsWrittenForThem(t *testing.T) {
	t.Parallel()
	p := planned(t, func(c *Config) { c.Cells = 2 })
	raw, err := yaml.Marshal(p.controlPlaneConfig("postgres:///postgres"))
	if err != nil {
		t.Fatal(err)
	}
	cp, err := conf.Parse[server.Config](conf.Source{Name: "controlplane.yaml", Data: raw})
	if err != nil || len(cp.Cells) != 2 || cp.BootstrapTenant != "acme" {
		t.Fatalf("%+v, %v", cp, err)
	}
	for _, n := range p.nodes {
		raw, err := yaml.Marshal(p.cellConfig(n))
		if err != nil {
			t.Fatal(err)
		}
		c, err := conf.Parse[cell.Config](conf.Source{Name: n.id(), Data: raw})
		if err != nil || len(c.Members) != 3 || !c.Dev {
			t.Fatalf("%+v, %v", c, err)
		}
	}
}

func TestProcessesAreFoundByTheNamesThatPeopleUse(t *testing.T) {
	t.Parallel()
	p := planned(t, func(c *Config) { c.Cells = 2 })
	for said, want := range map[string]string{
		"n2": "local/n2", "local/n2": "local/n2", "cell2/n1": "cell2/n1", "controlplane": "controlplane", "postgres": "postgres",
	} {
		if got, err := p.resolve(said); got != want || err != nil {
			t.Errorf("%s: %s, %v", said, got, err)
		}
	}
	for _, said := range []string{"", "n4", "demo", "all"} {
		if _, err := p.resolve(said); problem.CodeOf(err) != problem.NotFound {
			t.Errorf("%q: %v", said, err)
		}
	}
	foreign := planned(t, func(c *Config) { c.DatabaseURL = "postgres:///x" })
	if _, err := foreign.resolve("postgres"); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("a database that is not ours: %v", err)
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	t.Parallel()
	block, err := ports.Take()
	if err != nil {
		t.Fatal(err)
	}
	defer block.Close()
	p := planned(t, func(c *Config) { c.PortBase = block.Base })
	l, err := net.Listen("tcp", addr(block.Base+15))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := p.checkPorts(); problem.CodeOf(err) != problem.Conflict || !strings.Contains(err.Error(), "--port-base") || !strings.Contains(err.Error(), strconv.Itoa(block.Base+15)) {
		t.Fatal(err)
	}
}

func TestTheChildrensSettingsComeFromTheirFilesOnly(t *testing.T) {
	t.Parallel()
	got := childEnv([]string{"PATH=/bin", "MCPVAULT_DATABASE_URL=x", "MCPVAULT_TOKEN=y", "SPIFFE_ENDPOINT_SOCKET=z", "OTEL_SERVICE_NAME=o"})
	if strings.Join(got, " ") != "PATH=/bin OTEL_SERVICE_NAME=o" {
		t.Fatal(got)
	}
}

func TestASecondOneInTheSameDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	p := planned(t, nil)
	lock, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.open(); problem.CodeOf(err) != problem.Conflict {
		t.Fatal(err)
	}
	if err := p.close(lock); err != nil {
		t.Fatal(err)
	}
	lock, err = p.open()
	if err != nil {
		t.Fatal(err)
	}
	_ = lock.Close()
	// What is there already is not thrown away.
	p.cfg.Ephemeral = true
	if _, err := p.open(); problem.CodeOf(err) != problem.Conflict || !strings.Contains(err.Error(), "not empty") {
		t.Fatal(err)
	}
}

func TestWhereNobodyRunsIsSaid(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{t.TempDir(), t.TempDir() + "/absent", t.TempDir() + "/" + strings.Repeat("deep/", 30)} {
		if _, err := Tell(t.Context(), dir, "status"); problem.CodeOf(err) != problem.Unavailable {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
