// Package schema is the published Cedar schema: its text, and the validation of expressions against it. What the schema
// leaves open, because it depends on the tool or on the policy, is narrowed for each validation.
package schema

import (
	_ "embed" // the schema's text
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
	xschema "github.com/cedar-policy/cedar-go/x/exp/schema"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"
)

// Version is the version of the schema that Text is.
const Version = 1

//go:embed v1.cedarschema
var text string

// Text is the schema in Cedar's own form.
func Text() string { return text }

// Narrow is what one validation knows better than the schema.
type Narrow struct {
	// Arguments, Clocks and Labels are the members of these types.
	Arguments, Labels Record
	Clocks            []string
	// Present are attributes that are certainly there although the schema has them as optional; All makes all of them so.
	Present map[string]bool
	All     bool
	// Actions are what the expression is about: call, get, read, other.
	Actions []string
}

// Record is a record type by the names of its members.
type Record map[string]Field

// Field is one member of a record.
type Field struct {
	// Type is a name of Cedar's: String, Long, Bool, Set<String>; "" for the record Members.
	Type     string
	Members  Record
	Optional bool
}

func (r Record) String() string {
	var b strings.Builder
	b.WriteString("{")
	for _, name := range slices.Sorted(maps.Keys(r)) {
		f := r[name]
		b.Write(types.String(name).MarshalCedar())
		if f.Optional {
			b.WriteString("?")
		}
		b.WriteString(": ")
		if f.Type == "" {
			b.WriteString(f.Members.String())
		} else {
			b.WriteString(f.Type)
		}
		b.WriteString(", ")
	}
	b.WriteString("}")
	return b.String()
}

// Checker validates, and remembers the schemas that it has narrowed. It is not for concurrent use.
type Checker struct {
	made map[string]*validate.Validator
}

// NewChecker makes one.
func NewChecker() *Checker { return &Checker{made: map[string]*validate.Validator{}} }

// Validate types an expression as the condition of a policy. Its error is Cedar's words.
func (c *Checker) Validate(n xast.IsNode, w Narrow) error {
	v, err := c.validator(w)
	if err != nil {
		return err
	}
	p := xast.Permit().When(xast.NewNode(n))
	var uids []types.EntityUID
	for _, a := range w.Actions {
		uids = append(uids, types.NewEntityUID("Action", types.String(a)))
	}
	p.ActionInSet(uids...)
	err = v.Policy("", p)
	var all interface{ Unwrap() []error }
	if errors.As(err, &all) && len(all.Unwrap()) > 0 {
		return all.Unwrap()[0]
	}
	return err
}

func (c *Checker) validator(w Narrow) (*validate.Validator, error) {
	now, err := w.text()
	if err != nil {
		return nil, err
	}
	if v, ok := c.made[now]; ok {
		return v, nil
	}
	var s xschema.Schema
	if err := s.UnmarshalCedar([]byte(now)); err != nil {
		return nil, fmt.Errorf("the schema does not parse: %w", err)
	}
	resolved, err := s.Resolve()
	if err != nil {
		return nil, fmt.Errorf("the schema does not resolve: %w", err)
	}
	// Strict validation would refuse ip(context.args.host), which is what arguments are for.
	v := validate.New(resolved, validate.WithPermissive())
	c.made[now] = v
	return v, nil
}

// text is the schema with what is known better.
func (w Narrow) text() (string, error) {
	out := text
	if w.All {
		out = strings.ReplaceAll(out, "?:", ":")
	}
	for _, name := range []string{"ip", "region", "actor"} {
		// What surrounds a call is an error when it is not known, which denies: nobody has to ask for it first.
		out = strings.ReplaceAll(out, " "+name+"?:", " "+name+":")
	}
	for name := range w.Present {
		out = strings.ReplaceAll(out, " "+name+"?:", " "+name+":")
	}
	clocks := Record{}
	for _, zone := range w.Clocks {
		clocks[zone] = Field{Type: "Clock"}
	}
	for _, t := range []struct {
		name, open string
		now        Record
	}{{"Arguments", "{}", w.Arguments}, {"Labels", "{}", w.Labels}, {"Clocks", `{ "UTC": Clock }`, clocks}} {
		open := "type " + t.name + " = " + t.open + ";"
		if !strings.Contains(out, open) {
			return "", fmt.Errorf("the schema has no open type %s", t.name)
		}
		out = strings.Replace(out, open, "type "+t.name+" = "+t.now.String()+";", 1)
	}
	return out, nil
}
