package cell

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/dataplane/inject"
	"github.com/mcpvault/mcpvault/dataplane/remote"
	"github.com/mcpvault/mcpvault/dataplane/upstream/stdio"
	"github.com/mcpvault/mcpvault/kit/svid"
	"github.com/mcpvault/mcpvault/kit/tele"
)

// Config is one node of a cell. A production cell needs the twelve settings from Cell to PublicURLs; the rest have
// defaults.
type Config struct {
	// Cell and Node name this member.
	Cell string `yaml:"cell"`
	Node string `yaml:"node"`
	// DataDir is this node's disk: policy, log, audit.
	DataDir string `yaml:"data_dir"`
	// ControlPlane is the address of the control plane's cell listener, https://host:port.
	ControlPlane string `yaml:"control_plane"`
	// Members are all nodes that the cell starts with, this one included. Once it runs, the cell has a list of its own, and these
	// are addresses.
	Members []Member `yaml:"members"`
	// Join says that the cell is there already and takes this node in (`mcpvault cell add`). Members are then those of the cell
	// as it is, and this node.
	Join bool `yaml:"join"`
	// RemoveDeadAfter is how long a node may be silent before the others remove it for good, where they keep a quorum; never
	// when 0.
	RemoveDeadAfter time.Duration `yaml:"remove_dead_after"`
	Listen          Listen        `yaml:"listen"`
	// TrustDomain is the SPIFFE trust domain of nodes and control plane.
	TrustDomain string `yaml:"trust_domain"`
	// IdentityDir holds svid.pem, key.pem and bundle.pem; not needed where SPIFFE_ENDPOINT_SOCKET is set.
	IdentityDir string `yaml:"identity_dir"`
	// Roots is the file of signed root keys that this node starts to trust from.
	Roots string `yaml:"roots"`
	// TLSCert and TLSKey are what MCP clients see.
	TLSCert string `yaml:"tls_cert"`
	TLSKey  string `yaml:"tls_key"`
	// PublicURLs are the addresses that clients type, the first is the canonical one.
	PublicURLs []string `yaml:"public_urls"`
	// DefaultTenant serves requests whose host name is not mapped; none when empty.
	DefaultTenant string `yaml:"default_tenant"`
	// Region is where this cell is, for conditions on it: "eu". Nowhere when empty.
	Region string `yaml:"region"`
	// TrustedProxies are the networks, or addresses, of proxies whose X-Forwarded-For or Forwarded header says where a call
	// comes from. Without any it comes from where the connection does.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// WorkloadBundles are the trust domains whose workloads may call with a certificate of their own (X.509-SVID); with none,
	// clients are not asked for certificates.
	WorkloadBundles []WorkloadBundle `yaml:"workload_bundles"`
	// UpstreamBundles are the trust domains of upstreams that prove a SPIFFE ID, besides the nodes' own.
	UpstreamBundles []svid.BundleFile `yaml:"upstream_bundles"`
	// EgressAllow lists private destinations that upstreams may have, as CIDR:port.
	EgressAllow []string `yaml:"egress_allow"`
	// Inject are the credentials that this node adds to calls, out of its own files.
	Inject []inject.Rule `yaml:"inject"`
	// Stdio are MCP servers that this node runs beside itself, by name; policy can name them and say nothing else of them.
	Stdio map[string]stdio.Server `yaml:"stdio"`
	// SealKey is the file of this node's sealing key, made when absent; DataDir/seal.key when empty.
	SealKey string `yaml:"seal_key"`
	// Heartbeat is Raft's, in milliseconds; 500 when 0.
	Heartbeat int `yaml:"raft_heartbeat_ms"`
	// RaftTransport carries the log between the nodes: tcp, which is the default, or quic. All nodes of a cell have the same.
	RaftTransport consensus.Transport `yaml:"raft_transport"`
	// DiskHangLimit is for how long a write to the log may hang before the process ends with status 74; 20 s when 0.
	DiskHangLimit time.Duration `yaml:"disk_hang_limit"`
	// Dev allows plain HTTP on loopback and any loopback Host.
	Dev bool `yaml:"dev"`
	// OTLPEndpoint is where spans and metrics go by OTLP over HTTP, http://collector:4318, unless the OTEL_* variables say
	// otherwise; nowhere when empty.
	OTLPEndpoint string `yaml:"otlp_endpoint"`
	LogLevel     string `yaml:"log_level"`
	LogFormat    string `yaml:"log_format"`
}

// maxRegion bounds the name of a region.
const maxRegion = 64

// Member is one node of the cell as the others reach it.
type Member struct {
	Node string `yaml:"node"`
	// Raft and Peer are host:port.
	Raft string `yaml:"raft"`
	Peer string `yaml:"peer"`
}

// WorkloadBundle lets the workloads of a trust domain call.
type WorkloadBundle struct {
	// TrustDomain is theirs, never that of the nodes.
	TrustDomain string `yaml:"trust_domain"`
	// Bundle is the file of the authorities that they are signed by, in PEM; it is read again when it changes.
	Bundle string `yaml:"bundle"`
	// Tenants are the ones that they may call, by name or id; all when empty.
	Tenants []string `yaml:"tenants"`
}

// Listen holds this node's listening addresses, host:port.
type Listen struct {
	// HTTP is plain, for development on loopback only.
	HTTP string `yaml:"http"`
	// TLS is the public address: HTTP/1.1 and HTTP/2 on TCP, HTTP/3 on UDP.
	TLS string `yaml:"tls"`
	// HTTP3 is off where UDP is not to be served.
	HTTP3   string `yaml:"http3"`
	Raft    string `yaml:"raft"`
	Peer    string `yaml:"peer"`
	Metrics string `yaml:"metrics"`
	// Front is the server of HTTP/1.1 for clients: "fast", which is the default, or "nethttp", Go's own.
	Front string `yaml:"front"`
}

const http3Off = "off"

// Logging says what is logged and how.
func (c Config) Logging() tele.LogConfig {
	return tele.LogConfig{Level: c.LogLevel, Format: c.LogFormat}
}

// Problems returns everything that is wrong with the configuration.
func (c *Config) Problems() []string {
	var p []string
	need := func(key, v string) {
		if v == "" {
			p = append(p, key+" is required")
		}
	}
	need("cell", c.Cell)
	need("node", c.Node)
	need("data_dir", c.DataDir)
	need("control_plane", c.ControlPlane)
	need("trust_domain", c.TrustDomain)
	need("roots", c.Roots)
	need("listen.raft", c.Listen.Raft)
	need("listen.peer", c.Listen.Peer)
	if u, err := url.Parse(c.ControlPlane); c.ControlPlane != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		p = append(p, fmt.Sprintf("control_plane %q is not https://host:port", c.ControlPlane))
	}
	p = append(p, c.memberProblems()...)
	p = append(p, c.frontProblems()...)
	p = append(p, c.workloadProblems()...)
	p = append(p, svid.BundleProblems("upstream_bundles", c.UpstreamBundles)...)
	p = append(p, stdio.Problems(c.Stdio)...)
	return p
}

func (c *Config) memberProblems() []string {
	var p []string
	if !c.RaftTransport.Valid() {
		p = append(p, fmt.Sprintf("raft_transport %.20q: it is tcp (the default) or quic", c.RaftTransport))
	}
	if c.DiskHangLimit != 0 && c.DiskHangLimit < 2*time.Second {
		p = append(p, "disk_hang_limit: at least 2s: a busy disk is not a broken one")
	}
	if c.RemoveDeadAfter != 0 && c.RemoveDeadAfter < time.Minute {
		p = append(p, "remove_dead_after: at least 1m, or 0 for never: a restart must not cost a node its place")
	}
	if n := len(c.Members); !c.Join && n != 1 && n != 3 && n != 5 {
		p = append(p, fmt.Sprintf("members: a cell has 1, 3 or 5 nodes, this names %d", n))
	}
	names := map[string]bool{}
	for i, m := range c.Members {
		if m.Node == "" || m.Raft == "" || m.Peer == "" {
			p = append(p, fmt.Sprintf("members[%d]: node, raft and peer are all required", i))
		}
		if names[m.Node] {
			p = append(p, fmt.Sprintf("members[%d]: node %q is there twice", i, m.Node))
		}
		names[m.Node] = true
	}
	if c.Node != "" && len(c.Members) > 0 && !names[c.Node] {
		p = append(p, fmt.Sprintf("node %q is not one of the members", c.Node))
	}
	return p
}

func (c *Config) frontProblems() []string {
	var p []string
	if c.Listen.TLS != "" && (c.TLSCert == "" || c.TLSKey == "") {
		p = append(p, "listen.tls needs tls_cert and tls_key")
	}
	if !slices.Contains([]string{"", "on", http3Off}, c.Listen.HTTP3) {
		p = append(p, fmt.Sprintf("listen.http3 %.20q is neither on nor off", c.Listen.HTTP3))
	}
	if c.Listen.TLS == "" && c.Listen.HTTP == "" {
		p = append(p, "listen.tls is required: nobody could reach this node")
	}
	if c.Listen.HTTP != "" {
		host, _, err := net.SplitHostPort(c.Listen.HTTP)
		ip := net.ParseIP(host)
		if !c.Dev || err != nil || ip == nil || !ip.IsLoopback() {
			p = append(p, "listen.http is plain HTTP: it needs dev: true and a loopback address")
		}
	}
	if !edge.Front(c.Listen.Front).Valid() {
		p = append(p, fmt.Sprintf("listen.front %.40q: it is %s (the default) or %s", c.Listen.Front, edge.FrontFast, edge.FrontNetHTTP))
	}
	if !c.Dev && len(c.PublicURLs) == 0 {
		p = append(p, "public_urls is required: clients check it against the address they typed")
	}
	for _, raw := range c.PublicURLs {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || !slices.Contains([]string{"https", "http"}, u.Scheme) {
			p = append(p, fmt.Sprintf("public_urls: %q is not an absolute URL", raw))
		}
	}
	if u, err := url.Parse(c.OTLPEndpoint); c.OTLPEndpoint != "" && (err != nil || u.Host == "" || !slices.Contains([]string{"https", "http"}, u.Scheme)) {
		p = append(p, fmt.Sprintf("otlp_endpoint %q is not http://host:port or https://host:port", c.OTLPEndpoint))
	}
	if len(c.Region) > maxRegion || strings.ContainsFunc(c.Region, func(r rune) bool { return r <= ' ' || r > '~' }) {
		p = append(p, fmt.Sprintf("region %.80q: at most %d characters of ASCII without spaces, for example eu", c.Region, maxRegion))
	}
	p = append(p, inject.Check(c.Inject)...)
	if _, err := remote.ParseProxies(c.TrustedProxies); err != nil {
		p = append(p, "trusted_proxies: "+err.Error())
	}
	return p
}
