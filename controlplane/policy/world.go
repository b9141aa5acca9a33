package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/mcpvault/mcpvault/controlplane/policy/schema"
	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/snapshot"
)

// World is who and what there is, so that a policy can be refused that names somebody else. What is nil is not known, and
// no name is refused for it. A World is not for concurrent use: it remembers what it has looked up.
type World struct {
	// Nodes are units, teams, groups and roles, and every principal's own node with its kind.
	Nodes     map[snapshot.Ref]bool
	Kinds     map[string]snapshot.PrincipalKind
	Servers   map[string]Surface
	Endpoints map[string]bool
	// Lenient takes what was accepted before, or was never held against the rules for authors: it refuses no name (what is
	// not there has no members, and reaches nothing), and no word that an attribute never has.
	Lenient bool

	types *schema.Checker
}

func (w *World) checker() *schema.Checker {
	if w.types == nil {
		w.types = schema.NewChecker()
	}
	return w.types
}

// Surface is what a server offers.
type Surface struct {
	Tools map[string]Schema
	// Prompts and Resources are names and URI patterns; nil when not known.
	Prompts, Resources []string
}

// Refusal says what is wrong with a text, where, and what to do. It is a problem with code Invalid to those who ask.
type Refusal struct {
	// Line and Column are 1-based; 0 when the place is not known.
	Line, Column int
	What, Fix    string
}

func (r *Refusal) Error() string { return r.problem().Error() }

// As lets errors.As find the problem.
func (r *Refusal) As(target any) bool {
	p, ok := target.(**problem.Problem)
	if ok {
		*p = r.problem()
	}
	return ok
}

func (r *Refusal) problem() *problem.Problem {
	return problem.New(problem.Invalid, syntax.Place{Line: r.Line, Column: r.Column}.String()+r.What, r.Fix)
}

func refuse(at syntax.Place, fix, format string, args ...any) error {
	return &Refusal{Line: at.Line, Column: at.Column, What: fmt.Sprintf(format, args...), Fix: fix}
}

// The entity types of the schema, and what they are in a snapshot.
var (
	principalTypes = map[types.EntityType]snapshot.PrincipalKind{
		"User": snapshot.KindPerson, "ServiceAccount": snapshot.KindServiceAccount, "Workload": snapshot.KindWorkload,
	}
	nodeTypes = map[types.EntityType]string{"Team": "team:", "Group": "group:", "Unit": "unit:", "Role": "role:"}
	itemTypes = map[types.EntityType]snapshot.ItemKind{
		"Tool": snapshot.ItemTool, "Prompt": snapshot.ItemPrompt, "Resource": snapshot.ItemResource, "Other": snapshot.ItemRest,
	}
	// actions are what is done with each kind of item: an item's kind and the action on it are one fact.
	actions = map[types.String]snapshot.ItemKind{
		"call": snapshot.ItemTool, "get": snapshot.ItemPrompt, "read": snapshot.ItemResource, "other": snapshot.ItemRest,
	}
)

// node is the node that a principal or a group of them stands for.
func (w *World) node(uid types.EntityUID, at syntax.Place) (snapshot.Ref, error) {
	if prefix, ok := nodeTypes[uid.Type]; ok {
		ref := snapshot.Ref(prefix + string(uid.ID))
		return ref, w.known(ref, string(uid.Type), prefix, string(uid.ID), at)
	}
	kind, ok := principalTypes[uid.Type]
	if !ok {
		return "", refuse(at, "name a User, ServiceAccount, Workload, Team, Group, Unit or Role", "%s is no principal and nothing that a principal belongs to", uid.Type)
	}
	name := string(uid.ID)
	if err := w.known(snapshot.Ref("user:"+name), string(uid.Type), "user:", name, at); err != nil {
		return "", err
	}
	if is, ok := w.Kinds[name]; ok && is != kind && !w.Lenient {
		return "", refuse(at, "write "+typeOf(is)+"::"+quote(name), "%s is no %s", name, uid.Type)
	}
	return snapshot.Ref("user:" + name), nil
}

func typeOf(kind snapshot.PrincipalKind) string {
	for t, k := range principalTypes {
		if k == kind {
			return string(t)
		}
	}
	return "User"
}

func (w *World) known(ref snapshot.Ref, kind, prefix, name string, at syntax.Place) error {
	if w.Nodes == nil || w.Lenient || w.Nodes[ref] {
		return nil
	}
	var names []string
	for r := range w.Nodes {
		if n, ok := strings.CutPrefix(string(r), prefix); ok {
			names = append(names, n)
		}
	}
	return missing(at, kind, name, names)
}

func (w *World) server(name string, at syntax.Place) error {
	if _, ok := w.Servers[name]; ok || w.Servers == nil || w.Lenient {
		return nil
	}
	return missing(at, "Server", name, keys(w.Servers))
}

func (w *World) endpoint(name string, at syntax.Place) error {
	if w.Endpoints == nil || w.Lenient || w.Endpoints[name] {
		return nil
	}
	return missing(at, "Endpoint", name, keys(w.Endpoints))
}

// item splits the id of a tool, a prompt or a resource into its server and its own name, and checks that it is there.
func (w *World) item(uid types.EntityUID, at syntax.Place) (server, item string, err error) {
	kind := itemTypes[uid.Type]
	server, name, ok := strings.Cut(string(uid.ID), "/")
	if kind == snapshot.ItemRest {
		return string(uid.ID), snapshot.ItemOther, w.server(string(uid.ID), at)
	}
	if !ok || server == "" || name == "" {
		return "", "", refuse(at, fmt.Sprintf(`write %s::"SERVER/NAME"`, uid.Type), "%s names no %s of a server", quote(string(uid.ID)), uid.Type)
	}
	if err := w.server(server, at); err != nil {
		return "", "", err
	}
	s := w.Servers[server]
	switch kind {
	case snapshot.ItemPrompt:
		item = snapshot.PromptItem(name)
		if s.Prompts != nil && !w.Lenient && !slices.Contains(s.Prompts, name) {
			err = missing(at, "Prompt", name, s.Prompts)
		}
	case snapshot.ItemResource:
		item = snapshot.ResourceItem(name)
	default:
		item = name
		if _, ok := s.Tools[name]; !ok && w.Servers != nil && !w.Lenient {
			err = missing(at, "Tool", name, keys(s.Tools))
		}
	}
	return server, item, err
}

func missing(at syntax.Place, kind, name string, names []string) error {
	fix := "create it first, or name one that there is"
	if near := Nearest(name, names); near != "" {
		fix = "did you mean " + quote(near) + "?"
	}
	return refuse(at, fix, "%s %s does not exist", kind, quote(name))
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// quote writes a string of Cedar.
func quote(s string) string { return string(types.String(s).MarshalCedar()) }
