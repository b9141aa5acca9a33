package authn

import (
	"slices"
	"strings"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// ScopeRule asks for a scope where something is done.
type ScopeRule struct {
	Scope string
	// Wider are scopes that contain it.
	Wider []string
	// Server is "" for every server.
	Server string
	// Effect is unspecified for everything that is done on the server. A rule for write is one for destructive calls too.
	Effect snapshotv1.Effect
}

// Operation is what scopes may be asked for.
type Operation struct {
	// Server is "" on the aggregate, as long as no name has chosen one.
	Server string
	// Call is set for what has an effect class: a tool, a prompt, a resource.
	Call   bool
	Effect snapshotv1.Effect
}

func (r *ScopeRule) asks(op Operation) bool {
	if r.Server != "" && r.Server != op.Server {
		return false
	}
	switch r.Effect {
	case snapshotv1.Effect_EFFECT_UNSPECIFIED:
		return true
	case snapshotv1.Effect_EFFECT_READ:
		return op.Call && op.Effect == snapshotv1.Effect_EFFECT_READ
	case snapshotv1.Effect_EFFECT_WRITE:
		return op.Call && op.Effect != snapshotv1.Effect_EFFECT_READ
	case snapshotv1.Effect_EFFECT_DESTRUCTIVE:
	}
	return op.Call && op.Effect != snapshotv1.Effect_EFFECT_READ && op.Effect != snapshotv1.Effect_EFFECT_WRITE
}

// Scopes says whether those that a token has are enough for an operation. When they are not, need is all that the
// operation asks for at once, and what the token has already of what this issuer is asked for: a token of just these serves,
// and takes nothing away that the one before was good for.
func (i *Issuer) Scopes(op Operation, scope string) (need []string, enough bool) {
	enough = true
	have := strings.Fields(scope)
	for r := range i.rules(op) {
		got := ""
		for _, s := range append([]string{r.Scope}, r.Wider...) {
			if slices.Contains(have, s) {
				got = s
				break
			}
		}
		if got == "" {
			got, enough = r.Scope, false
		}
		need = append(need, got)
	}
	if !enough {
		need = append(need, i.known(have)...)
	}
	slices.Sort(need)
	return slices.Compact(need), enough
}

// known are those of a token's scopes that any rule is about.
func (i *Issuer) known(have []string) (list []string) {
	for k := range i.ScopeRules {
		for _, s := range append([]string{i.ScopeRules[k].Scope}, i.ScopeRules[k].Wider...) {
			if slices.Contains(have, s) {
				list = append(list, s)
			}
		}
	}
	return list
}

func (i *Issuer) rules(op Operation) func(func(*ScopeRule) bool) {
	return func(yield func(*ScopeRule) bool) {
		for k := range i.ScopeRules {
			if r := &i.ScopeRules[k]; r.asks(op) && !yield(r) {
				return
			}
		}
	}
}

// First are the scopes to log in with: what it takes to look around on a server and to read, of any of the outside
// issuers. Nobody knows yet at which of them the caller has an account.
func (t *TenantKeys) First(server string) []string {
	read := Operation{Server: server, Call: true, Effect: snapshotv1.Effect_EFFECT_READ}
	return t.scopes(func(r *ScopeRule) bool { return r.asks(read) })
}

// Supported are all scopes that anything on a server may ask for; "" is for the aggregate, which reaches all servers.
func (t *TenantKeys) Supported(server string) []string {
	return t.scopes(func(r *ScopeRule) bool { return server == "" || r.Server == "" || r.Server == server })
}

// offline is a client's wish for refresh tokens and nothing that a resource can ask for.
const offline = "offline_access"

func (t *TenantKeys) scopes(which func(*ScopeRule) bool) []string {
	var out []string
	for i := range t.Issuers {
		for k := range t.Issuers[i].ScopeRules {
			if r := &t.Issuers[i].ScopeRules[k]; r.Scope != offline && which(r) {
				out = append(out, r.Scope)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
