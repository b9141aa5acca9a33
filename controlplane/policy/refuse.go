package policy

import (
	"encoding/json"
	"strings"
)

const supported = "conditions compare context.args.NAME with constants (== != < <= > >=), ask context.args has NAME or " +
	"[...].contains(context.args.NAME), and join with && || !"

// pathOf reads context.a.b as its words; false when n is not such a chain.
func pathOf(n node) ([]string, bool) {
	var back []string
	for range maxDepth {
		if raw, ok := n["Var"]; ok {
			var v string
			if json.Unmarshal(raw, &v) != nil {
				return nil, false
			}
			path := []string{v}
			for i := len(back) - 1; i >= 0; i-- {
				path = append(path, back[i])
			}
			return path, true
		}
		raw, ok := n["."]
		if !ok {
			return nil, false
		}
		var a struct {
			Left node   `json:"left"`
			Attr string `json:"attr"`
		}
		if json.Unmarshal(raw, &a) != nil {
			return nil, false
		}
		back = append(back, a.Attr)
		n = a.Left
	}
	return nil, false
}

// argumentName accepts context.args.NAME and explains everything else that can be named.
func (l *lowerer) argumentName(path []string) (string, error) {
	if path[0] != "context" {
		return "", l.refuse(path[0], "a condition on "+path[0]+" is not supported yet",
			"who and what are the grant's subject and target; "+supported)
	}
	if len(path) == 1 || len(path) == 2 && path[1] == "args" {
		return "", l.refuse("context", strings.Join(path, ".")+" is the whole record", "name one argument: context.args.NAME")
	}
	if path[1] != "args" {
		return "", l.refuse(path[1], "context."+path[1]+" is not supported yet: it is not known when tools are listed", supported)
	}
	if len(path) > 3 {
		return "", l.refuse(path[3], strings.Join(path, ".")+" reaches into an object, which is not supported yet",
			"only the tool's own arguments can be compared: context.args.NAME")
	}
	return path[2], nil
}

// notArgument explains an operand that had to be an argument.
func (l *lowerer) notArgument(n node) error {
	if isLiteral(n) {
		return l.refuse("", "both sides are constants", "compare context.args.NAME with a constant")
	}
	for op := range n {
		return l.unsupported(op)
	}
	return l.unsupported("")
}

// notConstant explains an operand that had to be a constant.
func (l *lowerer) notConstant(n node, arg string) error {
	if path, ok := pathOf(n); ok {
		if _, err := l.argumentName(path); err != nil {
			return err
		}
		return l.refuse(arg, "comparing two arguments with each other is not supported yet", "compare context.args."+arg+" with a constant")
	}
	for op := range n {
		return l.unsupported(op)
	}
	return l.unsupported("")
}

var instead = map[string]string{
	"in":          `write ["a", "b"].contains(context.args.NAME)`,
	"like":        `use == or ["a", "b"].contains(context.args.NAME)`,
	"decimal":     "whole numbers compare with decimals exactly: context.args.amount < 100 is false for 100.5",
	"datetime":    "give the grant an expiry instead",
	"duration":    "give the grant an expiry instead",
	"containsAll": `use ["a", "b"].contains(context.args.NAME)`,
	"containsAny": `use ["a", "b"].contains(context.args.NAME)`,
}

var spoken = map[string]string{"Set": "a list standing alone", "Record": "a record", "neg": "negation", "+": "arithmetic", "-": "arithmetic", "*": "arithmetic", "is": "is", "Var": "a variable standing alone"}

func (l *lowerer) unsupported(op string) error {
	what := spoken[op]
	if what == "" {
		what = op
	}
	fix := instead[op]
	if fix == "" {
		fix = supported
	}
	at := op
	if spoken[op] != "" && op != "+" && op != "-" && op != "*" {
		at = ""
	}
	return l.refuse(at, what+" is not supported yet in conditions", fix)
}

// Nearest is the candidate that word was probably meant to be, or "".
func Nearest(word string, candidates []string) string {
	best, at := "", len(word)/3+2
	for _, c := range candidates {
		if d := distance(word, c); d < at {
			best, at = c, d
		}
	}
	return best
}

// distance counts edits, with the swap of two neighbours as one.
func distance(a, b string) int {
	if len(a) > 128 || len(b) > 128 {
		return 1 << 20
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
