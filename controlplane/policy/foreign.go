package policy

import (
	"regexp"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane/policy/schema"
	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/residual"
)

// maxForeign bounds one expression that is kept as Cedar, in bytes of its JSON form; room is left for what is folded in.
const maxForeign = 16 << 10

// foreign keeps an expression as Cedar. It must type against the schema, with the arguments of the tool, and run in a cell
// once the resource is folded in.
func (l *lowerer) foreign(e *syntax.Expr, in known) (*snapshot.Cond, error) {
	if err := l.validate(e, in); err != nil {
		return nil, err
	}
	est, err := residual.Marshal(e.N)
	if err != nil {
		return nil, refuse(e.Start, "write it more simply", "the expression cannot be kept: %v", err)
	}
	if len(est) > maxForeign {
		return nil, refuse(e.Start, "make several policies of it", "the expression takes %d bytes; at most %d can be kept", len(est), maxForeign)
	}
	folded, err := residual.Fold(est, sample)
	if err == nil {
		_, err = residual.Parse(folded)
	}
	if err != nil {
		return nil, refuse(e.Start, "join conditions of their own with && and ||", "%v", err)
	}
	return &snapshot.Cond{Op: snapshot.OpForeign, Value: text(est)}, nil
}

// sample is a fact of the type that an attribute of a resource has.
func sample(attr string) (snapshot.Fact, bool) {
	t, ok := resourceTypes[attr]
	if !ok {
		t = snapshot.TypeString // a label
	}
	return snapshot.Fact{Value: snapshot.Value{Type: t}}, true
}

var unsafeAccess = regexp.MustCompile("optional attribute `([^`]*)`")

// validate types an expression. cedar-go knows no places within it, so that the error has the place where it begins.
func (l *lowerer) validate(e *syntax.Expr, in known) error {
	w := schema.Narrow{Labels: schema.Record{}, Present: map[string]bool{}, All: !l.deny || l.world.Lenient, Actions: l.actions()}
	w.Arguments = record(l.tool.Args, nil, in)
	for k := range in {
		if attr, ok := strings.CutPrefix(k, "resource."); ok {
			w.Present[attr] = true
		}
	}
	args := false
	e.Paths(func(root string, path []string) {
		switch {
		case root == "context" && path[0] == "args":
			args = true
		case root == "context" && path[0] == "clock" && len(path) > 1:
			w.Clocks = append(w.Clocks, path[1])
		case root == "resource" && path[0] == "labels" && len(path) > 1:
			w.Labels[path[1]] = schema.Field{Type: "String", Optional: !w.All && !in["resource.labels."+path[1]]}
		}
	})
	if args && l.tool.Open {
		return nil // there is no type to hold it against
	}
	if args {
		w.Actions = []string{"call"}
	}
	err := l.world.checker().Validate(e.N, w)
	if err == nil {
		return nil
	}
	if m := unsafeAccess.FindStringSubmatch(err.Error()); m != nil {
		attr := m[1]
		if arg, ok := strings.CutPrefix(attr, "args."); ok {
			return refuse(e.Start, "write context.args has "+arg+" && ..., or use a required argument",
				"%s may be called without %s, which is optional in its schema", l.tool.Tool, arg)
		}
		return refuse(e.Start, "write resource has "+attr+" && ...", "resource.%s may be absent, and then this forbid would deny whatever lacks it", attr)
	}
	return refuse(e.Start, "see `mcpvault policy schema` for the types", "the expression does not type: %v", err)
}

// actions are what the condition is about.
func (l *lowerer) actions() []string {
	var out []string
	for _, a := range []string{"call", "get", "read", "other"} {
		for id, kind := range actions {
			if string(id) == a && l.reaches(kind) {
				out = append(out, a)
			}
		}
	}
	return out
}

func (l *lowerer) reaches(kind snapshot.ItemKind) bool {
	return l.kinds == nil || slices.Contains(l.kinds, kind)
}

// record is the type of arguments, or of the members of one. What has no type that Cedar knows is left out.
func record(args map[string]Arg, path []string, in known) schema.Record {
	out := schema.Record{}
	for name, a := range args {
		here := slices.Concat(path, []string{name})
		f := schema.Field{Optional: !a.Required && !in[argKey(here)]}
		switch {
		case a.Members != nil:
			f.Members = record(a.Members, here, in)
		case a.Type != snapshot.TypeInvalid:
			f.Type = cedarType(a.Type)
		case a.Items != snapshot.TypeInvalid:
			f.Type = "Set<" + cedarType(a.Items) + ">"
		default:
			continue
		}
		out[name] = f
	}
	return out
}

func cedarType(t snapshot.Type) string {
	switch t {
	case snapshot.TypeBool:
		return "Bool"
	case snapshot.TypeNumber:
		return "Long"
	default:
		return "String"
	}
}
