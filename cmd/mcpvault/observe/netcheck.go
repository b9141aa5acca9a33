package observe

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/dataplane/edge"
	"github.com/mcpvault/mcpvault/kit/nearest"
	"github.com/mcpvault/mcpvault/kit/problem"
)

const (
	// wayTime bounds one measurement of one way.
	wayTime = 3 * time.Second
	// waysAtOnce bounds how many are measured at a time.
	waysAtOnce = 32
)

// netReport is what lies between here and the cells.
type netReport struct {
	// Nearest is the cell that a client here would use, "" when none can be reached.
	Nearest string `json:"nearest"`
	// UDP is open, blocked or unknown: whether QUIC gets through to where TLS over TCP does.
	UDP string `json:"udp"`
	// Source is the address that said which cells there are; "" when nobody did and the context's addresses were taken.
	Source string `json:"source,omitempty"`
	// AsOf is when the control plane wrote that down.
	AsOf string `json:"as_of,omitempty"`
	Ways []way  `json:"ways"`
}

// way is one address of one node. Times are in milliseconds, 0 where nothing was measured.
type way struct {
	Cell    string `json:"cell"`
	Region  string `json:"region,omitempty"`
	Node    string `json:"node"`
	URL     string `json:"url"`
	Nearest bool   `json:"nearest"`
	// Health is serving, away (it answers and does not serve) or unreachable.
	Health string `json:"health"`
	// TCP is the connection, TLS the handshake after it, HTTP one request on it, QUIC the connection and handshake over UDP.
	TCP  float64 `json:"tcp_ms"`
	TLS  float64 `json:"tls_ms,omitempty"`
	HTTP float64 `json:"http_ms,omitempty"`
	QUIC float64 `json:"quic_ms,omitempty"`
	// UDPBlocked is whether QUIC should get through here, and does not.
	UDPBlocked  bool   `json:"udp_blocked"`
	Certificate string `json:"certificate,omitempty"`
	CertUntil   string `json:"certificate_until,omitempty"`
	Problem     string `json:"problem,omitempty"`

	http3 bool
}

const (
	wayServing     = "serving"
	wayAway        = "away"
	wayUnreachable = "unreachable"
)

func netcheckCommand(a *cli.App) *cobra.Command {
	var urls []string
	cmd := a.Leaf("netcheck", "Measures the way from here to each cell, over TCP and over QUIC, and says which is the nearest. Exit status 1 when none can be reached.",
		"  mcpvault netcheck\n  mcpvault netcheck -o wide\n  mcpvault netcheck --mcp-url https://eu.mcp.example.com/mcp --timeout 5s -o json", cli.Args(),
		func(ctx context.Context, _ []string) error {
			c, err := netContext(a, urls)
			if err != nil {
				return err
			}
			base, err := admin.HTTPTransport(c.CAFile)
			if err != nil {
				return err
			}
			r := checkNet(ctx, c, base)
			if err := printNet(a, r); err != nil {
				return err
			}
			if r.Nearest == "" {
				return cli.Exit(problem.Internal.Exit())
			}
			return nil
		})
	cmd.Flags().StringSliceVar(&urls, "mcp-url", nil, "begin at these MCP endpoints instead of the context's; may be given again")
	return cmd
}

// netContext is the context in use, or one of addresses alone: whoever has none yet may look too.
func netContext(a *cli.App, urls []string) (*contexts.Context, error) {
	c, err := a.Context()
	if err != nil {
		if len(urls) == 0 {
			return nil, err
		}
		c = &contexts.Context{}
	}
	if len(urls) > 0 {
		c.MCPURLs, c.AdminURL = urls, ""
	}
	if len(c.MCPURLs) == 0 && c.AdminURL == "" {
		return nil, problem.New(problem.Invalid, "the context names no cell", "give --mcp-url URL, or log in again with it")
	}
	return c, nil
}

// checkNet asks which cells there are and measures every way to them, all at once.
func checkNet(ctx context.Context, c *contexts.Context, base *http.Transport) *netReport {
	r := &netReport{UDP: "unknown", Ways: []way{}}
	host := hostOf(c)
	doc := r.discover(ctx, c, base, host)
	r.Ways = waysOf(doc, c.MCPURLs)
	// The lengths of the ways come first, so that handshakes, which keep this machine busy, are not in them.
	for _, measure := range []func(*way){
		func(w *way) { w.connect(ctx) },
		func(w *way) { w.measure(ctx, base, host) },
	} {
		var g errgroup.Group
		g.SetLimit(waysAtOnce)
		for i := range r.Ways {
			g.Go(func() error {
				measure(&r.Ways[i])
				return nil
			})
		}
		_ = g.Wait() // They say themselves what went wrong.
	}
	r.judge()
	return r
}

// hostOf is the host name under which cells are asked, "" for each one's own.
func hostOf(c *contexts.Context) string { return c.Hosts[c.Tenant] }

// discover asks the context's cells and the control plane, and takes the newest answer.
func (r *netReport) discover(ctx context.Context, c *contexts.Context, base *http.Transport, host string) *nearest.Document {
	ctx, cancel := context.WithTimeout(ctx, wayTime)
	defer cancel()
	var mu sync.Mutex
	var best *nearest.Document
	var wg sync.WaitGroup
	ask := func(raw, host string) {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" {
			return
		}
		at := u.Scheme + "://" + u.Host
		wg.Go(func() {
			p, err := nearest.Ask(ctx, base, at, host)
			if err != nil || p.Document == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if best == nil || p.Document.AsOf.After(best.AsOf) {
				best, r.Source = p.Document, at
			}
		})
	}
	for _, u := range c.MCPURLs {
		ask(u, host)
	}
	if c.AdminURL != "" {
		ask(c.AdminURL, "")
	}
	wg.Wait()
	if best != nil {
		r.AsOf = output.Time(best.AsOf.UnixMilli())
	}
	return best
}

// waysOf lists the addresses of a document, and those of the context that it does not name.
func waysOf(doc *nearest.Document, seeds []string) []way {
	all := []way{}
	named := map[string]bool{}
	if doc != nil {
		for _, c := range doc.Cells {
			for _, n := range c.Nodes {
				for _, u := range n.URLs {
					if slices.Contains(doc.Shared, u) {
						continue
					}
					named[u] = true
					all = append(all, way{Cell: c.Name, Region: c.Region, Node: n.Name, URL: u, http3: n.HTTP3 && strings.HasPrefix(u, "https:")})
				}
			}
		}
		seeds = append(slices.Clone(seeds), doc.Shared...)
	}
	for _, u := range seeds {
		if !named[u] {
			named[u] = true
			all = append(all, way{URL: u, http3: strings.HasPrefix(u, "https:")})
		}
	}
	return all
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// connects is how many connections the length of a way is the best of.
const connects = 3

// connect measures how far it is.
func (w *way) connect(ctx context.Context) {
	w.Health = wayUnreachable
	ctx, cancel := context.WithTimeout(ctx, wayTime)
	defer cancel()
	_, addr, err := w.address()
	if err != nil {
		w.Problem = "not an address"
		return
	}
	for range connects {
		begin := time.Now()
		nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			w.Problem = plainly(ctx, err)
			return
		}
		if took := ms(time.Since(begin)); w.TCP == 0 || took < w.TCP {
			w.TCP = took
		}
		_ = nc.Close()
	}
}

// address is the way's URL, and host and port of it.
func (w *way) address() (*url.URL, string, error) {
	u, err := url.Parse(w.URL)
	if err != nil || u.Host == "" {
		return nil, "", errors.New("not an address")
	}
	port := cmp.Or(u.Port(), map[string]string{"https": "443", "http": "80"}[u.Scheme])
	return u, net.JoinHostPort(u.Hostname(), port), nil
}

// measure does what a client does, in each way that the address has.
func (w *way) measure(ctx context.Context, base *http.Transport, host string) {
	ctx, cancel := context.WithTimeout(ctx, wayTime)
	defer cancel()
	u, addr, err := w.address()
	if err != nil || w.TCP == 0 {
		return
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: base.TLSClientConfig.RootCAs, ServerName: u.Hostname(), NextProtos: []string{"h2", "http/1.1"}}
	var quicTook time.Duration
	var quicErr error
	var wg sync.WaitGroup
	if w.http3 {
		wg.Go(func() { quicTook, quicErr = edge.ProbeQUIC(ctx, addr, conf) })
	}
	w.overTCP(ctx, u, addr, conf, base, host)
	wg.Wait()
	switch {
	case !w.http3:
	case quicErr == nil:
		w.QUIC = ms(quicTook)
	case w.TLS > 0 && w.Certificate == "":
		w.UDPBlocked = true
		if w.Problem == "" {
			w.Problem = "QUIC: " + plainly(ctx, quicErr)
		}
	}
}

// overTCP connects, shakes hands and asks one question.
func (w *way) overTCP(ctx context.Context, u *url.URL, addr string, conf *tls.Config, base *http.Transport, host string) {
	if u.Scheme == "https" {
		nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			w.Problem = plainly(ctx, err)
			return
		}
		defer func() { _ = nc.Close() }()
		begin := time.Now()
		c := tls.Client(nc, conf)
		if err := c.HandshakeContext(ctx); err != nil {
			w.Problem = plainly(ctx, err)
			if bad := certificateProblem(err); bad != "" {
				w.Certificate, w.Problem = bad, "certificate: "+bad
			}
			return
		}
		w.TLS = ms(time.Since(begin))
		w.CertUntil = output.Time(c.ConnectionState().PeerCertificates[0].NotAfter.UnixMilli())
	}
	p, err := nearest.Ask(ctx, base, u.Scheme+"://"+u.Host, host)
	if err != nil {
		w.Problem = plainly(ctx, err)
		return
	}
	w.HTTP, w.Health = ms(p.Latency), wayServing
	if !p.Serving {
		w.Health = wayAway
	}
	if d := p.Document; d != nil && d.Here != nil {
		if w.Node != "" && (w.Cell != d.Here.Cell || w.Node != d.Here.Node) {
			w.Problem = fmt.Sprintf("another node answers here: %s/%s", d.Here.Cell, d.Here.Node)
		}
		w.Cell, w.Node = cmp.Or(w.Cell, d.Here.Cell), cmp.Or(w.Node, d.Here.Node)
	}
}

// certificateProblem is what is wrong with a certificate, "" when something else is.
func certificateProblem(err error) string {
	var bad *tls.CertificateVerificationError
	if !errors.As(err, &bad) {
		return ""
	}
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "it has expired, or is not valid yet"
	case errors.As(err, &name):
		return "it is for another name"
	case errors.As(err, &unknown):
		return "its authority is not trusted here: give --cacert"
	}
	return bad.Err.Error()
}

// plainly says what a person can do something with.
func plainly(ctx context.Context, err error) string {
	var ne net.Error
	switch {
	case ctx.Err() != nil, errors.As(err, &ne) && ne.Timeout():
		return "no answer in time"
	case errors.Is(err, context.Canceled):
		return "stopped"
	}
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

// judge finds the nearest cell and what UDP does.
func (r *netReport) judge() {
	best := -1
	tried, through := 0, 0
	for i, w := range r.Ways {
		if w.QUIC > 0 {
			through++
		}
		if w.QUIC > 0 || w.UDPBlocked {
			tried++
		}
		if w.Health == wayServing && (best < 0 || w.TCP < r.Ways[best].TCP) {
			best = i
		}
	}
	if tried > 0 {
		r.UDP = "blocked"
		if through > 0 {
			r.UDP = "open"
		}
	}
	if best < 0 {
		return
	}
	r.Nearest = cmp.Or(r.Ways[best].Cell, r.Ways[best].URL)
	for i := range r.Ways {
		r.Ways[i].Nearest = r.Ways[i].Cell == r.Ways[best].Cell && (r.Ways[best].Cell != "" || i == best)
	}
	// The nearest cell first, within a cell by node.
	far := map[string]float64{}
	for _, w := range r.Ways {
		if d, ok := far[w.Cell]; w.TCP > 0 && (!ok || w.TCP < d) {
			far[w.Cell] = w.TCP
		}
	}
	distance := func(w way) float64 {
		if d, ok := far[w.Cell]; ok {
			return d
		}
		return 1e9
	}
	slices.SortStableFunc(r.Ways, func(a, b way) int {
		return cmp.Or(cmp.Compare(distance(a), distance(b)), cmp.Compare(a.Cell, b.Cell), cmp.Compare(a.Node, b.Node))
	})
}

func printNet(a *cli.App, r *netReport) error {
	if f := a.Format(); f == output.JSON || f == output.YAML {
		return output.Value(a.World().Stdout, f, r)
	}
	took := func(v float64) string {
		if v == 0 {
			return "-"
		}
		return fmt.Sprintf("%.1f ms", v)
	}
	err := cli.PrintList(a, r.Ways,
		output.Column[way]{Head: "NEAREST", Cell: func(w way) string { return map[bool]string{true: "*"}[w.Nearest] }},
		output.Column[way]{Head: "CELL", Cell: func(w way) string { return output.OrDash(w.Cell) }},
		output.Column[way]{Head: "REGION", Cell: func(w way) string { return output.OrDash(w.Region) }},
		output.Column[way]{Head: "NODE", Cell: func(w way) string { return output.OrDash(w.Node) }},
		output.Column[way]{Head: "TCP", Cell: func(w way) string { return took(w.TCP) }},
		output.Column[way]{Head: "TLS", Cell: func(w way) string { return took(w.TLS) }},
		output.Column[way]{Head: "QUIC", Cell: func(w way) string {
			if w.UDPBlocked {
				return "blocked"
			}
			return took(w.QUIC)
		}},
		output.Column[way]{Head: "HEALTH", Cell: func(w way) string { return w.Health }},
		output.Column[way]{Head: "PROBLEM", Cell: func(w way) string { return w.Problem }},
		output.Column[way]{Head: "HTTP", Cell: func(w way) string { return took(w.HTTP) }, Wide: true},
		output.Column[way]{Head: "URL", Cell: func(w way) string { return w.URL }, Wide: true},
		output.Column[way]{Head: "CERTIFICATE UNTIL", Cell: func(w way) string { return output.OrDash(w.CertUntil) }, Wide: true})
	if err != nil {
		return err
	}
	if r.Nearest == "" {
		a.Warnf("no cell can be reached")
	} else {
		a.Notef("nearest: %s; UDP: %s", r.Nearest, r.UDP)
	}
	if r.Source == "" {
		a.Warnf("nobody said which cells there are: these are the context's own addresses")
	}
	return nil
}
