package policy

import (
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

func refundSchema() Schema { return ParseSchema("payments/refund", []byte(refund)) }

func TestLowerAcceptsTheClosedSubset(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`context.args.amount < 100`:                                                                `amount < 100`,
		`100 > context.args.amount`:                                                                `amount < 100`,
		`-5 <= context.args["amount"]`:                                                             `amount >= -5`,
		`context.args["order id"] == 9007199254740993`:                                             `order id == 9007199254740993`,
		`context.args.currency == "EUR" && context.args.amount <= 500`:                             `(currency == "EUR" && amount <= 500)`,
		`["EUR","USD"].contains(context.args.currency)`:                                            `currency in "EUR","USD"`,
		`!context.args.dry_run || context.args.amount != 1`:                                        `(!dry_run == true || amount != 1)`,
		`context.args.dry_run == false // only for real`:                                           `dry_run == false`,
		`context.args has note && context.args.note == "x"`:                                        `(has note && note == "x")`,
		`!(context.args has note) || context.args.note != "x"`:                                     `(!has note || note != "x")`,
		`if context.args.dry_run then true else context.args.amount<9`:                             `((dry_run == true && true) || (!dry_run == true && amount < 9))`,
		`context.args.currency like "E*"`:                                                          `cedar {"like":{"left":{".":{"left":{".":{"left":{"Var":"context"},"attr":"args"}},"attr":"currency"}},"pattern":[{"Literal":"E"},"Wildcard"]}}`,
		`context.args.amount == context.args["order id"]`:                                          `cedar {"==":{"left":{".":{"left":{".":{"left":{"Var":"context"},"attr":"args"}},"attr":"amount"}},"right":{".":{"left":{".":{"left":{"Var":"context"},"attr":"args"}},"attr":"order id"}}}}`,
		`context has args`:                                                                         "true",
		`context.ip.isInRange(ip("10.0.0.0/8"))`:                                                   `context.ip within "10.0.0.0/8"`,
		`context.ip == ip("::1")`:                                                                  `context.ip within "::1/128"`,
		`context has ip && context.ip != ip("127.0.0.1")`:                                          `(has context.ip && !context.ip within "127.0.0.1/32")`,
		`context.time < datetime("2027-01-01") && context.time > datetime("2026-01-01T00:00:00Z")`: `(before 2027-01-01T00:00:00Z && from 2026-01-01T00:00:00.001Z)`,
		`context.clock["Europe/Berlin"].minute >= 540 && [1, 2, 3, 4, 5].contains(context.clock["Europe/Berlin"].weekday)`: `(clock(Europe/Berlin).minute >= 540 && clock(Europe/Berlin).weekday in 1,2,3,4,5)`,
		`resource.class <= principal.clearance`:                     `resource.class <= principal.clearance`,
		`principal.region == context.region`:                        `principal.region == context.region`,
		`resource.regions.contains(principal.region)`:               `resource.regions contains principal.region`,
		`resource.endpoints.containsAny(["crm", "erp"])`:            `(resource.endpoints contains "crm" || resource.endpoints contains "erp")`,
		`resource.labels.env == "prod" && resource has labels.tier`: `(resource.labels.env == "prod" && true && has resource.labels.tier)`,
		`principal in Team::"a" || principal == User::"b"`:          `(member of team:a || member of user:b)`,
		`principal is Workload in Group::"c"`:                       `(principal.kind == "workload" && member of group:c)`,
		`resource in [Server::"a", Endpoint::"b"]`:                  `(resource.server == "a" || (has resource.endpoints && resource.endpoints contains "b"))`,
		`action == Action::"read" || resource is Prompt`:            `(resource.kind == "resource" || resource.kind == "prompt")`,
		`!(context has actor) && resource.readOnlyHint`:             `(!has context.actor && resource.readOnlyHint == true)`,
		"true":  "true",
		"false": "false",
		`context.args.amount > 1 && context.args.amount < 3 && context.args.amount != 2`: `(amount > 1 && amount < 3 && amount != 2)`,
	} {
		c, err := Lower(text, refundSchema())
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
		`context.args.tags == 1`:                                     `payments/refund has tags as type "array"`,
		`context.args.either == "x"`:                                 "several types (string, null)",
		`context.args.ref == "x"`:                                    "a $ref, which is not followed",
		`context.args has other`:                                     "has no argument other",
		`context.args.currency`:                                      "is a string, not a boolean",
		`context.args has note.x`:                                    "1:23: payments/refund has note as string, which has no members",
		`context.args.amount.value == 1`:                             "1:21: payments/refund has amount as number, which has no members",
		`context.args.amount in [1]`:                                 "1:1: the expression does not type",
		`context.args.amount like "E*"`:                              "1:1: the expression does not type",
		`context.args.amount + "a" < 5`:                              "1:1: the expression does not type",
		`context.args.note like "E*"`:                                "1:1: payments/refund may be called without note, which is optional",
		`context.args.currency.contains("a")`:                        "is a string, not a list",
		`context.ip == 1`:                                            "1:15: context.ip is an address, and 1 is none",
		`context.ip == ip("10.0.0.0/33")`:                            `1:18: "10.0.0.0/33" cannot be read by ip()`,
		`context.time < datetime("soon")`:                            `1:25: "soon" cannot be read by datetime()`,
		`context.addr == 1`:                                          "1:9: context.addr: context has no attribute addr",
		`context.regoin == "eu"`:                                     "did you mean context.region?",
		`context == context`:                                         "context is the whole record",
		`context.clock["Mars/Base"].hour < 3`:                        `1:15: "Mars/Base" is no time zone`,
		`context.clock["UTC"].second < 3`:                            "1:22: a clock has no hand second",
		`context.clock.UTC == 3`:                                     "a clock has a time zone and a hand",
		`principal`:                                                  "1:1: principal stands alone",
		`principal == "alice"`:                                       "principal is compared with something else than an entity",
		`principal in User::"a" && principal in Tool::"a"`:           "Tool is no principal",
		`principal is Tool`:                                          "a principal is never a Tool: it can be a ServiceAccount, User, Workload",
		`principal.kind == "human"`:                                  "principal.kind is never \"human\": it is one of person",
		`principal.clearance == "high"`:                              "principal.clearance is a number, and \"high\" is a string",
		`principal.manager == "x"`:                                   "principal has no attribute manager",
		`User::"a" == principal`:                                     `User::"a" stands where no entity can: write the variable first`,
		`action == Action::"calls"`:                                  `Action::"calls" is no action: did you mean Action::"call"?`,
		`resource.labels == {}`:                                      "resource.labels is the whole record",
		`resource.readOnlyHnt`:                                       "did you mean resource.readOnlyHint?",
		`resource.class`:                                             "resource.class is a number, not a boolean",
		`resource.class == principal.region`:                         "resource.class is a number, and principal.region is a string",
		`resource.endpoints.contains(1)`:                             "resource.endpoints is a list of strings",
		`resource in Team::"a"`:                                      "Team is no resource",
		`resource == Tool::"refund"`:                                 `"refund" names no Tool of a server`,
		`context.clock["UTC"].hour + 1 < 3`:                          "join conditions of their own",
		`1 == 1`:                                                     "both sides are constants",
		`"yes"`:                                                      "a condition is true or false",
		`[].contains(context.args.amount)`:                           "the list has 0 values",
		`context.args.amount <`:                                      "the condition ends too early",
		`context.args.amount $ 5`:                                    `unexpected "5"`,
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
		_, err := Lower(text, refundSchema())
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
	sch := refundSchema()
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
