package pep

import (
	"net/http"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// The aggregate shows many servers as one. Prompts are named like tools, by their server's name in front. Addresses stay as
// they are, since results speak of them: a resource is that of the first server, in the order of names, on which it is
// approved by itself and the caller may know of it; else of the first one on which an approved template, or a pattern that
// the policy speaks of, has it among its addresses. Lists show it once, as that server's.

// choosePrompt finds the prompt behind a name, and its server.
func (x *exchange) choosePrompt(name string) (string, bool) {
	if x.server != nil {
		return name, true
	}
	at, _ := x.aggregatePrompts().Find(name)
	s, exists := x.tenant.Server(at.Server)
	if !exists {
		return "", false
	}
	x.choose(s)
	return at.Name, true
}

// aggregateNames are the tenant's names of tools on the aggregate.
func (x *exchange) aggregateNames() *veneer.Names {
	return x.namesOf(&x.p.names, func(s *pdp.Server, add func(name string)) {
		for i := range s.Tools {
			add(s.Tools[i].Name)
		}
	})
}

// aggregatePrompts are the tenant's names of prompts on the aggregate.
func (x *exchange) aggregatePrompts() *veneer.Names {
	return x.namesOf(&x.p.prompts, func(s *pdp.Server, add func(name string)) {
		for i := range s.Prompts {
			add(s.Prompts[i].Name)
		}
	})
}

// namesOf are the names of one kind of things on all servers, kept as long as the head that published them.
func (x *exchange) namesOf(kept *veneer.Cache[snapshot.Digest], each func(s *pdp.Server, add func(name string))) *veneer.Names {
	t := x.tenant
	return kept.Get(string(t.ID), t.HeadDigest, func() []veneer.Tool {
		var all []veneer.Tool
		for _, s := range t.Servers {
			each(s, func(name string) { all = append(all, veneer.Tool{Server: s.Name, Name: name}) })
		}
		return all
	})
}

// chooseResource makes the server that an address is read from that of the request.
func (x *exchange) chooseResource(uri string) bool {
	if x.server != nil {
		return true
	}
	s := x.resourceServer(uri)
	if s != nil {
		x.choose(s)
	}
	return s != nil
}

// resourceServer finds the server that an address is read from, nil for none.
func (x *exchange) resourceServer(uri string) *pdp.Server {
	if x.server != nil {
		return x.server
	}
	for _, has := range []func(*pdp.Server, string) bool{(*pdp.Server).HasResource, (*pdp.Server).CoversResource} {
		for _, s := range x.tenant.Servers {
			if !has(s, uri) || x.killedServer(s) {
				continue
			}
			if v := x.viewOf(s); authz.VisibleResource(&v, uri, &x.ask) {
				return s
			}
		}
	}
	return nil
}

// chooseReference finds what a completion is about, and its server. name is the prompt's; it becomes the upstream's own.
func (x *exchange) chooseReference(ref []byte, name *string) *answer {
	uri := textOf(ref, "uri")
	if *name == "" && uri == "" {
		return x.reject(http.StatusOK, mcp.CodeInvalidParams, "reference_missing", "params.ref must name a prompt or a resource")
	}
	if x.server != nil {
		return nil
	}
	if *name != "" {
		own, exists := x.choosePrompt(*name)
		if !exists {
			return x.unknownEntry("prompt", *name, "unknown_prompt")
		}
		*name = own
		return nil
	}
	for _, s := range x.tenant.Servers {
		v := x.viewOf(s)
		for _, e := range x.shownOn(s, &v, veneer.ResourceTemplates) {
			if e.Name == uri && !x.killedServer(s) {
				x.choose(s)
				return nil
			}
		}
	}
	if !x.chooseResource(uri) {
		return x.unknownEntry("resource", uri, "unknown_resource")
	}
	return nil
}

// listedOnAll are the entries of a surface of all servers that the caller may be shown.
func (x *exchange) listedOnAll(surface string) []veneer.Entry {
	var all []veneer.Entry
	seen := map[string]bool{}
	x.onAll(func(s *pdp.Server, v *index.View) {
		for _, e := range x.shownOn(s, v, surface) {
			if surface == veneer.Prompts {
				all = append(all, veneer.Entry{Raw: e.Raw, Name: x.aggregatePrompts().Shown(veneer.Tool{Server: s.Name, Name: e.Name})})
				continue
			}
			if !seen[e.Name] {
				seen[e.Name] = true
				all = append(all, veneer.Entry{Raw: e.Raw})
			}
		}
	})
	return all
}

// onAll goes through the servers that are fit to be listed, in the order of names.
func (x *exchange) onAll(see func(*pdp.Server, *index.View)) {
	for _, s := range x.tenant.Servers {
		if x.killedServer(s) || !x.state.Fresh(x.tenant, s.Bound(snapshotv1.Effect_EFFECT_READ), x.ask.NowMS) {
			continue
		}
		v := x.viewOf(s)
		see(s, &v)
	}
}
