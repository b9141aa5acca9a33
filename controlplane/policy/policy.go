// Package policy reads what people write about arguments and turns it into the one form that a cell evaluates. The
// language is Cedar, and this package is the only one that knows cedar-go. It accepts the closed part of Cedar that can
// be evaluated without an allocation and can never fail open: comparisons of a tool's scalar arguments with constants,
// joined by && || ! and if. What it does not accept it refuses with the place and the way out; nothing is skipped.
//
// Every argument is typed here against the tool's approved input schema, so that a condition which could only ever be an
// error is refused while its author is looking at it.
package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	cedar "github.com/cedar-policy/cedar-go"

	"github.com/mcpvault/mcpvault/kit/problem"
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

// Lower turns a condition into its evaluable form, for calls of the given tool. The error is a *problem.Problem with code
// Invalid that names the tool, the argument and, where they are known, line and column (1-based).
func Lower(text string, tool Schema) (*snapshot.Cond, error) {
	body, err := parse(text)
	if err != nil {
		return nil, err
	}
	l := &lowerer{text: text, tool: tool}
	cond, _, err := l.lower(body, known{}, 0)
	if err != nil {
		return nil, err
	}
	// Room is left for the expiry that the compiler puts around it.
	if count(cond) > snapshot.MaxCondNodes-2 || depth(cond) > snapshot.MaxCondDepth-2 || cond.Validate() != nil {
		return nil, tooLong()
	}
	return cond, nil
}

// Check reports whether text is a condition at all, with no tool to type it against.
func Check(text string) error {
	_, err := parse(text)
	return err
}

// node is Cedar's JSON policy form of an expression: an object with one member, the operator.
type node map[string]json.RawMessage

// parse gives the body of the single when clause that text stands for.
func parse(text string) (node, error) {
	if strings.TrimSpace(text) == "" {
		return nil, problem.New(problem.Invalid, "the condition is empty", `write something like context.args.amount < 100, or leave it away`)
	}
	if len(text) > MaxText {
		return nil, problem.Newf(problem.Invalid, "make two grants of it, or a shorter condition",
			"the condition is %d bytes long; at most %d are accepted", len(text), MaxText)
	}
	if deepest(text) > maxDepth {
		return nil, tooLong()
	}
	list, err := cedar.NewPolicyListFromBytes("condition", []byte(prefix+text+suffix))
	if err != nil {
		return nil, syntax(err)
	}
	if len(list) != 1 {
		return nil, oneOnly()
	}
	raw, err := list[0].MarshalJSON()
	if err != nil {
		return nil, problem.New(problem.Invalid, "the condition cannot be read", "write it more simply").Because(err)
	}
	var est struct {
		Conditions []struct {
			Kind string `json:"kind"`
			Body node   `json:"body"`
		} `json:"conditions"`
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&est); err != nil {
		return nil, problem.New(problem.Invalid, "the condition cannot be read", "write it more simply").Because(err)
	}
	if len(est.Conditions) != 1 || est.Conditions[0].Kind != "when" {
		return nil, oneOnly()
	}
	return est.Conditions[0].Body, nil
}

// deepest is the depth of brackets and of chains of prefix operators. The parser behind us recurses, so it is bounded
// before it starts.
func deepest(text string) int {
	depth, most, run := 0, 0, 0
	for i := range len(text) {
		switch text[i] {
		case '(', '[', '{':
			depth++
			run = 0
		case ')', ']', '}':
			depth--
			run = 0
		case '!', '-':
			run++
		case ' ', '\t', '\n', '\r':
		default:
			run = 0
		}
		most = max(most, depth+run)
	}
	return most
}

func oneOnly() error {
	return problem.New(problem.Invalid, "this is more than a condition",
		"write only what stands between the braces of a Cedar when clause, such as context.args.amount < 100")
}

func tooLong() error {
	return problem.Newf(problem.Invalid, "split it into several grants",
		"the condition has more than %d parts or %d levels", snapshot.MaxCondNodes, maxDepth)
}

var cedarPlace = regexp.MustCompile(`at [^ ]*:(\d+):(\d+) (".*?"): (.*)$`)

// syntax says a parser's error in terms of the text that the author wrote.
func syntax(err error) error {
	const fix = "write a Cedar expression such as context.args.amount < 100 && context.args.currency == \"EUR\""
	m := cedarPlace.FindStringSubmatch(err.Error())
	if m == nil {
		if strings.Contains(err.Error(), "out of range") {
			return problem.New(problem.Invalid, "a number does not fit in 64 bits", "use a smaller one")
		}
		return problem.New(problem.Invalid, "the condition is not valid Cedar", fix).Because(err)
	}
	line, _ := strconv.Atoi(m[1])
	word := m[3]
	if word == `";"` || word == `"}"` {
		return problem.Newf(problem.Invalid, fix, "the condition ends too early (line %d)", max(line-2, 1))
	}
	return problem.Newf(problem.Invalid, fix, "%d:%s: unexpected %s: %s", line-1, m[2], word, m[4])
}

// place finds where a word stands in the text, outside strings and comments: "1:14: ", or "" when it is not there.
func place(text, word string) string {
	line, start := 1, 0
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '\n':
			line++
			i++
			start = i
		case strings.HasPrefix(text[i:], "//"):
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case c == '"':
			end := stringEnd(text, i)
			if text[i:end] == strconv.Quote(word) {
				return fmt.Sprintf("%d:%d: ", line, i-start+1)
			}
			i = end
		case isWord(c):
			end := i
			for end < len(text) && isWord(text[end]) {
				end++
			}
			if text[i:end] == word {
				return fmt.Sprintf("%d:%d: ", line, i-start+1)
			}
			i = end
		default:
			if strings.HasPrefix(text[i:], word) {
				return fmt.Sprintf("%d:%d: ", line, i-start+1)
			}
			i++
		}
	}
	return ""
}

func stringEnd(text string, i int) int {
	for i++; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(text)
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func depth(c *snapshot.Cond) int {
	most := 0
	for _, k := range c.Kids {
		most = max(most, depth(k))
	}
	return most + 1
}

func count(c *snapshot.Cond) int {
	n := 1
	for _, k := range c.Kids {
		n += count(k)
	}
	return n
}
