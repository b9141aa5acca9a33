package enroll

import (
	"cmp"
	"net"
	"path/filepath"
	"slices"

	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/conf"
	"github.com/mcpvault/mcpvault/kit/jointoken"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// file is what is written of a cell.Config: the settings that a node needs, and no defaults.
type file struct {
	Cell         string        `yaml:"cell"`
	Node         string        `yaml:"node"`
	DataDir      string        `yaml:"data_dir"`
	ControlPlane string        `yaml:"control_plane"`
	Members      []cell.Member `yaml:"members"`
	Listen       struct {
		TLS     string `yaml:"tls"`
		Raft    string `yaml:"raft"`
		Peer    string `yaml:"peer"`
		Metrics string `yaml:"metrics,omitempty"`
	} `yaml:"listen"`
	TrustDomain     string                `yaml:"trust_domain"`
	IdentityDir     string                `yaml:"identity_dir"`
	Roots           string                `yaml:"roots"`
	TLSCert         string                `yaml:"tls_cert"`
	TLSKey          string                `yaml:"tls_key"`
	PublicURLs      []string              `yaml:"public_urls"`
	WorkloadBundles []cell.WorkloadBundle `yaml:"workload_bundles,omitempty"`
}

const heading = `# Written by a join: this machine is a node of its cell. Check it with: mcpvault-cell -config cell.yaml -check
# The SVID in identity_dir is renewed each day. docs/operations.md has the settings that are not here.
`

func (c file) text() ([]byte, error) {
	b, err := conf.Text(c)
	return append([]byte(heading), b...), err
}

// others are the members besides this node.
func (c file) others() []string {
	var out []string
	for _, m := range c.Members {
		if m.Node != c.Node {
			out = append(out, m.Node)
		}
	}
	return out
}

// config puts together the order, the token and, when there is one, the answer.
func config(o Order, t jointoken.Token, res *cellv1.EnrollResponse) file {
	dir := filepath.Join(o.DataDir, nodeDir)
	c := file{
		Cell: t.Cell, Node: t.Node, DataDir: o.DataDir, ControlPlane: t.ControlPlane, TrustDomain: t.TrustDomain,
		IdentityDir: filepath.Join(dir, identityDir), Roots: filepath.Join(dir, rootsFile),
		TLSCert: absolute(o.TLSCert), TLSKey: absolute(o.TLSKey), PublicURLs: o.PublicURLs,
	}
	c.Listen.TLS, c.Listen.Metrics = o.TLS, o.Metrics
	c.Listen.Raft, c.Listen.Peer = listenOn(o.Raft), listenOn(o.Peer)
	c.Members = members(o, t.Node, res.GetMembers())
	if res == nil {
		// Whether the cell has one, three or five nodes is seen when the control plane has named them.
		c.Members = c.Members[:1]
	}
	if id := res.GetIdentity(); len(id.GetWorkloadBundle()) > 0 {
		c.WorkloadBundles = []cell.WorkloadBundle{{
			TrustDomain: id.GetWorkloadTrustDomain(), Bundle: filepath.Join(dir, identityDir, svid.WorkloadsFile),
		}}
	}
	return c
}

func absolute(path string) string {
	if path == "" {
		return ""
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// members are this node, those that it was told of, and those that the control plane knows, in this order of belief.
func members(o Order, node string, known []*cellv1.CellMember) []cell.Member {
	all := []cell.Member{{Node: node, Raft: o.Raft, Peer: o.Peer}}
	add := func(m cell.Member) {
		if !slices.ContainsFunc(all, func(have cell.Member) bool { return have.Node == m.Node }) {
			all = append(all, m)
		}
	}
	for _, m := range o.Members {
		add(m)
	}
	for _, m := range known {
		add(cell.Member{Node: m.GetNode(), Raft: m.GetRaft(), Peer: m.GetPeer()})
	}
	slices.SortFunc(all[1:], func(a, b cell.Member) int { return cmp.Compare(a.Node, b.Node) })
	return all
}

// listenOn is where to listen for what others reach at an address: there, when it is one of the machine's own, else at its port
// on all of them.
func listenOn(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address // the configuration's check says what is wrong with it
	}
	if net.ParseIP(host) != nil {
		return address
	}
	return net.JoinHostPort("0.0.0.0", port)
}
