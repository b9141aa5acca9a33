package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/snapshot"
)

const refund = `{"name":"refund","inputSchema":{"type":"object",
	"properties":{"amount":{"type":"number"},"currency":{"type":["string"]},"dry_run":{"type":"boolean"},
		"note":{"type":"string"},"tags":{"type":"array"},"either":{"type":["string","null"]},"ref":{"$ref":"https://example.com/x"},
		"order id":{"type":"integer"}},
	"required":["amount","currency","dry_run","tags","either","ref","order id"],
	"oneOf":[{"required":["note"]},{}]}}`

func schema() Schema { return ParseSchema("payments/refund", []byte(refund)) }

// show writes a condition as text, so that tests compare what people can read.
func show(c *snapshot.Cond) string {
	signs := map[snapshot.Op]string{snapshot.OpEq: "==", snapshot.OpNe: "!=", snapshot.OpLt: "<", snapshot.OpLe: "<=", snapshot.OpGt: ">", snapshot.OpGe: ">="}
	var kids []string
	for _, k := range c.Kids {
		kids = append(kids, show(k))
	}
	switch c.Op {
	case snapshot.OpTrue:
		return "true"
	case snapshot.OpFalse:
		return "false"
	case snapshot.OpAnd:
		return "(" + strings.Join(kids, " && ") + ")"
	case snapshot.OpOr:
		return "(" + strings.Join(kids, " || ") + ")"
	case snapshot.OpNot:
		return "!" + kids[0]
	case snapshot.OpHas:
		return "has " + c.Arg
	case snapshot.OpIn:
		var vs []string
		for _, v := range c.Values {
			vs = append(vs, showValue(v))
		}
		return c.Arg + " in " + strings.Join(vs, ",")
	default:
		return c.Arg + " " + signs[c.Op] + " " + showValue(c.Value)
	}
}

func showValue(v snapshot.Value) string {
	switch v.Type {
	case snapshot.TypeString:
		return fmt.Sprintf("%q", v.Str)
	case snapshot.TypeBool:
		return fmt.Sprint(v.Bool)
	default:
		return fmt.Sprint(v.Int)
	}
}

func TestLowerAcceptsTheClosedSubset(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`context.args.amount < 100`:                                    `amount < 100`,
		`100 > context.args.amount`:                                    `amount < 100`,
		`-5 <= context.args["amount"]`:                                 `amount >= -5`,
		`context.args["order id"] == 9007199254740993`:                 `order id == 9007199254740993`,
		`context.args.currency == "EUR" && context.args.amount <= 500`: `(currency == "EUR" && amount <= 500)`,
		`["EUR","USD"].contains(context.args.currency)`:                `currency in "EUR","USD"`,
		`!context.args.dry_run || context.args.amount != 1`:            `(!dry_run == true || amount != 1)`,
		`context.args.dry_run == false // only for real`:               `dry_run == false`,
		`context.args has note && context.args.note == "x"`:            `(has note && note == "x")`,
		`!(context.args has note) || context.args.note != "x"`:         `(!has note || note != "x")`,
		`if context.args.dry_run then true else context.args.amount<9`: `((dry_run == true && true) || (!dry_run == true && amount < 9))`,
		"true":  "true",
		"false": "false",
		`context.args.amount > 1 && context.args.amount < 3 && context.args.amount != 2`: `(amount > 1 && amount < 3 && amount != 2)`,
	} {
		c, err := Lower(text, schema())
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := show(c); got != want {
			t.Errorf("%s: lowered to %s, want %s", text, got, want)
		}
	}
}

func TestLowerRefusesTheRestAndSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``:                                                  "the condition is empty",
		`context.args.amout < 100`:                          "1:14: context.args.amout: payments/refund has no argument amout: did you mean amount?",
		"true &&\n  context.args.zzzzz == 1":                "2:16: context.args.zzzzz: payments/refund has no argument zzzzz: it takes amount, currency",
		`context.args.Amount < 100`:                         "has no argument Amount: did you mean amount?",
		`context.args.amount < "100"`:                       `payments/refund has amount as number, and "100" is a string: compare it with a number`,
		`context.args.currency == 1`:                        "payments/refund has currency as string",
		`context.args.currency < "EUR"`:                     "orders numbers only",
		`context.args.note == "x"`:                          "payments/refund may be called without note, which is optional",
		`context.args has note || context.args.note == "x"`: "may be called without note",
		`!(context.args has note && true) || context.args.note == ""`: "",
		`context.args.tags == 1`:                     `payments/refund has tags as type "array"`,
		`context.args.either == "x"`:                 "several types (string, null)",
		`context.args.ref == "x"`:                    "a $ref, which is not followed",
		`context.args has other`:                     "has no argument other",
		`context.args has note.x`:                    "only an argument's presence",
		`context has args`:                           "only an argument's presence",
		`context.args.currency`:                      "is a string, not a boolean",
		`context.args.amount.value == 1`:             "reaches into an object, which is not supported yet",
		`context.ip.isInRange(ip("10.0.0.0/8"))`:     "is not supported yet",
		`context.ip == 1`:                            "1:9: context.ip is not supported yet: it is not known when tools are listed: conditions compare context.args.NAME",
		`principal == User::"alice"`:                 "1:1: a condition on principal is not supported yet",
		`context.args.currency like "E*"`:            "like is not supported yet",
		`context.args.amount in [1]`:                 "in is not supported yet",
		`context.args.amount + 1 < 5`:                "arithmetic is not supported yet",
		`context.args.amount == context.args.amount`: "comparing two arguments",
		`1 == 1`:                           "both sides are constants",
		`"yes"`:                            "a condition is true or false",
		`[].contains(context.args.amount)`: "the list has 0 values",
		`context.args.amount <`:            "the condition ends too early",
		`context.args.amount $ 5`:          `unexpected "5"`,
		`99999999999999999999 > context.args.amount`:                 "does not fit in 64 bits",
		`true } unless { false`:                                      "more than a condition",
		`true }; permit(principal,action,resource) when { true`:      "more than a condition",
		strings.Repeat("!", 500) + "true":                            "levels",
		strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200): "levels",
		"true" + strings.Repeat(" && true", 400):                     "parts",
		strings.Repeat(" ", MaxText) + "true":                        "bytes long",
	} {
		if want == "" {
			continue
		}
		_, err := Lower(text, schema())
		if err == nil {
			t.Errorf("%.60s: accepted", text)
			continue
		}
		if problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: got %v (%s), want %q", text, err, problem.CodeOf(err), want)
		}
	}
}

func TestSchemaTakesAnything(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		``:                     "strict JSON",
		`{`:                    "strict JSON",
		`[]`:                   "no input schema",
		`{"InputSchema":{}}`:   "no input schema",
		`{"inputSchema":true}`: "not an object",
		`{"inputSchema":{"properties":{"a":{"type":"string"},"a":{"type":"number"}}}}`: `"a" appears twice`,
		`{"inputSchema":{}} {}`: "follows",
		`{"x":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`: "too deep",
	} {
		s := ParseSchema("t", []byte(raw))
		if !strings.Contains(s.Problem, want) {
			t.Errorf("%.40s: problem %q, want %q", raw, s.Problem, want)
		}
		if _, err := Lower("context.args.a == 1", s); err == nil {
			t.Errorf("%.40s: a condition was accepted", raw)
		}
	}
	s := ParseSchema("t", []byte(`{"inputSchema":{"required":"a","properties":{"a":7,"b":{"type":5}}}}`))
	if s.Problem != "" || s.Args["a"].Required || s.Args["a"].Type != 0 || s.Args["b"].Type != 0 {
		t.Errorf("got %+v", s)
	}
}

func FuzzLower(f *testing.F) {
	for _, s := range []string{
		`context.args.amount < 100`, `!(context.args has note) || context.args["note"] == "x"`, `["a"].contains(context.args.currency)`,
		`if true then false else true`, `context.args.amount < 1 } unless { true`, `// x`, `"\u{1F600}" == context.args.currency`,
	} {
		f.Add(s)
	}
	sch := schema()
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Lower(text, sch)
		if err != nil {
			if problem.CodeOf(err) != problem.Invalid {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if n := count(c); n > snapshot.MaxCondNodes || c.Validate() != nil {
			t.Fatalf("%q: %d nodes", text, n)
		}
	})
}

func FuzzParseSchema(f *testing.F) {
	f.Add([]byte(refund))
	f.Add([]byte(`{"inputSchema":{"properties":{"a":{"type":["string"]}},"required":["a",5]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for n, a := range ParseSchema("t", raw).Args {
			if a.Type == snapshot.TypeInvalid && a.Has == "" {
				t.Fatalf("%q: nothing is said about %q", raw, n)
			}
		}
	})
}
