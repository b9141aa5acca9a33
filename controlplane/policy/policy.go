// Package policy reads what people write, in Cedar, and turns it into the one form that a cell evaluates: a condition of a
// grant, or a whole policy. With snapshot/residual it is all that knows cedar-go.
//
// What a native program can say becomes one: comparisons with constants of arguments, of the principal, of the resource and
// of what surrounds the call, membership, networks and clocks, joined by && || ! and if. Anything else is kept as Cedar and
// is evaluated as Cedar (snapshot.OpForeign), when it types against the schema and can run in a cell. What can do neither is
// refused with its place and the way out; nothing is skipped.
//
// Every argument is typed here against the tool's approved input schema, so that a condition which could only ever be an
// error is refused while its author is looking at it.
package policy

import (
	"regexp"
	"strconv"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/snapshot"
)

// MaxText is the longest condition in bytes.
const MaxText = 4096

// maxDepth bounds the nesting of one condition; the lowered tree is bounded by snapshot.MaxCondNodes as well.
const maxDepth = 64

// The condition stands on lines of its own, so that a comment at its end cannot swallow the brace and line numbers are
// off by exactly one.
const (
	prefix = "permit(principal,action,resource) when {\n"
	suffix = "\n};"
)

// Lower turns a condition into its evaluable form, for calls of the given tool. The error is a problem with code Invalid
// that names the tool, the argument and, where they are known, line and column (1-based). Names of principals and nodes are
// not looked up: a membership of what does not exist is for the caller to find.
func Lower(text string, tool Schema) (*snapshot.Cond, error) {
	body, err := parse(text)
	if err != nil {
		return nil, err
	}
	l := &lowerer{tool: tool, world: &World{}}
	cond, err := l.condition(body)
	if err != nil {
		return nil, err
	}
	return cond, fits(cond)
}

// fits leaves room for what the compiler puts around a condition.
func fits(cond *snapshot.Cond) error {
	if cond != nil && (count(cond) > snapshot.MaxCondNodes-8 || depth(cond) > snapshot.MaxCondDepth-2) {
		return tooLong()
	}
	return nil
}

// parse gives the body of the single when clause that text stands for.
func parse(text string) (*syntax.Expr, error) {
	if strings.TrimSpace(text) == "" {
		return nil, refuse(syntax.Place{}, `write something like context.args.amount < 100, or leave it away`, "the condition is empty")
	}
	if len(text) > MaxText {
		return nil, refuse(syntax.Place{}, "make two grants of it, or a shorter condition", "the condition is %d bytes long; at most %d are accepted", len(text), MaxText)
	}
	if syntax.Deepest(text) > maxDepth {
		return nil, tooLong()
	}
	list, err := cedar.NewPolicyListFromBytes("condition", []byte(prefix+text+suffix))
	if err != nil {
		return nil, unparsed(err)
	}
	if len(list) != 1 {
		return nil, oneOnly()
	}
	conditions := list[0].AST().Conditions
	if len(conditions) != 1 || conditions[0].Condition != xast.ConditionWhen {
		return nil, oneOnly()
	}
	l := syntax.NewLocator(text, syntax.Place{Line: 1, Column: 1})
	return l.Locate(conditions[0].Body), nil
}

func oneOnly() error {
	return refuse(syntax.Place{}, "write only what stands between the braces of a Cedar when clause, such as context.args.amount < 100", "this is more than a condition")
}

func tooLong() error {
	return refuse(syntax.Place{}, "split it into several", "the condition has more than %d parts or %d levels", snapshot.MaxCondNodes, maxDepth)
}

var cedarPlace = regexp.MustCompile(`at [^ ]*:(\d+):(\d+) (".*?"): (.*)$`)

// unparsed says a parser's error in terms of the text that the author wrote.
func unparsed(err error) error {
	const fix = "write a Cedar expression such as context.args.amount < 100 && context.args.currency == \"EUR\""
	m := cedarPlace.FindStringSubmatch(err.Error())
	if m == nil {
		if strings.Contains(err.Error(), "out of range") {
			return refuse(syntax.Place{}, "use a smaller one", "a number does not fit in 64 bits")
		}
		return refuse(syntax.Place{}, fix, "the condition is not valid Cedar: %v", err)
	}
	line, _ := strconv.Atoi(m[1])
	column, _ := strconv.Atoi(m[2])
	word := m[3]
	if word == `";"` || word == `"}"` {
		return refuse(syntax.Place{}, fix, "the condition ends too early (line %d)", max(line-2, 1))
	}
	return refuse(syntax.Place{Line: line - 1, Column: column}, fix, "unexpected %s: %s", word, m[4])
}
