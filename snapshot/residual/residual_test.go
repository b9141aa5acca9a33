package residual_test

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	cedar "github.com/cedar-policy/cedar-go"
	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/residual"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// est is the JSON form of an expression that is written as people write it.
func est(t testing.TB, text string) string {
	t.Helper()
	var p cedar.Policy
	if err := p.UnmarshalCedar([]byte("permit(principal, action, resource) when {" + text + "\n};")); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	raw, err := p.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var form struct {
		Conditions []struct{ Body json.RawMessage }
	}
	if err := json.Unmarshal(raw, &form); err != nil {
		t.Fatal(err)
	}
	return string(form.Conditions[0].Body)
}

func parse(t testing.TB, text string) *residual.Expr {
	t.Helper()
	e, err := residual.Parse(est(t, text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return e
}

// answer is "true", "false", or "error: " and what it says.
func answer(e *residual.Expr, env *residual.Env) string {
	switch ok, err := e.Eval(env); {
	case err != nil:
		return "error: " + err.Error()
	case ok:
		return "true"
	}
	return "false"
}

func env(args string) *residual.Env {
	return &residual.Env{
		NowMS: snapshottest.Now, Args: []byte(args), IP: netip.MustParseAddr("10.1.2.3"), Region: "eu-1",
		Principal: residual.Principal{Name: "alice", Kind: snapshot.KindServiceAccount, Clearance: 3, Region: "eu"},
	}
}

func TestEvalReadsArgumentsContextAndPrincipal(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ text, args, want string }{
		{`context.args.amount + context.args.fee <= 100`, `{"amount":90,"fee":10}`, "true"},
		{`context.args.amount + context.args.fee <= 100`, `{"amount":90,"fee":11}`, "false"},
		{`context.args.amount + context.args.fee <= 100`, `{"amount":90}`, "error: context.args.fee: the argument is absent"},
		{`context.args.amount + 1 > 0`, `{"amount":9223372036854775807}`, "error: integer overflow while attempting to add `9223372036854775807` with `1`"},
		{`context.args.path like "/srv/*"`, `{"path":"/srv/x"}`, "true"},
		{`context.args.path like "/srv/*"`, `{"path":"\/etc/passwd"}`, "false"},
		{`context.args.filter.owner == "me"`, `{"filter":{"owner":"me","score":0.5}}`, "true"},
		{`context.args has filter.owner && context.args.filter.owner == "me"`, `{"filter":{}}`, "false"},
		{`context.args has filter.owner`, `{}`, "false"},
		{`context.args.filter has owner`, `{}`, `error: context.args.filter.owner: "filter": the argument is not an object`},
		{`context.args.filter has owner`, `{"filter":"owner"}`, `error: context.args.filter.owner: "filter": the argument is not an object`},
		{`context.args.filter has owner`, `{"filter":{"owner":null}}`, "error: context.args.filter.owner: the argument is null"},
		{`context.args.filter has owner`, `{"filter":{"Owner":1}}`, "error: context.args.filter.owner: the argument is there under a name that differs in case"},
		{`["a", "b"].containsAll(context.args.tags)`, `{"tags":["b","a","b"]}`, "true"},
		{`["a", "b"].containsAll(context.args.tags)`, `{"tags":["c"]}`, "false"},
		{`["a", "b"].containsAll(context.args.tags)`, `{"tags":["a",null]}`, "error: context.args.tags: the argument is null"},
		{`context.args.tags.isEmpty()`, `{"tags":[]}`, "true"},
		{`context.args.from == context.args.to`, `{"from":[1],"to":[1,1]}`, "true"},
		{`context.args.from == context.args.to`, `{"from":[1],"to":[]}`, "false"},
		{`context.args.from == context.args.to`, `{"from":"a","to":["a"]}`, "error: context.args.from: the argument is of another type"},
		{`context.args.from != context.args.to`, `{"from":{},"to":{}}`, "error: context.args.from: the argument is of another type"},
		{`context.args.list.contains(context.args.one)`, `{"list":["a"],"one":"a"}`, "true"},
		{`context.args.list.contains(context.args.one)`, `{"list":["a"],"one":1}`, "error: context.args.list: the argument is of another type"},
		{`context.args.list.contains("a")`, `{"list":[1]}`, "error: context.args.list: the argument is of another type"},
		{`context.args.list.contains("a")`, `{"list":["a",1]}`, "error: context.args.list: the argument is a list of several types"},
		{`context.args.list.containsAny(["a", context.args.one])`, `{"list":["b"],"one":"b"}`, "true"},
		{`context.args.list.containsAny(["a", context.args.one])`, `{"list":["b"],"one":["b"]}`, "error: context.args.one: the argument is of another type"},
		{`(if context.args has a then context.args.a else context.args.b) == "x"`, `{"b":["x"]}`, "error: context.args.b: the argument is of another type"},
		{`decimal(context.args.price).lessThan(decimal("10.5"))`, `{"price":"10.4999"}`, "true"},
		{`decimal(context.args.price).lessThan(decimal("10.5"))`, `{"price":10.4}`, "error: context.args.price: the number is not an integer of 64 bits"},
		{`ip(context.args.host).isInRange(ip("192.168.0.0/16"))`, `{"host":"192.168.3.4"}`, "true"},
		{`datetime(context.args.until).durationSince(context.time) < duration("30d")`, `{"until":"2027-01-20"}`, "true"},
		{`datetime(context.args.until).durationSince(context.time) < duration("30d")`, `{"until":"2027-12-20"}`, "false"},
		{`context.ip.isIpv4() && context.region == "eu-1"`, `{}`, "true"},
		{`context has actor`, `{}`, "false"},
		{`context.actor like "ops-*"`, `{}`, "error: record does not have the attribute `actor`"},
		{`principal.region like "e*" && principal.kind == "service_account"`, `{}`, "true"},
		{`context.args.level * 2 <= principal.clearance`, `{"level":1}`, "true"},
		{`context.args["order id"] == context.args.id`, `{"order id":1,"id":1}`, "true"},
	} {
		if got := answer(parse(t, tc.text), env(tc.args)); got != tc.want {
			t.Errorf("%s of %s: %s, want %s", tc.text, tc.args, got, tc.want)
		}
	}
}

func TestHostileArgumentsAreErrorsForWhoeverReadsThem(t *testing.T) {
	t.Parallel()
	e := parse(t, `context.args.amount + 0 < 100`)
	has := parse(t, `if context.args has amount then true else false`)
	deep := strings.Repeat("[", 64) + strings.Repeat("]", 64)
	for _, args := range []string{
		`{"amount":5,"amount":5}`, `{"amount":5,"Amount":500}`, `{"Amount":5}`, `{"amount":null}`, "{\"amount\":\"\xff\"}",
		`{"amount":5}x`, `{"amount":5`, `[]`, `null`, ``, `{"amount":5,"x":` + deep + `}`, `{"\u0061mount":5,"AMOUNT":1}`,
		`{"amount":05}`, `{"amount":5,}`,
	} {
		if _, err := e.Eval(env(args)); err == nil {
			t.Errorf("%q: reading gave a value", args)
		}
		if _, err := has.Eval(env(args)); err == nil {
			t.Errorf("%q: presence was told", args)
		}
	}
	for _, args := range []string{`{"amount":5.5}`, `{"amount":9223372036854775808}`, `{"amount":1e400}`, `{"amount":"5"}`, `{"amount":{}}`, `{"amount":1e-400}`} {
		if _, err := e.Eval(env(args)); err == nil {
			t.Errorf("%s: reading gave a value", args)
		}
	}
	for _, args := range []string{`{"amount":5}`, `{"\u0061mount":5}`, `{"amount":5.0}`, `{"amount":0.5e1}`, `{"amount":-0}`, `{"x":{"amount":1,"amount":2},"amount":5}`, `{"amount":0e99999999999999999999}`} {
		if got := answer(e, env(args)); got != "true" {
			t.Errorf("%s: %s", args, got)
		}
	}
}

func TestParseRefusesWhatCannotRunInACell(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`resource.labels.env == "prod"`:                "resource is not known where this expression runs",
		`resource == principal`:                        "resource is not known",
		`action == Action::"call"`:                     "action is not known",
		`principal in Team::"a"`:                       "write principal in ... as a condition of its own",
		`principal is User`:                            "as a condition of its own",
		`principal == User::"a"`:                       "principal cannot be used as a whole",
		`context.args.x == User::"a"`:                  "an entity or an object cannot stand in an expression",
		`[User::"a"].contains(context.args.x)`:         "an entity or an object cannot stand in an expression",
		`context == {}`:                                "context cannot be used as a whole",
		`context.args == {}`:                           "context.args cannot be used as a whole",
		`context.clock["UTC"].hour + 1 < 3`:            "context.clock can only be compared with a constant",
		`context.value == 1`:                           "context.value is not known",
		`{a: 1} == context.args.x`:                     "an object cannot stand in an expression",
		`context.args.x == 1 || context.args.x == "1"`: "a string is compared with an integer",
		`principal.name == 1`:                          "an integer is compared with a string", `context.args.x == []`: "write context.args.x.isEmpty()",
		`context.args.x == ip("::1")`:                              "make one of it with ip()",
		`[1, "a"].contains(context.args.x)`:                        "compared with",
		`(if true then context.args.x else context.args.y).z == 1`: "a member can only be read of an argument that is named",
		`[context.args.x].contains([context.args.y])`:              "it cannot be told what types are compared",
		`principal.password == ""`:                                 "principal.password is not known",
		`context.ip.foo == 1`:                                      "context.ip.foo is not known",
		strings.Repeat("!", 70) + `context.args.a`:                 "nests deeper than 64",
		`context.args.a == "` + strings.Repeat("x", 64<<10) + `"`:  "at most 65536",
	} {
		if _, err := residual.Parse(est(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %q", text, err, want)
		}
	}
	for _, raw := range []string{
		``, `{}`, `7`, `{"Var":"context"} {"Var":"context"}`, `{"Value":{"__entity":{"type":"User","id":"a"}}}`,
		`{"Value":[{"x":{"__entity":{"type":"User","id":"a"}}}]}`, `{"ip":[]}`, `{"isInRange":[{"ip":[{"Value":"::1"}]}]}`,
		`{"Value":true}}],"effect":"forbid","conditions":[{"kind":"when","body":{"Value":true}`, `{"nothing":[]}`,
		`{"Value":true,"Value":true}`, strings.Repeat(`{"!":{"arg":`, 200) + `{"Value":true}` + strings.Repeat(`}}`, 200),
	} {
		if _, err := residual.Parse(raw); err == nil {
			t.Errorf("%.80s was accepted", raw)
		}
	}
}

func TestFoldSettlesTheResource(t *testing.T) {
	t.Parallel()
	facts := snapshot.Facts{
		"labels.env": str("prod"), "class": num(2), "readOnlyHint": {Value: snapshot.Value{Type: snapshot.TypeBool, Bool: true}},
		"endpoints": {Value: snapshot.Value{Type: snapshot.TypeSet}, Set: []string{"crm", "erp"}},
		"regions":   {Value: snapshot.Value{Type: snapshot.TypeSet}}, "kind": str("tool"), "server": str("payments"),
	}
	fact := func(name string) (snapshot.Fact, bool) { f, ok := facts[name]; return f, ok }
	for text, want := range map[string]string{
		`resource.class * 2 <= context.args.n`:             `{"<=":{"left":{"*":{"left":{"Value":2},"right":{"Value":2}}},"right":{".":{"left":{".":{"left":{"Var":"context"},"attr":"args"}},"attr":"n"}}}}`,
		`resource.labels.env like "pr*"`:                   `{"Value":true}`,
		`resource.labels["env"] == "dev"`:                  `{"Value":false}`,
		`resource has labels.tier`:                         `{"Value":false}`,
		`resource.labels has env && resource has class`:    `{"Value":true}`,
		`resource.endpoints.containsAny(["crm"])`:          `{"Value":true}`,
		`resource.regions.isEmpty()`:                       `{"Value":true}`,
		`resource is Tool in Server::"payments"`:           `{"Value":true}`,
		`resource is Prompt || resource in Endpoint::"hr"`: `{"Value":false}`,
		`resource.owners.contains(context.args.owner)`:     `{"contains":{"left":{".":{"left":{"Record":{}},"attr":"resource.owners is absent"}},"right":{".":{"left":{".":{"left":{"Var":"context"},"attr":"args"}},"attr":"owner"}}}}`,
	} {
		got, err := residual.Fold(est(t, text), fact)
		if err != nil || got != want {
			t.Errorf("%s: %s %v, want %s", text, got, err, want)
		}
		if _, err := residual.Parse(got); err != nil {
			t.Errorf("%s: what was folded does not parse: %v", text, err)
		}
	}
	absent, err := residual.Fold(est(t, `resource.owners.contains("me")`), fact)
	if err != nil {
		t.Fatal(err)
	}
	e, err := residual.Parse(absent)
	if err != nil {
		t.Fatal(err)
	}
	if got := answer(e, env(`{}`)); got != "error: record does not have the attribute `resource.owners is absent`" || e.ReadsArgs() {
		t.Errorf("an absent attribute is %s", got)
	}
	for text, want := range map[string]string{
		`resource == context.args.x`: "resource cannot be used as a whole", `resource.labels == {}`: "name one label",
		`resource.class.x == 1`: "only labels have members", `resource in Team::"a"`: "belongs to a Server and to Endpoints",
		`resource in [Server::"a"]`: "takes one entity",
	} {
		if _, err := residual.Fold(est(t, text), fact); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func str(s string) snapshot.Fact {
	return snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeString, Str: s}}
}

func num(n int64) snapshot.Fact {
	return snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeNumber, Int: n}}
}

func TestReadsArgs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		`context.args has a`: true, `context.args.a.b == 1`: true, `context has args`: false, `context.ip.isLoopback()`: false,
		`principal.name like "a*"`: false,
	} {
		if got := parse(t, text).ReadsArgs(); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestEvalMayRunManyTimesAtOnce(t *testing.T) {
	t.Parallel()
	e := parse(t, `context.args.a + context.args.b.c == 3 && principal.name like "al*"`)
	var wg sync.WaitGroup
	args := env(`{"a":1,"b":{"c":2}}`)
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if got := answer(e, args); got != "true" {
					t.Error(got)
				}
			}
		})
	}
	wg.Wait()
}

// TestResidualAgreesWithNativePrograms: what can be said natively means the same here. Plain arguments give the same
// answer, hostile ones the same or an error, because Cedar has no fractions.
func TestResidualAgreesWithNativePrograms(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := snapshottest.Conds(3).Draw(t, "condition")
		p := &snapshot.Policy{
			Tenant: "0198c0de-0000-7000-8000-000000000001", Principals: []snapshot.Principal{{Name: "u"}},
			Servers: []snapshot.Server{{Name: "s", Items: []string{"t"}}},
			Grants:  []snapshot.Grant{{ID: "g", Subject: snapshot.Everyone, Server: "s", When: c}},
		}
		b, err := builder.Build(p)
		if err != nil {
			t.Fatal(err)
		}
		x, err := index.Open(b)
		if err != nil {
			t.Fatal(err)
		}
		e, err := residual.Parse(marshal(c))
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			hostile := rapid.Bool().Draw(t, "hostile")
			call := snapshottest.Calls(p, hostile).Draw(t, "call")
			v := x.View(0, 0)
			item, _ := x.Item(0, "t")
			d := authz.Decide(&v, item, &authz.Request{NowMS: call.Request.NowMS, Args: call.Request.Args})
			got, err := e.Eval(&residual.Env{NowMS: call.Request.NowMS, Args: call.Request.Args})
			switch native := d.Reason == authz.ArgumentType; {
			case err == nil && (native || got != d.Allow):
				t.Fatalf("args %s: residual says %v, native %+v", call.Request.Args, got, d)
			case err != nil && !native && !hostile && d.Reason != authz.NoGrant:
				t.Fatalf("args %s: residual says %v, native %+v", call.Request.Args, err, d)
			}
		}
	})
}

// marshal writes a condition in Cedar's JSON form.
func marshal(c *snapshot.Cond) string {
	raw, err := json.Marshal(tree(c))
	if err != nil {
		panic(err)
	}
	return string(raw)
}

type dict = map[string]any

func tree(c *snapshot.Cond) dict {
	args := dict{".": dict{"left": dict{"Var": "context"}, "attr": "args"}}
	arg := dict{".": dict{"left": args, "attr": c.Arg}}
	two := func(op string, l, r any) dict { return dict{op: dict{"left": l, "right": r}} }
	at := dict{"offset": []any{dict{"datetime": []any{dict{"Value": "1970-01-01"}}}, dict{"duration": []any{dict{"Value": "0ms"}}}}}
	if c.Op == snapshot.OpBefore || c.Op == snapshot.OpAfter {
		at["offset"].([]any)[1] = dict{"duration": []any{dict{"Value": json.Number(jsonInt(c.Value.Int)).String() + "ms"}}}
	}
	now := dict{".": dict{"left": dict{"Var": "context"}, "attr": "time"}}
	signs := map[snapshot.Op]string{snapshot.OpEq: "==", snapshot.OpNe: "!=", snapshot.OpLt: "<", snapshot.OpLe: "<=", snapshot.OpGt: ">", snapshot.OpGe: ">="}
	switch c.Op {
	case snapshot.OpTrue, snapshot.OpFalse:
		return dict{"Value": c.Op == snapshot.OpTrue}
	case snapshot.OpNot:
		return dict{"!": dict{"arg": tree(c.Kids[0])}}
	case snapshot.OpAnd, snapshot.OpOr:
		out := tree(c.Kids[0])
		for _, k := range c.Kids[1:] {
			out = two(map[snapshot.Op]string{snapshot.OpAnd: "&&", snapshot.OpOr: "||"}[c.Op], out, tree(k))
		}
		return out
	case snapshot.OpBefore:
		return two("<", now, at)
	case snapshot.OpAfter:
		return two(">=", now, at)
	case snapshot.OpHas:
		return dict{"has": dict{"left": args, "attr": c.Arg}}
	case snapshot.OpIn:
		var members []any
		for _, v := range c.Values {
			members = append(members, value(v))
		}
		return two("contains", dict{"Set": members}, arg)
	default:
		return two(signs[c.Op], arg, value(c.Value))
	}
}

func value(v snapshot.Value) dict {
	switch v.Type {
	case snapshot.TypeBool:
		return dict{"Value": v.Bool}
	case snapshot.TypeNumber:
		return dict{"Value": v.Int}
	default:
		return dict{"Value": v.Str}
	}
}

func jsonInt(n int64) string {
	raw, _ := json.Marshal(n)
	return string(raw)
}

func FuzzEval(f *testing.F) {
	for _, s := range []string{`context.args.a + 1 < 3`, `context.args has b.c`, `context.ip.isInRange(ip("10.0.0.0/8"))`, `["a"].containsAny(context.args.tags)`} {
		f.Add(est(f, s), []byte(`{"a":1,"b":{"c":[1,"x"]}}`))
	}
	f.Fuzz(func(t *testing.T, text string, args []byte) {
		e, err := residual.Parse(text)
		if err != nil {
			return
		}
		in := slices.Clone(args)
		one, err1 := e.Eval(&residual.Env{NowMS: 1, Args: args})
		two, err2 := e.Eval(&residual.Env{NowMS: 1, Args: args})
		if one != two || (err1 == nil) != (err2 == nil) || one && err1 != nil || !slices.Equal(in, args) {
			t.Fatalf("%s of %q: %v %v, then %v %v", text, args, one, err1, two, err2)
		}
		folded, err := residual.Fold(text, func(string) (snapshot.Fact, bool) { return snapshot.Fact{}, false })
		if err != nil {
			return // too deep once it is written out
		}
		if _, err := residual.Parse(folded); err != nil && len(folded) <= residual.MaxText {
			t.Fatalf("%s: what was folded does not parse: %v", folded, err)
		}
	})
}

func BenchmarkEval(b *testing.B) {
	e := parse(b, `context.args.amount * 2 < 100 && context.args.note like "*x*"`)
	r := env(`{"amount":49,"note":"a text","more":[1,2,3]}`)
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := e.Eval(r); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
