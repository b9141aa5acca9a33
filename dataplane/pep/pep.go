// Package pep is the policy enforcement point: the pipeline that every request of an MCP client passes. This file is the
// one place where the order of its steps is written.
//
// It promises that no byte goes upstream before a decision allowed it under the policy that is live at that moment, that
// every request leaves a record whatever becomes of it, and that no hop waits for anything outside of this node but the
// upstream itself, and an issuer for a key that the policy does not know yet. What was judged is what is sent: the body as it came, spliced only where a name is translated.
package pep

import (
	"context"
	"crypto/x509"
	"errors"
	"hash/maphash"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/remote"
	"github.com/mcpvault/mcpvault/dataplane/resume"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
	"github.com/mcpvault/mcpvault/kit/tele"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// Policy is the live policy.
type Policy interface {
	Current() *pdp.State
}

// Authenticator turns a bearer token into a principal; its errors are *authn.Error. The audiences are the URLs that the
// client used, good besides those that each issuer has of its own.
type Authenticator interface {
	BearerFor(token string, keys authn.TenantKeys, audiences ...string) (authn.Principal, error)
}

// Workloads turns the certificates that a caller has shown on its connection into a principal of the tenant, its errors
// being *authn.Error, and says whether they are those that a token is bound to.
type Workloads interface {
	Workload(chain []*x509.Certificate, keys *authn.TenantKeys) (authn.Principal, error)
	Holds(chain []*x509.Certificate, thumbprint string) bool
}

// Auditor keeps the records. Append returns once the record is in the log; Intent and Outcome once it is durable. An
// error means that the record was not kept, and that nothing may happen that would need it.
type Auditor interface {
	NewID() string
	Append(*auditv1.Record) error
	Intent(context.Context, *auditv1.Record) error
	Outcome(context.Context, *auditv1.Record) error
	// MAC hashes arguments under the cell's audit key.
	MAC([]byte) []byte
}

// Upstream sends one request to an MCP server, once.
type Upstream interface {
	Do(context.Context, *upstream.Request) (*upstream.Response, error)
}

// Injector adds what a destination demands of every call, such as its own credential, to the headers that are set. It
// runs after the decision and before the intent is recorded.
type Injector interface {
	// Secrets names the secret references whose values Inject would send to the server: a secret that was killed is not
	// sent.
	Secrets(t *pdp.Tenant, s *pdp.Server) []string
	// Inject returns the secret values in each spelling, which are taken out of whatever comes back.
	Inject(ctx context.Context, t *pdp.Tenant, s *pdp.Server, set http.Header) (leaks [][]byte, err error)
}

// Config configures a PEP. Zero durations and counts take the defaults named.
type Config struct {
	Cell, Node string
	// Region is that of the cell, for conditions on it; "" for none.
	Region string
	// Proxies are those whose word on a caller's address is taken.
	Proxies remote.Proxies
	// Hosts are the public host names of this cell, besides those that tenants map. Loopback accepts every loopback name
	// on any port, for development.
	Hosts    []string
	Loopback bool
	// PublicURLs are the addresses that clients type, such as https://mcp.example.com/mcp. Their hosts are served, and
	// what a client is told of addresses is told in their words, whatever stands in front of this node.
	PublicURLs []string
	// Origins of browsers that may call, besides loopback ones when Loopback is set.
	Origins []string
	// CallTimeout bounds a call from its start to its answer, or to its next event: 30 s. MaxCall bounds all of it: 10
	// minutes. BodyTimeout bounds the reading of a request: 15 s.
	CallTimeout, MaxCall, BodyTimeout time.Duration
	// MaxBody: 4 MiB.
	MaxBody int64
	// MaxStreams is how many streams one principal may hold open: 64.
	MaxStreams int
	// Limits hold where the tenant's own settings say nothing; nil for no limit.
	Limits *limit.Plan
	// MaxUpstreamSessions bounds the upstream sessions of the gateway's own: 65,536, each dropped after SessionIdle
	// without use: 30 minutes.
	MaxUpstreamSessions int
	SessionIdle         time.Duration
	// KeepAlive is the pause after which an idle stream gets a comment: 20 s.
	KeepAlive time.Duration
	// PageSize bounds one page of tools/list: 500.
	PageSize int
	// ListTTL is how long a modern client may keep a list: 5 s.
	ListTTL time.Duration
	// InputWait is how long a call waits for a modern client to come back with what a legacy server asked: 5 minutes.
	// MaxParked bounds the calls that wait so, of which one principal may have 64: 4,096.
	InputWait time.Duration
	MaxParked int
	// PinEvery is how often what servers advertise is compared with what was approved; 0 is never.
	PinEvery time.Duration
	// Version is what the gateway calls itself where it leads the dialogue.
	Version string
	Now     func() time.Time
}

// PEP is the pipeline. It is an http.Handler.
type PEP struct {
	cfg      Config
	log      *slog.Logger
	policy   Policy
	authn    Authenticator
	workload Workloads
	audit    Auditor
	up       Upstream
	injector Injector
	framer   *mcp.Framer
	sessions *session.Sessions
	leases   *session.Leases
	goodbyes *goodbyes
	resumes  *limit.Resumes
	table    *session.Table
	streams  *limit.Streams
	// listeners are the streams on which servers speak unasked.
	listeners *listeners
	limits    *limit.Limiter
	slots     *limit.Slots
	flood     *limit.Flood[*auditv1.Record]
	body      limit.Body
	names     veneer.Cache[snapshot.Digest]
	prompts   veneer.Cache[snapshot.Digest]
	// dialogues and parked are what this node remembers of dialogues that the gateway leads.
	dialogues *bridge.Dialogues
	parked    *bridge.Parked[*conversation]
	ears      *ears
	// kept is what was said on streams, for those who come back to them.
	kept     *resume.Streams
	metrics  *metrics
	pins     pins
	seed     maphash.Seed      // of hashes that stay on this node
	here     []string          // the header value that names this node
	bases    map[string]string // public URL without path, by host
	tracer   trace.Tracer      // nil while nothing is traced
	draining chan struct{}     // closed by Drain
	drained  sync.Once
	steps    []step
}

// Parts are what a PEP stands on. Injector may be nil, and Workloads where callers are known by their tokens alone.
type Parts struct {
	Log       *slog.Logger
	Policy    Policy
	Authn     Authenticator
	Workloads Workloads
	Audit     Auditor
	Upstream  Upstream
	Injector  Injector
	Sessions  *session.Sessions
	Leases    *session.Leases
	// Limits holds the buckets of rate limits; nil for buckets of this PEP's own.
	Limits *limit.Limiter
	// Traces makes spans; nil, or one that is off, makes none.
	Traces *tele.Traces
	// Registerer takes the metrics; it may be nil.
	Registerer prometheus.Registerer
}

// step is one station of a request: it returns the answer that ends it, or nil to go on. A step that answers by itself,
// because it streams, marks the exchange as done.
type step func(*exchange) *answer

// New makes a PEP. It panics when its metrics are registered already, which only a mistake in the wiring can bring about.
func New(cfg Config, parts Parts) *PEP {
	cfg = cfg.withDefaults()
	if parts.Limits == nil {
		parts.Limits = limit.New(limit.Config{})
	}
	counts, err := newMetrics(parts.Registerer)
	if err != nil {
		panic(err)
	}
	var tracer trace.Tracer
	if parts.Traces.On() {
		tracer = parts.Traces.Tracer("github.com/mcpvault/mcpvault/dataplane/pep")
	}
	p := &PEP{
		tracer:  tracer,
		metrics: counts, here: []string{cfg.Cell + "/" + cfg.Node}, bases: cfg.bases(), draining: make(chan struct{}),
		cfg: cfg, log: parts.Log, policy: parts.Policy, authn: parts.Authn, workload: parts.Workloads, audit: parts.Audit, up: parts.Upstream,
		injector: parts.Injector, sessions: parts.Sessions, leases: parts.Leases, goodbyes: newGoodbyes(), resumes: limit.NewResumes(resumesPerSecond),
		seed:      maphash.MakeSeed(),
		framer:    mcp.NewFramer(mcp.DefaultLimits()),
		table:     session.NewTable(cfg.MaxUpstreamSessions, cfg.SessionIdle, cfg.Now),
		dialogues: bridge.NewDialogues(cfg.MaxUpstreamSessions, cfg.Now),
		parked:    bridge.NewParked[*conversation](cfg.MaxParked, maxParkedEach, cfg.Now),
		streams:   limit.NewStreams(cfg.MaxStreams),
		listeners: newListeners(),
		kept:      resume.New(resume.Config{MaxStreams: cfg.MaxUpstreamSessions}),
		limits:    parts.Limits,
		slots:     limit.NewSlots(),
		flood:     limit.NewFlood[*auditv1.Record](time.Second, maxFloods),
		body:      limit.Body{Max: cfg.MaxBody, Timeout: cfg.BodyTimeout},
		steps: []step{
			(*exchange).admit,        // host, origin, path, verb
			(*exchange).frame,        // one strict pass over the bounded body; era; headers against body
			(*exchange).trace,        // the span, in the caller's trace
			(*exchange).authenticate, // token in, principal of this tenant out
			(*exchange).ration,       // what the caller may ask for over time and at once
			(*exchange).resume,       // legacy: the session, if it is this caller's
			(*exchange).locate,       // the server, if this caller may know of it
			(*exchange).limit,        // open streams and sessions
			(*exchange).decide,       // may this caller do this, now, with these arguments
			(*exchange).own,          // what is answered here: initialize, discovery, lists
			(*exchange).allot,        // what the tool and the server may be asked for over time
			(*exchange).inject,       // the destination's own credential
			(*exchange).intend,       // calls with effects: the intent is on disk first
			(*exchange).recheck,      // the policy may have changed since
			(*exchange).forward,      // upstream, and the answer back
		},
	}
	p.ears = newEars(p)
	return p
}

// ServeHTTP serves one request.
func (p *PEP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if p.wellKnown(w, r) {
		return
	}
	x := p.open(w, r)
	defer x.close()
	for _, s := range p.steps {
		if a := s(x); a != nil {
			x.finish(a)
			return
		}
		if x.done {
			return
		}
	}
}

// Run closes what was left idle and records what was only counted, until the context ends.
func (p *PEP) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for range goodbyeWorkers {
		wg.Go(func() { p.sayGoodbye(ctx) })
	}
	if p.cfg.PinEvery > 0 {
		wg.Go(func() { p.runPins(ctx) })
	}
	tick, waits := time.NewTicker(p.cfg.SessionIdle/4), time.NewTicker(p.cfg.InputWait/4)
	defer tick.Stop()
	defer waits.Stop()
	floods := time.NewTicker(time.Second)
	defer floods.Stop()
	for {
		select {
		case <-ctx.Done():
			p.abandon(p.parked.Overdue(true))
			p.ears.close()
			p.countFloods(true)
			return nil
		case <-waits.C:
			p.abandon(p.parked.Overdue(false))
		case <-floods.C:
			p.countFloods(false)
		case <-tick.C:
			p.dialogues.Sweep(p.cfg.SessionIdle)
			p.hangUp(ctx, p.table.Sweep())
		}
	}
}

// maxParkedEach is how many calls of one principal may wait for input.
const maxParkedEach = 64

// Drain ends the long streams, which would outlast any grace; calls go on to their answers.
func (p *PEP) Drain() {
	p.drained.Do(func() {
		close(p.draining)
		p.kept.Close() // nobody comes back to a node that stops
	})
}

// Streams counts the streams that are open.
func (p *PEP) Streams() int { return p.streams.Open() }

// bases are the public URLs up to their paths.
func (c Config) bases() map[string]string {
	m := make(map[string]string, len(c.PublicURLs))
	for _, raw := range c.PublicURLs {
		if u, err := url.Parse(raw); err == nil && u.Host != "" {
			host := strings.ToLower(u.Host)
			m[host] = u.Scheme + "://" + host
		}
	}
	return m
}

func (c Config) withDefaults() Config {
	or := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	or(&c.CallTimeout, 30*time.Second)
	or(&c.MaxCall, 10*time.Minute)
	or(&c.BodyTimeout, 15*time.Second)
	or(&c.SessionIdle, 30*time.Minute)
	or(&c.KeepAlive, 20*time.Second)
	or(&c.InputWait, 5*time.Minute)
	or(&c.ListTTL, 5*time.Second)
	if c.MaxBody <= 0 {
		c.MaxBody = 4 << 20
	}
	if c.MaxStreams <= 0 {
		c.MaxStreams = 64
	}
	if c.MaxUpstreamSessions <= 0 {
		c.MaxUpstreamSessions = 1 << 16
	}
	if c.MaxParked <= 0 {
		c.MaxParked = 4096
	}
	if c.PageSize <= 0 {
		c.PageSize = 500
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}

// maxFloods bounds the callers whose refusals are counted apart.
const maxFloods = 10_000

// Why an exchange was cut short.
var (
	errTimeout   = errors.New("deadline")
	errCancelled = errors.New("the client cancelled the request")
	errExpired   = errors.New("token expired")
	errRevoked   = errors.New("no longer allowed")
)

// ErrStopping is the cause to give the contexts of requests that outlast the grace of a node that stops: their callers are
// told so.
var ErrStopping = errors.New("the node is stopping")
