package snapshottest

import (
	"fmt"
	"math/rand/v2"

	"github.com/mcpvault/mcpvault/snapshot"
)

// Large makes a policy as an organisation of that many users has it: departments, teams and roles three deep, a server
// for every hundred users or so with 10 to 50 tools each, three grants for ten users, a third of them with a condition.
// The same number gives the same policy.
func Large(users int) *snapshot.Policy {
	r := rand.New(rand.NewPCG(1, uint64(users))) //nolint:gosec // the same number gives the same policy
	p := &snapshot.Policy{Tenant: "0198c0de-0000-7000-8000-000000000002"}
	departments, teams, roles, servers := max(1, users/1000), max(2, users/25), max(3, users/200), max(4, users/100)
	for i := range departments {
		p.Nodes = append(p.Nodes, snapshot.Node{Ref: ref("unit", i)})
	}
	for i := range teams {
		p.Nodes = append(p.Nodes, snapshot.Node{Ref: ref("team", i), Parents: []snapshot.Ref{ref("unit", i%departments)}})
	}
	for i := range roles {
		n := snapshot.Node{Ref: ref("role", i)}
		if i > 2 {
			n.Parents = []snapshot.Ref{ref("role", r.IntN(i/2+1))}
		}
		p.Nodes = append(p.Nodes, n)
	}
	for i := range users {
		u := snapshot.Principal{Name: fmt.Sprintf("user%06d@example.com", i), Nodes: []snapshot.Ref{ref("team", r.IntN(teams))}}
		for range r.IntN(3) {
			u.Nodes = append(u.Nodes, ref("role", r.IntN(roles)))
		}
		p.Principals = append(p.Principals, u)
	}
	for i := range servers {
		s := snapshot.Server{Name: fmt.Sprintf("server%04d", i)}
		for j := range 10 + r.IntN(41) {
			s.Items = append(s.Items, fmt.Sprintf("tool_%02d", j))
		}
		p.Servers = append(p.Servers, s)
	}
	for i := range users * 29 / 100 {
		p.Grants = append(p.Grants, largeGrant(r, i, p, departments, teams, roles))
	}
	return p
}

func ref(kind string, i int) snapshot.Ref { return snapshot.Ref(fmt.Sprintf("%s:%05d", kind, i)) }

func largeGrant(r *rand.Rand, i int, p *snapshot.Policy, departments, teams, roles int) snapshot.Grant {
	s := p.Servers[r.IntN(len(p.Servers))]
	g := snapshot.Grant{ID: fmt.Sprintf("grant%07d", i), Server: s.Name, Deny: r.IntN(12) == 0}
	switch k := r.IntN(20); {
	case k < 1:
		g.Subject = ref("unit", r.IntN(departments))
	case k < 10:
		g.Subject = ref("team", r.IntN(teams))
	case k < 16:
		g.Subject = ref("role", r.IntN(roles))
	default:
		g.Subject = snapshot.Ref("user:" + p.Principals[r.IntN(len(p.Principals))].Name)
	}
	if r.IntN(2) == 0 {
		g.Tool = s.Items[r.IntN(len(s.Items))]
	}
	if r.IntN(3) == 0 {
		g.When = &snapshot.Cond{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{
			{Op: snapshot.OpLt, Arg: "amount", Value: snapshot.Value{Type: snapshot.TypeNumber, Int: int64(100 * (1 + r.IntN(20)))}},
			{Op: snapshot.OpEq, Arg: "region", Value: snapshot.Value{Type: snapshot.TypeString, Str: []string{"eu", "us", "ap"}[r.IntN(3)]}},
			{Op: snapshot.OpBefore, Value: snapshot.Value{Type: snapshot.TypeNumber, Int: Now + int64(r.IntN(10))*3_600_000}},
		}}
	}
	return g
}
