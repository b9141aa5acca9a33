package server

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"

	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	"github.com/mcpvault/mcpvault/kit/tele"
)

// Config is everything that a control plane is told.
type Config struct {
	// Listen is the admin API's host:port. Without tls_cert it is plain HTTP, and then on loopback only.
	Listen string `yaml:"listen"`
	// TLSCert and TLSKey are PEM files for the admin API.
	TLSCert string `yaml:"tls_cert,omitempty"`
	TLSKey  string `yaml:"tls_key,omitempty"`
	// CellListen is where the cells' nodes connect, host:port, SPIFFE mTLS.
	CellListen string `yaml:"cell_listen"`
	// DatabaseURL is a PostgreSQL connection string; the variable MCPVAULT_DATABASE_URL overrides it.
	DatabaseURL string `yaml:"database_url"`
	// KeysDir holds the signing keys and roots.pb; both are made at the first start.
	KeysDir string `yaml:"keys_dir"`
	// IdentityDir holds svid.pem, key.pem and bundle.pem; not needed where SPIFFE_ENDPOINT_SOCKET is set.
	IdentityDir string `yaml:"identity_dir"`
	TrustDomain string `yaml:"trust_domain"`
	// CADir holds ca.pem, ca.key and bundle.pem: what SVIDs are signed with, this process's own included. Empty where the SPIFFE
	// Workload API gives every machine its own.
	CADir string `yaml:"ca_dir,omitempty"`
	// CellURL is how nodes reach cell_listen, https://host:port; join tokens carry it.
	CellURL string `yaml:"cell_url,omitempty"`
	// PublicURL is how people reach the admin API.
	PublicURL string `yaml:"public_url,omitempty"`
	// Cells says which tenants are homed in which cell; "*" homes every tenant there.
	Cells map[string][]string `yaml:"cells"`
	// EgressAllow lists private destinations that a scan may reach, as CIDR:port.
	EgressAllow []string `yaml:"egress_allow,omitempty"`
	// UpstreamBundles are the trust domains of servers that prove a SPIFFE ID to a scan, besides the own one.
	UpstreamBundles []svid.BundleFile `yaml:"upstream_bundles,omitempty"`
	Log             tele.LogConfig    `yaml:"log,omitempty"`
	// KeepGenerationsDays is how long every generation is kept, so that decisions made under it can be made again: 90 when 0.
	// The newest 64 are kept for ever.
	KeepGenerationsDays int `yaml:"keep_generations_days,omitempty"`
	// BootstrapTokenFile is where an owner's token of 24 h is written at each start, with mode 0600; empty means no bootstrap.
	BootstrapTokenFile string `yaml:"bootstrap_token_file,omitempty"`
	// BootstrapTenant is made when it is missing, with these hosts, and its user "admin" is the owner.
	BootstrapTenant string   `yaml:"bootstrap_tenant,omitempty"`
	BootstrapHosts  []string `yaml:"bootstrap_hosts,omitempty"`
}

// maxKeepDays is ten years.
const maxKeepDays = 3660

// Defaults holds when the file is silent.
func (c *Config) Defaults() {
	c.Listen, c.CellListen = "127.0.0.1:8400", "127.0.0.1:8404"
	c.BootstrapTenant = "acme"
}

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Logging says what is logged and how.
func (c Config) Logging() tele.LogConfig { return c.Log }

// Problems returns everything that is wrong; each text names its key first.
func (c *Config) Problems() []string {
	var out []string
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, need := range []struct{ key, value, fix string }{
		{"database_url", c.DatabaseURL, "postgres://USER@HOST/NAME, or set MCPVAULT_DATABASE_URL"},
		{"keys_dir", c.KeysDir, "a directory that only this process's user can read"},
		{"trust_domain", c.TrustDomain, "the SPIFFE trust domain, such as mcpvault.example"},
	} {
		if need.value == "" {
			bad("%s: is missing; give %s", need.key, need.fix)
		}
	}
	if c.IdentityDir == "" && os.Getenv(svid.SocketEnv) == "" {
		bad("identity_dir: is missing; give the directory of svid.pem, key.pem and bundle.pem, or set %s", svid.SocketEnv)
	}
	for key, addr := range map[string]string{"listen": c.Listen, "cell_listen": c.CellListen} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			bad("%s: %q is not host:port", key, addr)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("tls_cert: needs tls_key, and the other way round")
	}
	if c.TLSCert == "" && !isLoopback(c.Listen) {
		bad("listen: %q is not on loopback, where plain HTTP is refused; set tls_cert and tls_key", c.Listen)
	}
	if c.PublicURL != "" {
		if u, err := url.Parse(c.PublicURL); err != nil || u.Host == "" {
			bad("public_url: %q is not a URL", c.PublicURL)
		}
	}
	if u, err := url.Parse(c.CellURL); c.CellURL != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		bad("cell_url: %q is not https://host:port", c.CellURL)
	}
	if c.BootstrapTokenFile != "" && !namePattern.MatchString(c.BootstrapTenant) {
		bad("bootstrap_tenant: %q is no name of a tenant", c.BootstrapTenant)
	}
	if c.KeepGenerationsDays < 0 || c.KeepGenerationsDays > maxKeepDays {
		bad("keep_generations_days: %d is not between 1 and %d", c.KeepGenerationsDays, maxKeepDays)
	}
	out = append(out, c.cellProblems()...)
	if _, err := egress.NewGuard(c.EgressAllow); err != nil {
		if p, ok := problem.As(err); ok {
			bad("egress_allow: %s", p.What)
		} else {
			bad("egress_allow: %v", err)
		}
	}
	slices.Sort(out)
	return out
}

func (c *Config) cellProblems() []string {
	var out []string
	if len(c.Cells) == 0 {
		out = append(out, `cells: is missing; write for instance {local: ["*"]}`)
	}
	for cell, tenants := range c.Cells {
		if !namePattern.MatchString(cell) {
			out = append(out, fmt.Sprintf("cells: %q is no name for a cell; use lower-case letters, digits and -", cell))
		}
		for _, t := range tenants {
			if t != publish.Everyone && !namePattern.MatchString(t) {
				out = append(out, fmt.Sprintf("cells: %q is no name of a tenant", t))
			}
		}
	}
	return out
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
