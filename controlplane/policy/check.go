package policy

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/snapshot"
)

// check refuses names that mean nothing, wherever they stand, and constants that cannot be read.
func (l *lowerer) check(e *syntax.Expr) error {
	if l.nodes++; l.nodes > 4*snapshot.MaxCondNodes {
		return tooLong()
	}
	switch v := e.N.(type) {
	case xast.NodeTypeVariable:
		return l.alone(e, string(v.Name))
	case xast.NodeTypeAccess:
		if root, parts, ok := e.Chain(); ok {
			return l.checkPath(root, parts)
		}
	case xast.NodeTypeHas:
		if root, parts, ok := e.Kids[0].Chain(); ok {
			return l.checkHas(root, append(parts[:len(parts):len(parts)], e))
		}
	case xast.NodeTypeIs:
		if root, ok := l.entity(e.Kids[0]); ok {
			return l.checkType(root, v.EntityType, e.At)
		}
	case xast.NodeTypeIsIn:
		if root, ok := l.entity(e.Kids[0]); ok {
			if err := l.checkType(root, v.EntityType, e.At); err != nil {
				return err
			}
			return l.checkEntities(root, e.Kids[1])
		}
	case xast.NodeTypeIn, xast.NodeTypeEquals, xast.NodeTypeNotEquals:
		if root, ok := l.entity(e.Kids[0]); ok {
			return l.checkEntities(root, e.Kids[1])
		}
	case xast.NodeValue:
		if uid, ok := v.Value.(types.EntityUID); ok {
			return refuse(e.At, "write the variable first: principal == "+uid.String(), "%s stands where no entity can", uid)
		}
	case xast.NodeTypeExtensionCall:
		if err := checkConstant(e, v); err != nil {
			return err
		}
	}
	for _, k := range e.Kids {
		if err := l.check(k); err != nil {
			return err
		}
	}
	return nil
}

// entity reports whether an expression is one of the variables that are entities.
func (l *lowerer) entity(e *syntax.Expr) (string, bool) {
	v, ok := e.N.(xast.NodeTypeVariable)
	return string(v.Name), ok && v.Name != "context"
}

func (l *lowerer) alone(e *syntax.Expr, name string) error {
	if name == "context" {
		return refuse(e.At, "name one member: "+list(contextNames), "context is the whole record")
	}
	return refuse(e.At, "compare it with ==, in or is, or name one of its attributes", "%s stands alone", name)
}

var (
	contextNames   = []string{"args", "ip", "region", "actor", "time", "clock"}
	principalNames = []string{"name", "kind", "clearance", "region"}
	clockNames     = []string{"minute", "hour", "weekday", "day", "month", "year"}
	resourceTypes  = map[string]snapshot.Type{
		"name": snapshot.TypeString, "server": snapshot.TypeString, "kind": snapshot.TypeString, "effect": snapshot.TypeString,
		"readOnlyHint": snapshot.TypeBool, "destructiveHint": snapshot.TypeBool, "idempotentHint": snapshot.TypeBool,
		"openWorldHint": snapshot.TypeBool, "version": snapshot.TypeNumber, "class": snapshot.TypeNumber,
		"endpoints": snapshot.TypeSet, "owners": snapshot.TypeSet, "regions": snapshot.TypeSet, "access": snapshot.TypeSet,
	}
)

// checkPath checks variable.a.b.
func (l *lowerer) checkPath(root string, parts []*syntax.Expr) error {
	first := parts[0].Attr()
	switch root {
	case "principal":
		return oneOf(root, parts, principalNames)
	case "action":
		return refuse(parts[0].At, `write action == Action::"call"`, "an action has no attributes")
	case "resource":
		if first == "labels" && len(parts) == 2 {
			return nil
		}
		if first == "labels" {
			return refuse(parts[0].At, "name one label: resource.labels.KEY", "resource.labels is the whole record")
		}
		return oneOf(root, parts, append(keys(resourceTypes), "labels"))
	}
	switch {
	case first == "args" && len(parts) == 1:
		return refuse(parts[0].At, "name one argument: context.args.NAME", "context.args is the whole record")
	case first == "args":
		return l.checkArgument(parts[1:])
	case first == "clock":
		return checkClock(parts)
	}
	return oneOf(root, parts, contextNames)
}

func oneOf(root string, parts []*syntax.Expr, known []string) error {
	first := parts[0].Attr()
	switch {
	case !slices.Contains(known, first):
		fix := "it has " + list(slices.Clone(known))
		if near := Nearest(first, known); near != "" {
			fix = "did you mean " + root + "." + near + "?"
		}
		return refuse(parts[0].At, fix, "%s.%s: %s has no attribute %s", root, first, root, first)
	case len(parts) > 1:
		return refuse(parts[1].At, "compare "+root+"."+first+" itself", "%s.%s has no members", root, first)
	}
	return nil
}

func checkClock(parts []*syntax.Expr) error {
	const fix = `write context.clock["Europe/Berlin"].hour`
	if len(parts) != 3 {
		return refuse(parts[0].At, fix, "a clock has a time zone and a hand: %s", strings.Join(clockNames, ", "))
	}
	zone, hand := parts[1].Attr(), parts[2].Attr()
	if _, err := time.LoadLocation(zone); err != nil || zone == "" || zone == "Local" {
		return refuse(parts[1].At, "name a zone of the IANA database, such as Europe/Berlin or UTC", "%s is no time zone", quote(zone))
	}
	if !slices.Contains(clockNames, hand) {
		near := Nearest(hand, clockNames)
		if near == "" {
			near = strings.Join(clockNames, ", ")
		}
		return refuse(parts[2].At, "did you mean "+near+"?", "a clock has no hand %s", hand)
	}
	return nil
}

func (l *lowerer) checkHas(root string, parts []*syntax.Expr) error {
	first := parts[0].Attr()
	switch {
	case root == "context" && first == "args" && len(parts) > 1:
		return l.checkArgument(parts[1:])
	case root == "context" && first == "clock":
		return refuse(parts[0].At, "leave the question away", "every clock is always there")
	case root == "resource" && first == "labels":
		return nil
	case len(parts) > 1:
		return l.checkPath(root, parts)
	case root == "context":
		return oneOf(root, parts, contextNames)
	}
	return l.checkPath(root, parts)
}

// checkArgument checks the name of an argument, and those of its members.
func (l *lowerer) checkArgument(parts []*syntax.Expr) error {
	at := parts[0].At
	if l.noArgs != "" {
		return refuse(at, l.noArgsFix, "context.args.%s: %s", parts[0].Attr(), l.noArgs)
	}
	if l.tool.Problem != "" {
		return refuse(at, "grant the tool without a condition, or not at all", "no condition can be put on %s: %s", l.tool.Tool, l.tool.Problem)
	}
	if l.tool.Open {
		return nil
	}
	members, path, whose := l.tool.Args, "context.args", l.tool.Tool
	for i, p := range parts {
		name := p.Attr()
		a, ok := members[name]
		if !ok {
			fix := "it takes " + list(keys(members))
			if near := Nearest(name, keys(members)); near != "" {
				fix = "did you mean " + near + "?"
			}
			word := "argument"
			if i > 0 {
				word = "member"
			}
			return refuse(p.At, fix, "%s.%s: %s has no %s %s", path, name, whose, word, name)
		}
		path += "." + name
		if i < len(parts)-1 && a.Members == nil {
			return refuse(parts[i+1].At, "compare "+path+" itself", "%s has %s as %s, which has no members that the schema names", l.tool.Tool, name, a.Has)
		}
		members, whose = a.Members, path
	}
	return nil
}

// checkEntities checks the right side of ==, != and in.
func (l *lowerer) checkEntities(root string, right *syntax.Expr) error {
	if set, ok := right.N.(xast.NodeTypeSet); ok {
		if len(set.Elements) == 0 {
			return refuse(right.At, "name at least one", "the list is empty")
		}
		for _, k := range right.Kids {
			if err := l.checkEntities(root, k); err != nil {
				return err
			}
		}
		return nil
	}
	uid, ok := entityOf(right)
	if !ok {
		return refuse(right.Start, "compare it with an entity, such as "+example(root), "%s is compared with something else than an entity", root)
	}
	switch root {
	case "principal":
		_, err := l.world.node(uid, right.At)
		return err
	case "action":
		return checkAction(uid, right.At)
	}
	switch {
	case uid.Type == "Server":
		return l.world.server(string(uid.ID), right.At)
	case uid.Type == "Endpoint":
		return l.world.endpoint(string(uid.ID), right.At)
	case isItem(uid.Type):
		_, _, err := l.world.item(uid, right.At)
		return err
	}
	return refuse(right.At, "name a Server, an Endpoint, a Tool, a Prompt or a Resource", "%s is no resource and nothing that a resource belongs to", uid.Type)
}

func checkAction(uid types.EntityUID, at syntax.Place) error {
	if _, ok := actions[uid.ID]; ok && uid.Type == "Action" {
		return nil
	}
	fix := "there are call (a tool), get (a prompt), read (a resource) and other"
	if near := Nearest(string(uid.ID), []string{"call", "get", "read", "other"}); near != "" {
		fix = `did you mean Action::"` + near + `"?`
	}
	return refuse(at, fix, "%s is no action", uid)
}

func (l *lowerer) checkType(root string, t types.EntityType, at syntax.Place) error {
	var known []string
	switch root {
	case "principal":
		for k := range principalTypes {
			known = append(known, string(k))
		}
	case "resource":
		for k := range itemTypes {
			known = append(known, string(k))
		}
	default:
		return refuse(at, `write action == Action::"call"`, "an action has no types")
	}
	if slices.Contains(known, string(t)) {
		return nil
	}
	slices.Sort(known)
	return refuse(at, "it can be a "+strings.Join(known, ", "), "a %s is never a %s", root, t)
}

func isItem(t types.EntityType) bool { _, ok := itemTypes[t]; return ok }

func example(root string) string {
	switch root {
	case "principal":
		return `principal in Team::"analysts"`
	case "action":
		return `action == Action::"call"`
	}
	return `resource in Server::"payments"`
}

func entityOf(e *syntax.Expr) (types.EntityUID, bool) {
	v, ok := e.N.(xast.NodeValue)
	if !ok {
		return types.EntityUID{}, false
	}
	uid, ok := v.Value.(types.EntityUID)
	return uid, ok
}

// checkConstant reads what stands in ip(), datetime(), decimal() and duration().
func checkConstant(e *syntax.Expr, v xast.NodeTypeExtensionCall) error {
	if len(v.Args) != 1 || !syntax.IsConstructor(v.Name) {
		return nil
	}
	text, ok := stringOf(e.Kids[0])
	if !ok {
		return nil
	}
	var err error
	fix := ""
	switch v.Name {
	case "ip":
		_, err = parseIP(text)
		fix = `write an address or a network, such as ip("10.0.0.0/8")`
	case "datetime":
		_, err = types.ParseDatetime(text)
		fix = `write datetime("2027-01-31") or datetime("2027-01-31T12:00:00Z")`
	case "decimal":
		_, err = types.ParseDecimal(text)
		fix = `write one to four digits behind the point: decimal("12.50")`
	case "duration":
		_, err = types.ParseDuration(text)
		fix = `write something like duration("1d12h")`
	}
	if err != nil {
		return refuse(e.Kids[0].At, fix, "%s cannot be read by %s()", quote(text), v.Name)
	}
	return nil
}

func stringOf(e *syntax.Expr) (string, bool) {
	v, ok := e.N.(xast.NodeValue)
	if !ok {
		return "", false
	}
	s, ok := v.Value.(types.String)
	return string(s), ok
}

// parseIP reads what both Cedar and a native program understand.
func parseIP(text string) (netip.Prefix, error) {
	ip, err := types.ParseIPAddr(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	return ip.Prefix(), nil
}
