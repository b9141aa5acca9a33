// Package compile turns a tenant's rows into what a cell enforces: the decision index and the catalogue. It is pure: no
// clock, no IO, and the same rows give the same bytes in whatever order they come, so that anybody can compile again and
// compare.
//
// Rows never make it fail open. A grant whose condition can no longer be typed against the published surface never
// allows and always denies, and the report says so. What a grant names but is not published is simply not reached.
package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
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

	Servers []Server
	Grants  []Grant
	Issuers []*snapshotv1.Issuer
	// Zero staleness means the default.
	ReadStaleness, WriteStaleness time.Duration
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
}

// Grant is one rule as somebody wrote it.
type Grant struct {
	ID        string
	Deny      bool
	Subject   string
	Server    string // "*" for all
	Tool      string // "" for the whole server
	Condition string
	ExpiresAt time.Time // zero for never
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
	c := &compiler{
		in:       in,
		surfaces: map[string]*snapshotv1.CatalogueServer{},
		schemas:  map[string]map[string]policy.Schema{},
		shapes:   map[string]string{},
		lowered:  map[lowering]*snapshot.Cond{},
	}
	catalogue, err := c.catalogue()
	if err != nil {
		return nil, err
	}
	pol := c.policy()
	out := &Output{Policy: pol, Report: Report{Notes: c.notes}}
	if out.Index, err = index.Build(pol); err != nil {
		return nil, fmt.Errorf("compile tenant %s: %w", in.Tenant.Name, err)
	}
	if out.Catalogue, err = shard.EncodeCatalogue(catalogue); err != nil {
		return nil, fmt.Errorf("compile tenant %s: %w", in.Tenant.Name, err)
	}
	out.Shards = []*snapshotv1.Shard{
		shard.Of(snapshotv1.ShardKind_SHARD_KIND_INDEX, out.Index),
		shard.Of(snapshotv1.ShardKind_SHARD_KIND_CATALOGUE, out.Catalogue),
	}
	return out, nil
}

type compiler struct {
	in Input
	// surfaces and schemas are by server name, schemas by tool name below it.
	surfaces map[string]*snapshotv1.CatalogueServer
	schemas  map[string]map[string]policy.Schema
	// shapes are of all schemas of a server together.
	shapes  map[string]string
	lowered map[lowering]*snapshot.Cond
	notes   []Note
}

// lowering names a condition put on tools of one shape.
type lowering struct{ condition, shape string }

func (c *compiler) note(grant, format string, args ...any) {
	c.notes = append(c.notes, Note{grant, fmt.Sprintf(format, args...)})
}

func (c *compiler) catalogue() (*snapshotv1.Catalogue, error) {
	cat := &snapshotv1.Catalogue{
		TenantId: string(c.in.Tenant.ID), Tenant: c.in.Tenant.Name,
		Hosts: slices.Sorted(slices.Values(c.in.Tenant.Hosts)),
		Settings: &snapshotv1.Settings{
			MaxStalenessReadMs:  cmp.Or(c.in.ReadStaleness, DefaultReadStaleness).Milliseconds(),
			MaxStalenessWriteMs: cmp.Or(c.in.WriteStaleness, DefaultWriteStaleness).Milliseconds(),
		},
	}
	for _, s := range sorted(c.in.Servers, func(s Server) string { return s.Name }) {
		srv, err := c.server(s)
		if err != nil {
			return nil, err
		}
		cat.Servers = append(cat.Servers, srv)
	}
	for _, i := range sorted(c.in.Issuers, (*snapshotv1.Issuer).GetIssuer) {
		cat.Issuers = append(cat.Issuers, &snapshotv1.Issuer{
			Issuer:    i.GetIssuer(),
			Audiences: slices.Sorted(slices.Values(i.GetAudiences())),
			Keys:      sorted(i.GetKeys(), (*snapshotv1.IssuerKey).GetKid),
		})
	}
	return cat, nil
}

func (c *compiler) server(s Server) (*snapshotv1.CatalogueServer, error) {
	srv := &snapshotv1.CatalogueServer{}
	if err := proto.Unmarshal(s.Surface, srv); err != nil {
		return nil, fmt.Errorf("compile server %s: its stored surface does not decode: %w", s.Name, err)
	}
	srv.Id, srv.Name = s.ID, s.Name
	srv.Version, srv.VersionDigest = s.Version, s.Digest
	srv.ProtocolVersions = s.ProtocolVersions
	srv.Tools = sorted(srv.GetTools(), (*snapshotv1.CatalogueTool).GetName)
	schemas := make(map[string]policy.Schema, len(srv.GetTools()))
	shapes := make(map[string]bool, 4)
	for _, t := range srv.GetTools() {
		t.Effect = effect(s.Effects[t.GetName()])
		schemas[t.GetName()] = policy.ParseSchema(s.Name+"/"+t.GetName(), t.GetRaw())
		shapes[schemas[t.GetName()].Shape()] = true
	}
	c.surfaces[s.Name], c.schemas[s.Name] = srv, schemas
	c.shapes[s.Name] = strings.Join(slices.Sorted(maps.Keys(shapes)), "\x00")
	return srv, nil
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
