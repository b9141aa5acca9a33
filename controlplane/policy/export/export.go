// Package export writes a whole snapshot.Policy, grants and written policies alike, as Cedar: one text that auditors can
// diff and any Cedar engine can run, and the entities that it speaks of.
//
// Decisions of a Cedar engine on it are ours but for one thing: plain Cedar skips a forbid in error, which lets a caller
// switch it off by leaving an argument away. MCPVault denies then.
package export

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/snapshot"
)

// Cedar writes the policies, sorted by their ids, and the entities as Cedar's JSON.
func Cedar(p *snapshot.Policy) (policies string, entities []byte, err error) {
	e := newExporter(p)
	var b bytes.Buffer
	grants := slices.SortedFunc(slices.Values(p.Grants), func(a, b snapshot.Grant) int { return cmp.Compare(a.ID, b.ID) })
	for _, g := range grants {
		out, err := e.grant(&g)
		if err != nil {
			return "", nil, fmt.Errorf("export %s: %w", g.ID, err)
		}
		write(&b, out)
	}
	for _, who := range slices.SortedFunc(slices.Values(p.Principals), func(a, b snapshot.Principal) int { return cmp.Compare(a.Name, b.Name) }) {
		if who.Disabled {
			// Whoever is disabled is refused everything; Cedar has no other word for it.
			off := xast.Forbid().PrincipalEq(e.principals[who.Name])
			off.Annotate("id", types.String("disabled:"+who.Name))
			write(&b, off)
		}
	}
	list, err := json.MarshalIndent(e.entities(), "", "  ")
	if err != nil {
		return "", nil, fmt.Errorf("export entities: %w", err)
	}
	return b.String(), append(list, '\n'), nil
}

func write(b *bytes.Buffer, p *xast.Policy) {
	if b.Len() > 0 {
		b.WriteByte('\n')
	}
	b.Write(bytes.TrimSpace(cedar.NewPolicyFromAST((*ast.Policy)(p)).MarshalCedar()))
	b.WriteByte('\n')
}

type exporter struct {
	p *snapshot.Policy
	// principals by name; everyone is what all of them belong to.
	principals map[string]types.EntityUID
	everyone   []snapshot.Ref
	own        map[string][]snapshot.Ref // what a principal's own node belongs to
}

func newExporter(p *snapshot.Policy) *exporter {
	e := &exporter{p: p, principals: map[string]types.EntityUID{}, own: map[string][]snapshot.Ref{}}
	for _, u := range p.Principals {
		e.principals[u.Name] = types.NewEntityUID(typeOf(u.Kind), types.String(u.Name))
	}
	for _, n := range p.Nodes {
		if n.Ref == snapshot.Everyone {
			e.everyone = n.Parents
		}
		if name, ok := strings.CutPrefix(string(n.Ref), "user:"); ok {
			e.own[name] = n.Parents
		}
	}
	return e
}

func typeOf(k snapshot.PrincipalKind) types.EntityType {
	switch k {
	case snapshot.KindServiceAccount:
		return "ServiceAccount"
	case snapshot.KindWorkload:
		return "Workload"
	case snapshot.KindPerson:
	}
	return "User"
}

// entity is the entity of a node.
func (e *exporter) entity(ref snapshot.Ref) types.EntityUID {
	kind, name, _ := strings.Cut(string(ref), ":")
	switch kind {
	case "user":
		if uid, ok := e.principals[name]; ok {
			return uid
		}
		return types.NewEntityUID("User", types.String(name))
	case "team":
		return types.NewEntityUID("Team", types.String(name))
	case "group":
		return types.NewEntityUID("Group", types.String(name))
	case "unit":
		return types.NewEntityUID("Unit", types.String(name))
	}
	return types.NewEntityUID("Role", types.String(name))
}

// grant turns one rule into a policy.
func (e *exporter) grant(g *snapshot.Grant) (*xast.Policy, error) {
	out := xast.Permit()
	if g.Deny {
		out = xast.Forbid()
	}
	out.Annotate("id", types.String(g.ID))
	if g.Subject != snapshot.Everyone {
		out.PrincipalIn(e.entity(g.Subject))
	}
	var parts []xast.Node
	kind, name := snapshot.KindOf(g.Tool)
	switch {
	case g.Server == "*" && g.Tool != "":
		parts = append(parts, xast.Resource().Access("kind").Equal(xast.String(kind.String())), xast.Resource().Access("name").Equal(xast.String(name)))
	case g.Tool != "":
		out.ResourceEq(ItemUID(g.Server, g.Tool))
	case g.Server != "*":
		out.ResourceIn(types.NewEntityUID("Server", types.String(g.Server)))
	}
	if g.When != nil {
		when, err := e.cond(g.When)
		if err != nil {
			return nil, err
		}
		parts = append(parts, when)
	}
	if len(parts) > 0 {
		all := parts[0]
		for _, n := range parts[1:] {
			all = all.And(n)
		}
		out.When(all)
	}
	return out, nil
}

// ItemUID is the entity of an item.
func ItemUID(server, item string) types.EntityUID {
	kind, name := snapshot.KindOf(item)
	id := types.String(server + "/" + name)
	switch kind {
	case snapshot.ItemTool:
		return types.NewEntityUID("Tool", id)
	case snapshot.ItemPrompt:
		return types.NewEntityUID("Prompt", id)
	case snapshot.ItemResource:
		return types.NewEntityUID("Resource", id)
	case snapshot.ItemRest:
	}
	return types.NewEntityUID("Other", types.String(server))
}
