// Package controlplane is the vocabulary of the side that decides: who there is, what may be called, who may call it, and
// who is asking for a change. Plain structs without tags of storage or transport; the rooms below give them their rules.
package controlplane

import (
	"context"
	"slices"
	"time"

	"github.com/mcpvault/mcpvault/snapshot"
)

// TenantID is the UUIDv7 of one customer organisation.
type TenantID = snapshot.TenantID

// Revision counts the admin writes of one tenant. A write returns the one it made; a generation states the one it holds.
type Revision = uint64

// Tenant is one customer organisation; everything else lives below one.
type Tenant struct {
	ID        TenantID
	Name      string
	Hosts     []string
	Revision  Revision
	Epoch     uint64
	CreatedAt time.Time
}

// Unit is a part of the organisation, in a tree.
type Unit struct {
	ID     string
	Name   string
	Parent string // name; "" at the top
}

// Team is a set of users.
type Team struct {
	ID      string
	Name    string
	Unit    string   // name; may be ""
	Members []string // user names, sorted
}

// Group is a flat set of users, kept by hand or by an identity provider. It has no groups within: what a provider nests
// arrives as members.
type Group struct {
	ID      string
	Name    string
	Source  string   // GroupManual, or what provisions it
	Members []string // user names, sorted
}

// GroupManual is the source of a group that is kept by hand.
const GroupManual = "manual"

// UserKind says whether a principal is a person or a program.
type UserKind string

// The kinds.
const (
	Person         UserKind = "person"
	ServiceAccount UserKind = "service_account"
	Workload       UserKind = "workload" // named by its SPIFFE ID
)

// User is a principal: a person, a service account or a workload.
type User struct {
	ID          string
	Name        string
	Kind        UserKind
	Unit        string // name; may be ""
	DisplayName string
	Supervisor  string // user name; may be ""
	// Clearance is the highest class of data that the user may touch, 0 to snapshot.MaxLevel.
	Clearance  uint8
	Region     string   // where the user belongs; may be ""
	Teams      []string // sorted
	Groups     []string // sorted
	Roles      []string // given directly, sorted
	AdminRoles []string // what they may do through the admin API
	Disabled   bool
	CreatedAt  time.Time
}

// Role is a named set of grants that users, teams, groups and units are given.
type Role struct {
	ID          string
	Name        string
	Description string
	Inherits    []string // role names, sorted
	Members     []string // "user:alice", "team:analysts", "group:eng", "unit:emea", sorted
}

// Endpoint is data that tools touch: a database, a bucket, an API.
type Endpoint struct {
	ID    string
	Name  string
	Owner string // who answers for it, in words; may be ""
	// Class of the data, 0 (public) to snapshot.MaxLevel.
	Class   uint8
	Regions []string // where the data is, sorted
	Access  []string // the ways to use it, sorted: "read", "write"
	Links   []Link   // what touches it, sorted by server and item
}

// Link says that something of a server touches an endpoint.
type Link struct {
	Endpoint, Server string
	// Item is a tool, snapshot.PromptItem or snapshot.ResourceItem.
	Item   string
	Access []string // the ways in which it does, sorted
}

// Label is a word about a server, or about one of its tools, which then counts instead of the server's.
type Label struct {
	Server string
	Tool   string // "" for the server
	Key    string
	Value  string
}

// Staleness is how long after the last contact with the control plane calls are still served; 0 is the default.
type Staleness struct {
	Read, Write time.Duration
	// ReadOnlyAfter has reads go on when their bound is over.
	ReadOnlyAfter bool
	// Labels are narrower bounds for what carries a label, by "key=value".
	Labels map[string]time.Duration
}

// RateLimits is what callers may ask for over time; what is not there has no limit.
type RateLimits struct {
	// Rates are by what shares a bucket: a scope of RateScopes for each of it, scope/NAME for one; a tool is tool/SERVER/NAME.
	Rates map[string]RateLimit
	// MaxCalls bounds the requests of one principal that a node has under way; 0 is the node's own bound.
	MaxCalls int64
}

// RateLimit is a token bucket: Requests in every Per on average, Burst at once.
type RateLimit struct {
	Requests int64
	Per      time.Duration
	Burst    int64
}

// RateScopes are what buckets can be for.
func RateScopes() []string {
	return []string{"principal", "tenant", "server", "tool", "discover", "resume"}
}

// SessionLimits are what a tenant lets the sessions of legacy clients be; 0 is the default.
type SessionLimits struct {
	// Idle and Max are when a session ends that is not used, and however busy it is.
	Idle, Max time.Duration
	// PerPrincipal and PerTenant are how many there may be in a cell.
	PerPrincipal, PerTenant uint32
}

// Token is what is kept of an access token: never the token itself.
type Token struct {
	ID        string // jti, a ULID
	Principal string
	IssuedAt  time.Time
	ExpiresAt time.Time
	RevokedAt time.Time // zero while it is good
	CreatedBy string
}

// Change is one entry of the ledger of admin writes.
type Change struct {
	Sequence uint64
	At       time.Time
	Actor    string
	Action   string // "grant.create", "server.approve", ...
	Object   string
	Detail   string // JSON, the bytes that were hashed
	Revision Revision
	Hash     []byte // over the hash before and this entry
}

// Admin roles, from the widest to the narrowest. An owner is one of the whole platform, the others of their tenant.
const (
	RoleOwner   = "owner"
	RoleAdmin   = "admin"
	RoleAuditor = "auditor"
	RoleMember  = "member"
)

// Caller is who makes an admin request, as their token and the directory say, and the tenant that the request is about.
type Caller struct {
	Principal string
	// TenantID and Tenant are what the request is about: the caller's own tenant, except for an owner who names another.
	TenantID TenantID
	Tenant   string
	// Home is the caller's own tenant.
	Home      string
	Roles     []string
	TokenID   string
	ExpiresAt time.Time
	RequestID string
}

// Has reports whether the caller has one of the roles.
func (c Caller) Has(roles ...string) bool {
	return slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(c.Roles, r) })
}

// Actor is how the ledger names the caller: with their tenant when they act in another one.
func (c Caller) Actor() string {
	if c.Home != "" && c.Home != c.Tenant {
		return c.Home + "/" + c.Principal
	}
	return c.Principal
}

type callerKey struct{}

// WithCaller returns a context that carries the caller. Only whoever authenticated them calls it.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// CallerFrom returns the caller, or the zero Caller, who may do nothing, when nobody was authenticated.
func CallerFrom(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	return c
}
