package pdp

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"github.com/mcpvault/mcpvault/dataplane/authn"
	"github.com/mcpvault/mcpvault/dataplane/guard"
	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/schema"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"google.golang.org/protobuf/proto"
)

// Tenant is one tenant's policy at one generation, ready to be asked.
type Tenant struct {
	ID       snapshot.TenantID
	Name     string
	Version  snapshot.Version
	Revision uint64
	// Digest names the generation: that of its head's payload, or of the body of the delta that made it.
	Digest snapshot.Digest
	// HeadDigest is that of the head, whose catalogue holds for the deltas behind it too.
	HeadDigest snapshot.Digest
	// State is the state hash of the index: the same on every node that serves this generation.
	State snapshot.Digest
	Index *index.Index
	// Keys verify this tenant's access tokens.
	Keys     authn.TenantKeys
	Hosts    []string
	Settings *snapshotv1.Settings
	// Limits is what callers may ask for over time, nil for no limit.
	Limits *limit.Plan
	// Guards is what is done about what servers say.
	Guards *guard.Rules
	// Servers are sorted by name.
	Servers []*Server
	byName  map[string]*Server
	lease   *atomic.Int64
	rules   rules
}

// ConfirmedMS is the time of the newest heartbeat that confirmed this generation, 0 when there was none.
func (t *Tenant) ConfirmedMS() int64 { return t.lease.Load() }

// Server is one published server.
type Server struct {
	ID               index.ServerID
	Name             string
	URL              string
	Version          uint32
	VersionDigest    snapshot.Digest
	ProtocolVersions []string
	ServerInfo       json.RawMessage
	Capabilities     json.RawMessage
	Instructions     string
	// Other stands for whatever has no item of its own.
	Other index.ItemID
	// Tools are sorted by name.
	Tools  []Tool
	byName map[string]*Tool
	// reads and writes are the bounds of what is no tool.
	reads, writes Bound
	Surfaces
}

// Tool is one tool of a published server.
type Tool struct {
	Name string
	// Raw is the tool object as the upstream sent it.
	Raw    json.RawMessage
	Effect snapshotv1.Effect
	Item   index.ItemID
	// Params are the arguments that modern clients repeat in headers.
	Params []mcp.Param
	// Called and Listed are for how long a call of it is served, and it is shown.
	Called, Listed Bound
	// input is nil where arguments are not checked.
	input func() (*schema.Schema, error)
}

// Server finds a server by name.
func (t *Tenant) Server(name string) (*Server, bool) {
	s, ok := t.byName[name]
	return s, ok
}

// Tool finds a tool by name.
func (s *Server) Tool(name string) (*Tool, bool) {
	t, ok := s.byName[name]
	return t, ok
}

// Speaks reports whether the upstream was seen to speak a protocol revision.
func (s *Server) Speaks(revision string) bool {
	for _, v := range s.ProtocolVersions {
		if v == revision {
			return true
		}
	}
	return false
}

// NewTenant joins a verified head with its opened shards. An index that does not come to the head's state hash is an error;
// so are an index and a catalogue that do not fit each other: what is listed and what is decided must be the same things.
func NewTenant(head *snapshotv1.Head, digest snapshot.Digest, x *index.Index, c *snapshotv1.Catalogue) (*Tenant, error) {
	t := &Tenant{
		ID:         snapshot.TenantID(head.GetTenantId()),
		Name:       head.GetTenant(),
		Version:    snapshot.VersionOf(head),
		Revision:   head.GetRevision(),
		Digest:     digest,
		HeadDigest: digest,
		State:      x.StateHash(),
		Index:      x,
		Hosts:      c.GetHosts(),
		Settings:   c.GetSettings(),
		byName:     make(map[string]*Server, len(c.GetServers())),
	}
	if want := head.GetStateHash(); len(want) > 0 && string(want) != string(t.State[:]) {
		return nil, fmt.Errorf("the index comes to state %s, the head says %x", t.State, want)
	}
	for _, cs := range c.GetServers() {
		s, err := newServer(x, cs)
		if err != nil {
			return nil, fmt.Errorf("server %q: %w", cs.GetName(), err)
		}
		t.bound(s, cs)
		t.Servers = append(t.Servers, s)
		t.byName[s.Name] = s
	}
	keys, err := issuerKeys(head, c)
	if err != nil {
		return nil, err
	}
	t.Keys = keys
	if t.Limits, err = limitsOf(c.GetSettings()); err != nil {
		return nil, fmt.Errorf("rate limits: %w", err)
	}
	if t.Guards, err = guard.ParseRules(c.GetSettings().GetGuards()); err != nil {
		return nil, fmt.Errorf("guards: %w", err)
	}
	if t.Guards.CheckArguments {
		t.checkArguments()
	}
	return t, nil
}

// Next is the tenant at the generation that a verified delta makes, decided by the index that came of applying it. Servers,
// keys and settings are those of the head: a delta changes none of them.
func (t *Tenant) Next(d *snapshotv1.Delta, digest snapshot.Digest, x *index.Index) *Tenant {
	next := &Tenant{
		ID: t.ID, Name: t.Name, Version: seal.DeltaVersion(d), Revision: d.GetRevision(), Digest: digest, HeadDigest: t.HeadDigest,
		Index: x, Keys: t.Keys, Hosts: t.Hosts, Settings: t.Settings, Limits: t.Limits, Guards: t.Guards, Servers: t.Servers, byName: t.byName,
	}
	copy(next.State[:], d.GetStateHash())
	return next
}

// AppliedHead is how a node tells others what it serves. It is for tenants that are live.
func (t *Tenant) AppliedHead() *cellv1.AppliedHead {
	return &cellv1.AppliedHead{
		TenantId: string(t.ID), Epoch: uint64(t.Version.Epoch), Generation: uint64(t.Version.Generation),
		StateHash: t.State[:], Digest: t.Digest[:], ConfirmedMs: t.ConfirmedMS(),
	}
}

func newServer(x *index.Index, cs *snapshotv1.CatalogueServer) (*Server, error) {
	id, ok := x.Server(cs.GetName())
	if !ok {
		return nil, fmt.Errorf("is in the catalogue but not in the index")
	}
	other, ok := x.Item(id, snapshot.ItemOther)
	if !ok {
		return nil, fmt.Errorf("index has no item %s", snapshot.ItemOther)
	}
	digest, ok := snapshot.DigestFrom(cs.GetVersionDigest())
	if !ok {
		return nil, fmt.Errorf("version digest is %d bytes long", len(cs.GetVersionDigest()))
	}
	s := &Server{
		ID: id, Name: cs.GetName(), URL: cs.GetUrl(), Version: cs.GetVersion(), VersionDigest: digest,
		ProtocolVersions: cs.GetProtocolVersions(), ServerInfo: cs.GetServerInfo(), Capabilities: cs.GetCapabilities(),
		Instructions: cs.GetInstructions(), Other: other,
		Tools:  make([]Tool, 0, len(cs.GetTools())),
		byName: make(map[string]*Tool, len(cs.GetTools())),
	}
	for _, ct := range cs.GetTools() {
		item, ok := x.Item(id, ct.GetName())
		if !ok {
			return nil, fmt.Errorf("tool %q is in the catalogue but not in the index", ct.GetName())
		}
		s.Tools = append(s.Tools, Tool{Name: ct.GetName(), Raw: ct.GetRaw(), Effect: ct.GetEffect(), Item: item, Params: mcp.Params(ct.GetRaw())})
	}
	for i := range s.Tools {
		s.byName[s.Tools[i].Name] = &s.Tools[i]
	}
	s.Surfaces = newSurfaces(x, id, other, cs)
	return s, nil
}

func issuerKeys(head *snapshotv1.Head, c *snapshotv1.Catalogue) (authn.TenantKeys, error) {
	keys := authn.TenantKeys{TenantID: head.GetTenantId(), Tenant: head.GetTenant()}
	var all []byte
	for _, ci := range c.GetIssuers() {
		issuer, err := newIssuer(ci)
		if err != nil {
			return keys, fmt.Errorf("issuer %q: %w", ci.GetIssuer(), err)
		}
		keys.Issuers = append(keys.Issuers, issuer)
		if all, err = (proto.MarshalOptions{Deterministic: true}).MarshalAppend(all, ci); err != nil {
			return keys, fmt.Errorf("issuer %q: %w", ci.GetIssuer(), err)
		}
		all = append(all, 0)
	}
	// A verdict cached under one set of keys, or one way to read claims, must not be found under another.
	d := snapshot.DigestOf(all)
	keys.KeySet = binary.BigEndian.Uint64(d[:])
	return keys, nil
}

func newIssuer(ci *snapshotv1.Issuer) (authn.Issuer, error) {
	issuer := authn.Issuer{
		Issuer: ci.GetIssuer(), Audiences: ci.GetAudiences(), External: ci.GetExternal(), AnyType: ci.GetAnyType(), JWKSURL: ci.GetJwksUrl(),
		User: authn.UserClaim{Claim: ci.GetUserClaim(), Domain: ci.GetUserDomain(), Prefix: ci.GetUserPrefix()},
	}
	for _, k := range ci.GetKeys() {
		pub, err := x509.ParsePKIXPublicKey(k.GetPublicKey())
		if err != nil {
			return issuer, fmt.Errorf("key %q: %w", k.GetKid(), err)
		}
		issuer.Keys = append(issuer.Keys, jose.Key{KID: k.GetKid(), Alg: k.GetAlg(), Public: pub})
	}
	for _, w := range ci.GetWithdrawn() {
		if len(w) != sha256.Size {
			return issuer, fmt.Errorf("a withdrawn key is named by %d bytes", len(w))
		}
		if issuer.Withdrawn == nil {
			issuer.Withdrawn = map[[sha256.Size]byte]bool{}
		}
		issuer.Withdrawn[[sha256.Size]byte(w)] = true
	}
	for _, r := range ci.GetScopes() {
		issuer.ScopeRules = append(issuer.ScopeRules, authn.ScopeRule{
			Scope: r.GetScope(), Wider: r.GetWider(), Server: r.GetServer(), Effect: r.GetEffect(),
		})
	}
	return issuer, nil
}
