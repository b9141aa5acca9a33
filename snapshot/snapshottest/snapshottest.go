// Package snapshottest helps to test whoever makes or uses snapshots: a slow, obvious twin of the decision, random
// policies and requests for it, a large policy for benchmarks, and an authority that seals with keys known to all.
package snapshottest

import (
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
)

// Twin decides straight from the rules, grant by grant. It is what the index must agree with.
type Twin struct{ Policy *snapshot.Policy }

// Decide decides one call; what does not exist is not granted. Program is never set.
func (t Twin) Decide(principal, server, item string, r *authz.Request) authz.Decision {
	return t.DecideAny(principal, server, []string{item}, r)
}

// DecideAny decides a request that several items stand for: a deny of any denies, an allow of any allows.
func (t Twin) DecideAny(principal, server string, items []string, r *authz.Request) authz.Decision {
	user, ok := t.principal(principal)
	if ok && user.Disabled {
		return authz.Decision{Reason: authz.Disabled}
	}
	var seen struct{ allow, plainAllow, plainDeny, denyTrue, denyError, allowTrue, allowError bool }
	for _, item := range items {
		if !ok || !t.exists(server, item) {
			continue
		}
		e := t.env(user, server, item, r)
		for _, g := range t.applicable(user, server, item) {
			switch fixed := e.fixed(g.When); {
			case fixed == certainNo:
				continue
			case g.Deny && (fixed == certainYes || fixed == certainFail):
				seen.plainDeny = true
				continue
			case !g.Deny && fixed == certainYes:
				seen.allow, seen.plainAllow = true, true
				continue
			}
			result := e.eval(g.When)
			if g.Deny {
				seen.denyTrue = seen.denyTrue || result == yes
				seen.denyError = seen.denyError || result == fail
				continue
			}
			seen.allow = true
			seen.allowTrue = seen.allowTrue || result == yes
			seen.allowError = seen.allowError || result == fail
		}
	}
	switch {
	case seen.plainDeny:
		return authz.Decision{Reason: authz.ExplicitDeny}
	case !seen.allow:
		return authz.Decision{Reason: authz.NoGrant}
	case seen.denyTrue:
		return authz.Decision{Visible: true, Reason: authz.Condition}
	case seen.denyError:
		return authz.Decision{Visible: true, Reason: authz.ArgumentType}
	case seen.plainAllow || seen.allowTrue:
		return authz.Decision{Allow: true, Visible: true, Reason: authz.Allowed}
	case seen.allowError:
		return authz.Decision{Visible: true, Reason: authz.ArgumentType}
	}
	return authz.Decision{Visible: true, Reason: authz.Condition}
}

// Visible says whether an item belongs in a list.
func (t Twin) Visible(principal, server, item string, r *authz.Request) bool {
	user, ok := t.principal(principal)
	if !ok || user.Disabled || !t.exists(server, item) {
		return false
	}
	e := t.env(user, server, item, r)
	shown := false
	for _, g := range t.applicable(user, server, item) {
		can := outcomes{yes: true}
		if g.When != nil {
			can = e.possible(g.When)
		}
		if g.Deny && !can[no] {
			return false
		}
		if !g.Deny && can[yes] {
			shown = true
		}
	}
	return shown
}

func (t Twin) principal(name string) (snapshot.Principal, bool) {
	for _, p := range t.Policy.Principals {
		if p.Name == name {
			return p, true
		}
	}
	return snapshot.Principal{}, false
}

func (t Twin) exists(server, item string) bool {
	for _, s := range t.Policy.Servers {
		if s.Name != server {
			continue
		}
		for _, it := range s.Items {
			if it == item {
				return true
			}
		}
		return item == snapshot.ItemOther
	}
	return false
}

// applicable lists the grants whose subject the principal belongs to and whose scope the item is in.
func (t Twin) applicable(user snapshot.Principal, server, item string) []snapshot.Grant {
	var out []snapshot.Grant
	for _, g := range t.Policy.Grants {
		if g.Server != "*" && g.Server != server {
			continue
		}
		if g.Tool != "" && g.Tool != item {
			continue
		}
		if t.belongs(user, g.Subject) {
			out = append(out, g)
		}
	}
	return out
}

func (t Twin) belongs(user snapshot.Principal, subject snapshot.Ref) bool {
	todo := append([]snapshot.Ref{snapshot.Everyone, snapshot.Ref("user:" + user.Name)}, user.Nodes...)
	seen := map[snapshot.Ref]bool{}
	for len(todo) > 0 {
		r := todo[0]
		todo = todo[1:]
		if r == subject {
			return true
		}
		if seen[r] {
			continue
		}
		seen[r] = true
		for _, n := range t.Policy.Nodes {
			if n.Ref == r {
				todo = append(todo, n.Parents...)
			}
		}
	}
	return false
}
