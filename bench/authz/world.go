package authz

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// TenantUsers is how many users a tenant has, and so how many one shard holds.
const TenantUsers = 10_000

const (
	servers = 40
	tools   = 50
	// common is the server that everyone may see all of: lists are measured on it.
	common = "server-00"
)

// Now is the time of all decisions: the world's conditions on time lie around it.
var Now = time.Date(2027, time.January, 15, 10, 30, 0, 0, time.UTC)

// Size is how large a tenant is; everything else about it follows from its number.
type Size struct{ Users, Units, Teams, Groups, Roles, Grants int }

// Full is the size of a measured tenant.
func Full() Size {
	return Size{Users: TenantUsers, Units: 121, Teams: 400, Groups: 80, Roles: 60, Grants: 2920}
}

// Rows makes the rows of a tenant, as the control plane reads them from its database. The same number and size give the
// same rows on every machine.
func Rows(tenant int, size Size) (compile.Input, error) {
	surface, err := surfaces()
	if err != nil {
		return compile.Input{}, err
	}
	w := &maker{rng: rand.New(rand.NewPCG(1, uint64(tenant))), tenant: tenant, size: size}
	in := compile.Input{
		Tenant: controlplane.Tenant{
			ID:   controlplane.TenantID(fmt.Sprintf("0199c0de-0000-7000-8000-%012d", tenant)),
			Name: fmt.Sprintf("tenant-%03d", tenant),
		},
		Units:  w.units(),
		Teams:  w.teams(),
		Groups: w.groups(),
		Roles:  w.roles(),
		Users:  w.users(),
	}
	for s := range servers {
		name := serverName(s)
		in.Servers = append(in.Servers, compile.Server{
			ID: name, Name: name, Version: 1, Digest: make([]byte, 32), Surface: surface[s], Effects: effects(),
			ProtocolVersions: []string{"2025-11-25"},
		})
	}
	in.Grants = append(in.Grants, compile.Grant{ID: "everyone", Subject: string(snapshot.Everyone), Target: controlplane.Target{Server: common}})
	for g := range size.Grants {
		in.Grants = append(in.Grants, w.grant(g))
	}
	return in, nil
}

type maker struct {
	rng    *rand.Rand
	tenant int
	size   Size
}

func serverName(i int) string { return fmt.Sprintf("server-%02d", i) }
func toolName(i int) string   { return fmt.Sprintf("tool-%02d", i) }
func teamName(i int) string   { return fmt.Sprintf("team-%03d", i) }
func roleName(i int) string   { return fmt.Sprintf("role-%02d", i) }
func unitName(i int) string   { return fmt.Sprintf("unit-%03d", i) }
func groupName(i int) string  { return fmt.Sprintf("group-%02d", i) }

func (w *maker) userName(i int) string { return fmt.Sprintf("user-%05d@t%03d.example", i, w.tenant) }

// units are a tree in which each has three below it: 121 are five levels.
func (w *maker) units() []compile.Node {
	out := make([]compile.Node, w.size.Units)
	for i := range out {
		out[i].Name = unitName(i)
		if i > 0 {
			out[i].Unit = unitName((i - 1) / 3)
		}
	}
	return out
}

// teams belong to units that have none below them; some were given a role.
func (w *maker) teams() []compile.Node {
	out := make([]compile.Node, w.size.Teams)
	for i := range out {
		out[i].Name = teamName(i)
		out[i].Unit = w.leaf()
		if w.rng.IntN(4) == 0 {
			out[i].Roles = []string{w.role()}
		}
	}
	return out
}

func (w *maker) groups() []compile.Node {
	out := make([]compile.Node, w.size.Groups)
	for i := range out {
		out[i].Name = groupName(i)
		if w.rng.IntN(4) == 0 {
			out[i].Roles = []string{w.role()}
		}
	}
	return out
}

// roles inherit four levels deep: each but the first three has the rights of one with a third of its number.
func (w *maker) roles() []compile.Node {
	out := make([]compile.Node, w.size.Roles)
	for i := range out {
		out[i].Name = roleName(i)
		if i >= 3 {
			out[i].Roles = []string{roleName(i / 3)}
		}
	}
	return out
}

// users are in a team each, and in up to two groups and two roles; one of fifty is a service account of a unit.
func (w *maker) users() []compile.User {
	out := make([]compile.User, w.size.Users)
	for i := range out {
		u := compile.User{
			Name: w.userName(i), Kind: controlplane.Person, Disabled: w.rng.IntN(100) == 0,
			Clearance: uint8(w.rng.IntN(4)), Region: regions()[w.rng.IntN(len(regions()))],
		}
		if w.rng.IntN(50) == 0 {
			u.Kind, u.Unit = controlplane.ServiceAccount, w.leaf()
		} else {
			u.Teams = []string{teamName(w.rng.IntN(w.size.Teams))}
		}
		for range w.rng.IntN(3) {
			u.Groups = append(u.Groups, groupName(w.rng.IntN(w.size.Groups)))
		}
		for range w.rng.IntN(3) {
			u.Roles = append(u.Roles, w.role())
		}
		out[i] = u
	}
	return out
}

func (w *maker) role() string { return roleName(w.rng.IntN(w.size.Roles)) }

func (w *maker) leaf() string {
	inner := w.size.Units / 3
	return unitName(inner + w.rng.IntN(w.size.Units-inner))
}

func (w *maker) grant(i int) compile.Grant {
	g := compile.Grant{ID: fmt.Sprintf("grant-%05d", i), Deny: w.rng.IntN(10) == 0}
	g.Server = serverName(w.rng.IntN(servers))
	switch k := w.rng.IntN(100); {
	case k < 3:
		g.Subject = "unit:" + unitName(w.rng.IntN(w.size.Units))
	case k < 43:
		g.Subject = "team:" + teamName(w.rng.IntN(w.size.Teams))
	case k < 55:
		g.Subject = "group:" + groupName(w.rng.IntN(w.size.Groups))
	case k < 80:
		g.Subject = "role:" + w.role()
	default:
		g.Subject = "user:" + w.userName(w.rng.IntN(w.size.Users))
	}
	if w.rng.IntN(5) < 3 {
		g.Item = toolName(w.rng.IntN(tools))
	}
	if w.rng.IntN(3) == 0 {
		w.condition(&g)
	}
	return g
}

// condition makes a grant conditional: on arguments most often, or on time or the caller's network. A few texts stand on
// many grants, as people write them.
func (w *maker) condition(g *compile.Grant) {
	limit := 25 * (1 + w.rng.IntN(20))
	region := regions()[w.rng.IntN(len(regions()))]
	switch w.rng.IntN(8) {
	case 0:
		g.Condition = fmt.Sprintf("context.args.amount < %d", limit)
	case 1, 2:
		g.Condition = fmt.Sprintf("context.args.amount <= %d && context.args.region == %q", limit, region)
	case 3:
		g.Condition = fmt.Sprintf("!context.args.dry_run && [%q, %q].contains(context.args.region)", region, "us")
	case 4:
		g.Condition = fmt.Sprintf("context.args.dry_run || context.args.amount < %d", limit)
	case 5:
		g.ExpiresAt = Now.Add(time.Duration(w.rng.IntN(200)-20) * time.Hour)
	case 6:
		g.Limits.Networks = networks()[w.rng.IntN(len(networks()))]
		if w.rng.IntN(2) == 0 {
			g.Condition = fmt.Sprintf("context.args.amount < %d", limit)
		}
	default:
		from := 60 * (6 + w.rng.IntN(5))
		g.Limits.From, g.Limits.To, g.Limits.Weekdays = uint16(from), uint16(from+60*8), 1<<5-1
		g.Limits.Zone = []string{"Europe/Berlin", "America/New_York", "Asia/Tokyo"}[w.rng.IntN(3)]
	}
}

func networks() []string {
	return []string{"10.0.0.0/8", "10.20.0.0/16,2001:db8:20::/48", "192.168.7.0/24", "2001:db8::/32"}
}

func regions() []string { return []string{"eu", "us", "ap", "sa"} }

// surfaces are the published servers of every tenant, encoded as the registry keeps them.
func surfaces() ([][]byte, error) {
	out := make([][]byte, servers)
	for s := range out {
		srv := &snapshotv1.CatalogueServer{Url: "https://" + serverName(s) + ".example/mcp"}
		for t := range tools {
			srv.Tools = append(srv.Tools, &snapshotv1.CatalogueTool{Name: toolName(t), Raw: []byte(tool(t))})
		}
		var err error
		if out[s], err = (proto.MarshalOptions{Deterministic: true}).Marshal(srv); err != nil {
			return nil, fmt.Errorf("make the world: %w", err)
		}
	}
	return out, nil
}

func tool(t int) string {
	return strings.NewReplacer("NAME", toolName(t), "READ", fmt.Sprint(t%2 == 0)).Replace(
		`{"name":"NAME","title":"NAME of the books","description":"Reads or writes one entry of the books of a region.",` +
			`"inputSchema":{"type":"object","properties":{` +
			`"amount":{"type":"integer","description":"In whole units of the currency."},` +
			`"region":{"type":"string"},"dry_run":{"type":"boolean"},"note":{"type":"string","maxLength":200}},` +
			`"required":["amount","region","dry_run"],"additionalProperties":false},` +
			`"annotations":{"readOnlyHint":READ,"destructiveHint":false}}`)
}

func effects() map[string]string {
	out := make(map[string]string, tools)
	for t := range tools {
		out[toolName(t)] = []string{"read", "write"}[t%2]
	}
	return out
}
