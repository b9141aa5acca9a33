package schema

import (
	"strings"
	"testing"

	xschema "github.com/cedar-policy/cedar-go/x/exp/schema"

	cedar "github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

func TestTheSchemaResolvesAndHasTheFourActions(t *testing.T) {
	t.Parallel()
	var s xschema.Schema
	if err := s.UnmarshalCedar([]byte(Text())); err != nil {
		t.Fatal(err)
	}
	r, err := s.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Actions) != 4 || len(r.Entities) != 13 {
		t.Fatalf("%d actions, %d entity types", len(r.Actions), len(r.Entities))
	}
}

func TestValidateKnowsTheNarrowedTypes(t *testing.T) {
	t.Parallel()
	arg := func(name string) ast.Node { return ast.Context().Access("args").Access(cedar.String(name)) }
	c := NewChecker()
	w := Narrow{
		Arguments: Record{"amount": {Type: "Long"}, "no te": {Type: "String", Optional: true}, "in": {Members: Record{"x": {Type: "Bool"}}}},
		Clocks:    []string{"Europe/Berlin"}, Labels: Record{"env": {Type: "String"}}, Actions: []string{"call"},
	}
	for _, tc := range []struct {
		n    ast.Node
		want string
	}{
		{arg("amount").LessThan(ast.Long(3)), ""},
		{arg("amount").LessThan(ast.String("3")), "unexpected type"},
		{arg("no te").Equal(ast.String("x")), "optional attribute"},
		{ast.Context().Access("args").Has("no te").And(arg("no te").Equal(ast.String("x"))), ""},
		{arg("in").Access("x"), ""},
		{arg("other"), "not found"},
		{ast.Context().Access("clock").Access("Europe/Berlin").Access("hour").LessThan(ast.Long(3)), ""},
		{ast.Context().Access("clock").Access("UTC").Access("hour").LessThan(ast.Long(3)), "not found"},
		{ast.Resource().Access("labels").Access("env").Equal(ast.String("x")), ""},
		{ast.Resource().Access("class").LessThan(ast.Long(3)), "optional attribute"},
		{ast.Context().Access("ip").IsLoopback(), ""},
	} {
		n := ast.Permit().When(tc.n)
		err := c.Validate((*xast.Policy)(n).Conditions[0].Body, w)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: %v, want %q", tc.n, err, tc.want)
		}
	}
	w.Present = map[string]bool{"class": true}
	if err := c.Validate((*xast.Policy)(ast.Permit().When(ast.Resource().Access("class").LessThan(ast.Long(3)))).Conditions[0].Body, w); err != nil {
		t.Errorf("what is known to be present: %v", err)
	}
	w.Actions = []string{"read"}
	if err := c.Validate((*xast.Policy)(ast.Permit().When(arg("amount").LessThan(ast.Long(3)))).Conditions[0].Body, w); err == nil {
		t.Error("a resource has no arguments")
	}
}
