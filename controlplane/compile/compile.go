// Package compile turns a tenant's rows into what a cell enforces: the decision index and the catalogue. It is pure: no
// clock, no IO, and the same rows give the same bytes in whatever order they come, so that anybody can compile again and
// compare.
//
// Rows never make it fail open. A grant whose condition can no longer be typed against the published surface never
// allows and always denies, and the report says so. What a grant names but is not published is simply not reached.
package compile

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/shard"
)

// ID names the compiler in a head. It changes when the same rows give other bytes.
const ID = "mcpvault/2"

// How long after the last heartbeat a class of calls is served, unless the tenant says otherwise.
const (
	DefaultReadStaleness  = 72 * time.Hour
	DefaultWriteStaleness = 24 * time.Hour
)

// Input is one consistent view of a tenant. Slices may come in any order.
type Input struct {
	Tenant controlplane.Tenant
	Users  []User
	Units  []Node
	Teams  []Node
	Groups []Node
	Roles  []Node

	Servers   []Server
	Endpoints []controlplane.Endpoint
	Grants    []Grant
	Policies  []Policy
	Issuers   []*snapshotv1.Issuer
	Staleness controlplane.Staleness
	Sessions  controlplane.SessionLimits
	Guards    controlplane.Guards

	RateLimits controlplane.RateLimits
}

// User is a principal with the names of what it belongs to directly.
type User struct {
	Name      string
	Kind      controlplane.UserKind
	Disabled  bool
	Clearance uint8
	Region    string
	Unit      string
	Teams     []string
	Groups    []string
	Roles     []string
}

// Node is a unit, team, group or role. Unit is the one above a unit, or the one that a team belongs to; Roles are what it
// was given, or what a role inherits from.
type Node struct {
	Name  string
	Unit  string
	Roles []string
}

// Server is a server with its published version.
type Server struct {
	ID, Name string
	Version  uint32
	Digest   []byte
	// Surface is a snapshot.v1.CatalogueServer as the registry keeps it.
	Surface          []byte
	ProtocolVersions []string
	// Effects by tool: read, write; everything else is destructive.
	Effects map[string]string
	Labels  []controlplane.Label
	Links   []controlplane.Link
}

// Grant is one rule as somebody wrote it.
type Grant struct {
	ID      string
	Deny    bool
	Subject string
	controlplane.Target
	Condition string
	Limits    controlplane.Limits
	// NotBefore and ExpiresAt are zero when it holds at once and for ever.
	NotBefore, ExpiresAt time.Time
}

// Output is what Compile made.
type Output struct {
	// Policy is what the index was built of, for explanations and tests.
	Policy    *snapshot.Policy
	Index     []byte
	Catalogue []byte
	// Shards describes the two, index first.
	Shards []*snapshotv1.Shard
	Report Report
}

// Report is what somebody should look at. The policy is enforced all the same.
type Report struct {
	Notes []Note
}

// Note is about one grant.
type Note struct {
	Grant   string
	Problem string
}

// Compile makes the shards. An error means that the rows as a whole cannot be enforced, and names the offender.
func Compile(in Input) (*Output, error) {
	pol, catalogue, notes, err := lower(in)
	if err != nil {
		return nil, err
	}
	out := &Output{Policy: pol, Report: Report{Notes: notes}, Shards: make([]*snapshotv1.Shard, 2)}
	// The two shards have nothing to do with each other.
	var both errgroup.Group
	both.Go(func() (err error) {
		if out.Index, err = builder.Build(pol); err == nil {
			out.Shards[0] = shard.Of(snapshotv1.ShardKind_SHARD_KIND_INDEX, out.Index)
		}
		return err
	})
	both.Go(func() (err error) {
		if out.Catalogue, err = shard.EncodeCatalogue(catalogue); err == nil {
			out.Shards[1] = shard.Of(snapshotv1.ShardKind_SHARD_KIND_CATALOGUE, out.Catalogue)
		}
		return err
	})
	if err := both.Wait(); err != nil {
		return nil, fmt.Errorf("compile tenant %s: %w", in.Tenant.Name, err)
	}
	return out, nil
}

// Form is the one form that rows and written policies lower to, without the shards that are made of it.
func Form(in Input) (*snapshot.Policy, Report, error) {
	pol, _, notes, err := lower(in)
	return pol, Report{Notes: notes}, err
}

// lower brings rows into the forms that the shards are encoded from.
func lower(in Input) (*snapshot.Policy, *snapshotv1.Catalogue, []Note, error) {
	c := newCompiler(in)
	catalogue, err := c.catalogue()
	if err != nil {
		return nil, nil, nil, err
	}
	return c.policy(), catalogue, c.notes, nil
}

type compiler struct {
	in        Input
	servers   map[string]*server // by name
	endpoints map[string]*controlplane.Endpoint
	lowered   map[asked]lowered
	written   map[shaped]*snapshot.Cond
	notes     []Note
}

func newCompiler(in Input) *compiler {
	c := &compiler{
		in: in, servers: make(map[string]*server, len(in.Servers)), endpoints: make(map[string]*controlplane.Endpoint, len(in.Endpoints)),
		lowered: map[asked]lowered{}, written: map[shaped]*snapshot.Cond{},
	}
	for i := range in.Endpoints {
		c.endpoints[in.Endpoints[i].Name] = &in.Endpoints[i]
	}
	return c
}

func (c *compiler) note(grant, format string, args ...any) {
	c.notes = append(c.notes, Note{grant, fmt.Sprintf(format, args...)})
}

func (c *compiler) catalogue() (*snapshotv1.Catalogue, error) {
	cat := &snapshotv1.Catalogue{
		TenantId: string(c.in.Tenant.ID), Tenant: c.in.Tenant.Name,
		Hosts:    slices.Sorted(slices.Values(c.in.Tenant.Hosts)),
		Settings: c.settings(),
	}
	for _, row := range sorted(c.in.Servers, func(s Server) string { return s.Name }) {
		s, err := c.newServer(row)
		if err != nil {
			return nil, err
		}
		c.servers[row.Name] = s
		cat.Servers = append(cat.Servers, s.shown)
	}
	for _, i := range sorted(c.in.Issuers, (*snapshotv1.Issuer).GetIssuer) {
		cat.Issuers = append(cat.Issuers, issuer(i))
	}
	return cat, nil
}

// issuer is an issuer with everything in the one order.
func issuer(i *snapshotv1.Issuer) *snapshotv1.Issuer {
	out := proto.CloneOf(i)
	slices.Sort(out.Audiences)
	slices.SortFunc(out.Keys, func(a, b *snapshotv1.IssuerKey) int {
		return cmp.Or(cmp.Compare(a.GetKid(), b.GetKid()), cmp.Compare(a.GetAlg(), b.GetAlg()), bytes.Compare(a.GetPublicKey(), b.GetPublicKey()))
	})
	slices.SortFunc(out.Withdrawn, bytes.Compare)
	for _, r := range out.Scopes {
		slices.Sort(r.Wider)
	}
	slices.SortFunc(out.Scopes, func(a, b *snapshotv1.ScopeRule) int {
		return cmp.Or(cmp.Compare(a.GetServer(), b.GetServer()), cmp.Compare(a.GetEffect(), b.GetEffect()), cmp.Compare(a.GetScope(), b.GetScope()))
	})
	return out
}

func (c *compiler) settings() *snapshotv1.Settings {
	s := &snapshotv1.Settings{
		MaxStalenessReadMs:  cmp.Or(c.in.Staleness.Read, DefaultReadStaleness).Milliseconds(),
		MaxStalenessWriteMs: cmp.Or(c.in.Staleness.Write, DefaultWriteStaleness).Milliseconds(),
		// What is not decided is left to the cells, which have defaults of their own.
		SessionIdleMs: c.in.Sessions.Idle.Milliseconds(), SessionMaxMs: c.in.Sessions.Max.Milliseconds(),
		SessionsPerPrincipal: c.in.Sessions.PerPrincipal, SessionsPerTenant: c.in.Sessions.PerTenant,
	}
	if c.in.Staleness.ReadOnlyAfter {
		s.AfterStaleness = snapshotv1.AfterStaleness_AFTER_STALENESS_READ_ONLY
	}
	for _, label := range slices.Sorted(maps.Keys(c.in.Staleness.Labels)) {
		s.LabelStaleness = append(s.LabelStaleness, &snapshotv1.LabelStaleness{Label: label, MaxMs: c.in.Staleness.Labels[label].Milliseconds()})
	}
	s.RateLimits, s.MaxCalls = rateLimits(c.in.RateLimits)
	if g := c.in.Guards; !g.Equal(controlplane.Guards{}) {
		s.Guards = &snapshotv1.Guards{
			Results: g.Results, Questions: g.Questions, Origins: g.Origins, Forbidden: g.Forbidden, CheckArguments: g.CheckArguments,
			ChangedTools: g.ChangedTools,
		}
	}
	return s
}

// effect is the class of a word; what nobody classed counts as the worst.
func effect(word string) snapshotv1.Effect {
	switch word {
	case "read":
		return snapshotv1.Effect_EFFECT_READ
	case "write":
		return snapshotv1.Effect_EFFECT_WRITE
	}
	return snapshotv1.Effect_EFFECT_DESTRUCTIVE
}

// sorted is a sorted copy.
func sorted[T any](list []T, key func(T) string) []T {
	out := slices.Clone(list)
	slices.SortFunc(out, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
	return out
}
