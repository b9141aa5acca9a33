package compile

import (
	"cmp"
	"slices"
	"sort"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/snapshot"
)

// graph is who there is. Names become nodes once, so that a tenant of many users costs no string for each membership.
type graph struct {
	principals                  []snapshot.Principal // sorted by name
	nodes                       []snapshot.Node
	units, teams, groups, roles map[string]snapshot.Ref
}

// newGraph makes the graph of the rows. What a row names but is not there gives nobody anything.
func newGraph(in Input) *graph {
	g := &graph{units: named("unit:", in.Units), teams: named("team:", in.Teams), groups: named("group:", in.Groups), roles: named("role:", in.Roles)}
	g.nodes = make([]snapshot.Node, 0, len(in.Units)+len(in.Teams)+len(in.Groups)+len(in.Roles))
	for _, kind := range []struct {
		list []Node
		own  map[string]snapshot.Ref
	}{{in.Units, g.units}, {in.Teams, g.teams}, {in.Groups, g.groups}, {in.Roles, g.roles}} {
		for _, n := range inOrder(kind.list, func(n *Node) string { return n.Name }) {
			parents := appendRef(nil, g.units, n.Unit)
			g.nodes = append(g.nodes, snapshot.Node{Ref: kind.own[n.Name], Parents: appendRefs(parents, g.roles, n.Roles)})
		}
	}
	g.addUsers(in.Users)
	return g
}

func (g *graph) addUsers(list []User) {
	users := inOrder(list, func(u *User) string { return u.Name })
	n := 0
	for i := range users {
		n += 1 + len(users[i].Teams) + len(users[i].Groups) + len(users[i].Roles)
	}
	// One block for the memberships of all: each user's part is cut to its length, so that none can grow into the next.
	block := make([]snapshot.Ref, 0, n)
	g.principals = make([]snapshot.Principal, len(users))
	for i := range users {
		u := &users[i]
		from := len(block)
		block = appendRef(block, g.units, u.Unit)
		block = appendRefs(block, g.teams, u.Teams)
		block = appendRefs(block, g.groups, u.Groups)
		block = appendRefs(block, g.roles, u.Roles)
		g.principals[i] = snapshot.Principal{
			Name: u.Name, Kind: kinds[u.Kind], Disabled: u.Disabled, Clearance: u.Clearance, Region: u.Region,
			Nodes: block[from:len(block):len(block)],
		}
	}
}

var kinds = map[controlplane.UserKind]snapshot.PrincipalKind{
	controlplane.Person: snapshot.KindPerson, controlplane.ServiceAccount: snapshot.KindServiceAccount, controlplane.Workload: snapshot.KindWorkload,
}

// has reports whether a grant's subject exists.
func (g *graph) has(subject string) bool {
	kind, name, _ := strings.Cut(subject, ":")
	var ok bool
	switch kind {
	case "user":
		_, ok = slices.BinarySearchFunc(g.principals, name, func(p snapshot.Principal, n string) int { return cmp.Compare(p.Name, n) })
	case "unit":
		_, ok = g.units[name]
	case "team":
		_, ok = g.teams[name]
	case "group":
		_, ok = g.groups[name]
	case "role":
		_, ok = g.roles[name]
	default:
		ok = subject == string(snapshot.Everyone)
	}
	return ok
}

func named(kind string, list []Node) map[string]snapshot.Ref {
	out := make(map[string]snapshot.Ref, len(list))
	for i := range list {
		out[list[i].Name] = snapshot.Ref(kind + list[i].Name)
	}
	return out
}

// appendRef adds the node of that name, if there is one.
func appendRef(to []snapshot.Ref, known map[string]snapshot.Ref, name string) []snapshot.Ref {
	if r, ok := known[name]; ok && name != "" {
		return append(to, r)
	}
	return to
}

// appendRefs adds the nodes of those names, sorted, each once. They are sorted where they stand: the names are the caller's.
func appendRefs(to []snapshot.Ref, known map[string]snapshot.Ref, names []string) []snapshot.Ref {
	from := len(to)
	for _, n := range names {
		to = appendRef(to, known, n)
	}
	added := to[from:]
	slices.Sort(added)
	return to[:from+len(slices.Compact(added))]
}

// inOrder is the list sorted by a key: the list itself when it is sorted, as rows mostly come, and else a copy.
func inOrder[T any](list []T, key func(*T) string) []T {
	sorted := true
	for i := 1; i < len(list) && sorted; i++ {
		sorted = key(&list[i-1]) <= key(&list[i])
	}
	if sorted {
		return list
	}
	out := slices.Clone(list)
	sort.Slice(out, func(i, j int) bool { return key(&out[i]) < key(&out[j]) })
	return out
}
