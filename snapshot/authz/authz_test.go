package authz_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

func number(arg string, op snapshot.Op, n int64) *snapshot.Cond {
	return &snapshot.Cond{Op: op, Arg: arg, Value: snapshot.Value{Type: snapshot.TypeNumber, Int: n}}
}

func text(arg string, op snapshot.Op, s string) *snapshot.Cond {
	return &snapshot.Cond{Op: op, Arg: arg, Value: snapshot.Value{Type: snapshot.TypeString, Str: s}}
}

func at(op snapshot.Op, ms int64) *snapshot.Cond {
	return &snapshot.Cond{Op: op, Value: snapshot.Value{Type: snapshot.TypeNumber, Int: ms}}
}

// shop is a policy in which alice may refund when cond holds, or, as a deny, when it does not.
func shop(t testing.TB, deny bool, cond *snapshot.Cond) (*index.Index, index.View, index.ItemID) {
	p := &snapshot.Policy{
		Tenant: "t", Principals: []snapshot.Principal{{Name: "alice"}},
		Servers: []snapshot.Server{{Name: "payments", Items: []string{"balance", "refund"}}},
		Grants:  []snapshot.Grant{{ID: "g", Deny: deny, Subject: "user:alice", Server: "payments", Tool: "refund", When: cond}},
	}
	if deny {
		p.Grants = append(p.Grants, snapshot.Grant{ID: "all", Subject: snapshot.Everyone, Server: "*"})
	}
	x := build(t, p)
	user, _ := x.Principal("alice")
	server, _ := x.Server("payments")
	item, _ := x.Item(server, "refund")
	return x, x.View(user, server), item
}

func TestNumbersAreComparedAsExactDecimals(t *testing.T) {
	t.Parallel()
	nines := strings.Repeat("9", 10_000)
	for _, tc := range []struct {
		text string
		n    int64
		want int
	}{
		{"99.5", 100, -1},
		{"1e2", 100, 0},
		{"100.0", 100, 0},
		{"1000e-1", 100, 0},
		{"0.0001e6", 100, 0},
		{"100.00000000000000000000000000000000001", 100, 1},
		{"99.99999999999999999999999999999999999", 100, -1},
		{"1e400", 1<<63 - 1, 1},
		{"-1e400", -1 << 63, -1},
		{"1e-400", 0, 1},
		{"-1e-400", 0, -1},
		{"1e999999999999999999999999", 5, 1},
		{"1e-999999999999999999999999", 5, -1},
		{"0e999999999999999999999999", 0, 0},
		{"-0", 0, 0},
		{"-0.0e5", 0, 0},
		{"0.00", 1, -1},
		{"-0", -1, 1},
		{"9223372036854775807", 1<<63 - 1, 0},
		{"9223372036854775808", 1<<63 - 1, 1},
		{"-9223372036854775808", -1 << 63, 0},
		{"-9223372036854775809", -1 << 63, -1},
		{"-9223372036854775807.5", -1 << 63, 1},
		{"9007199254740993", 9007199254740992, 1},
		{nines, 1<<63 - 1, 1},
		{"0." + nines, 1, -1},
		{"1." + strings.Repeat("0", 10_000), 1, 0},
		{nines + "e-10000", 1, -1},
		{"-5", 5, -1},
		{"5", -5, 1},
	} {
		for op, holds := range map[snapshot.Op]bool{
			snapshot.OpEq: tc.want == 0, snapshot.OpNe: tc.want != 0, snapshot.OpLt: tc.want < 0,
			snapshot.OpLe: tc.want <= 0, snapshot.OpGt: tc.want > 0, snapshot.OpGe: tc.want >= 0,
		} {
			_, v, item := shop(t, false, number("amount", op, tc.n))
			d := authz.Decide(&v, item, &authz.Request{Args: []byte(`{"amount":` + tc.text + `}`)})
			if d.Allow != holds {
				t.Errorf("%.40s op %d %d: allowed %v", tc.text, op, tc.n, d.Allow)
			}
		}
	}
}

func TestStringsAreComparedDecoded(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]bool{
		`"eu/é😀"`:                       true,
		`"\u0065u\/\u00e9\ud83d\ude00"`: true,
		`"e\u0075/é\uD83D\uDE00"`:       true,
		`"EU/é😀"`:                       false,
		`"eu/é😀 "`:                      false,
		`"eu/é"`:                        false,
		`""`:                            false,
	} {
		_, v, item := shop(t, false, text("region", snapshot.OpEq, "eu/é😀"))
		d := authz.Decide(&v, item, &authz.Request{Args: []byte(`{"region":` + raw + `}`)})
		if d.Allow != want || d.Reason == authz.ArgumentType {
			t.Errorf("%s: %+v", raw, d)
		}
	}
}

// Whatever is wrong with the argument, an allow must not allow and a deny must deny.
func TestWhatCannotBeEvaluatedDenies(t *testing.T) {
	t.Parallel()
	hostile := map[string]string{
		"none":               "",
		"absent":             `{}`,
		"absent beside":      `{"other":5}`,
		"in an inner object": `{"x":{"amount":5}}`,
		"string":             `{"amount":"5"}`,
		"bool":               `{"amount":true}`,
		"null":               `{"amount":null}`,
		"array":              `{"amount":[5]}`,
		"object":             `{"amount":{"amount":5}}`,
		"twice":              `{"amount":5,"amount":5}`,
		"twice, escaped":     `{"amount":5,"\u0061mount":500}`,
		"other case beside":  `{"amount":5,"Amount":500}`,
		"other case instead": `{"AMOUNT":5}`,
		"escaped other case": `{"amount":5,"\u0041mount":500}`,
		"not an object":      `[5]`,
		"null arguments":     `null`,
		"empty":              ` `,
		"cut":                `{"amount":5`,
		"cut after":          `{"amount":5,`,
		"two values":         `{"amount":5}{"amount":500}`,
		"trailing comma":     `{"amount":5,}`,
		"no colon":           `{"amount" 5}`,
		"bare name":          `{amount:5}`,
		"NaN":                `{"amount":NaN}`,
		"plus":               `{"amount":+5}`,
		"leading zero":       `{"amount":05}`,
		"no fraction":        `{"amount":5.}`,
		"no exponent":        `{"amount":5e}`,
		"hex":                `{"amount":0x5}`,
		"invalid UTF-8":      "{\"amount\":5,\"x\":\"\xff\"}",
		"overlong":           "{\"amount\":5,\"x\":\"\xc0\xaf\"}",
		"lone surrogate":     `{"amount":5,"x":"\ud800"}`,
		"surrogate name":     `{"amount":5,"\udc00":1}`,
		"control character":  "{\"amount\":5,\"x\":\"a\nb\"}",
		"unknown escape":     `{"amount":5,"x":"\q"}`,
		"brackets cross":     `{"amount":5,"x":[{]}}`,
		"too deep":           `{"amount":5,"x":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`,
		"very deep":          `{"amount":5,"x":` + strings.Repeat("[", 100_000),
		"comment":            `{"amount":5/**/}`,
		"BOM":                "\ufeff" + `{"amount":5}`,
		"many twins":         `{"amount":5` + strings.Repeat(`,"AMOUNT":5`, 1000) + `}`,
		"too large":          `{"amount":5,"x":"` + strings.Repeat("a", authz.MaxArgs) + `"}`,
	}
	for name, raw := range hostile {
		var args []byte
		if raw != "" {
			args = []byte(raw)
		}
		for _, op := range []snapshot.Op{snapshot.OpLt, snapshot.OpNe, snapshot.OpEq} {
			x, v, item := shop(t, false, number("amount", op, 100))
			r := &authz.Request{Args: args}
			if d := authz.Decide(&v, item, r); d.Allow || d.Reason != authz.ArgumentType || !d.Visible {
				t.Errorf("%s: allow when op %d: %+v", name, op, d)
			}
			if e := authz.Explain(x, v.Principal(), v.Server(), item, r); e.Grants[0].Outcome != authz.ConditionError || e.Grants[0].Detail == "" {
				t.Errorf("%s: explained as %+v", name, e)
			}
			_, v, item = shop(t, true, number("amount", op, 100))
			if d := authz.Decide(&v, item, r); d.Allow || d.Reason != authz.ArgumentType {
				t.Errorf("%s: deny when op %d: %+v", name, op, d)
			}
		}
	}
}

func TestOtherArgumentsAreSkipped(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{
		`{"amount":5}`,
		" \t\r\n{ \"amount\" : 5 , \"x\" : [ { } , \"]\" , [ 1 , { \"amount\" : \"}\" } ] ] } ",
		`{"x":"\"amount\":500","amount":5}`,
		`{"x":"a\\","amount":5,"y":"\\\""}`,
		`{"x":` + strings.Repeat("[", 63) + strings.Repeat("]", 63) + `,"amount":5}`,
		`{"amounts":1,"amoun":1,"amount":5,"":0}`,
		`{"x":1,"x":2,"X":3,"amount":5}`,
		`{"x":"` + strings.Repeat("long \\n é ", 100_000) + `","amount":5}`,
		`{"__proto__":{"amount":500},"amount":5}`,
	} {
		_, v, item := shop(t, false, number("amount", snapshot.OpLt, 100))
		if d := authz.Decide(&v, item, &authz.Request{Args: []byte(raw)}); !d.Allow {
			t.Errorf("%.60s: %+v", raw, d)
		}
	}
}

func TestManyArgumentsOfOneCall(t *testing.T) {
	t.Parallel()
	cond := &snapshot.Cond{Op: snapshot.OpAnd}
	var raw []string
	for i := range 100 {
		name := fmt.Sprintf("arg%d", i)
		cond.Kids = append(cond.Kids, number(name, snapshot.OpEq, int64(i)))
		raw = append(raw, fmt.Sprintf("%q:%d", name, i))
	}
	_, v, item := shop(t, false, cond)
	slices.Reverse(raw)
	if d := authz.Decide(&v, item, &authz.Request{Args: []byte("{" + strings.Join(raw, ",") + "}")}); !d.Allow {
		t.Errorf("%+v", d)
	}
	if d := authz.Decide(&v, item, &authz.Request{Args: []byte("{" + strings.Join(raw[1:], ",") + "}")}); d.Allow || d.Reason != authz.ArgumentType {
		t.Errorf("one missing: %+v", d)
	}
}

func TestHasGuardsAnOptionalArgument(t *testing.T) {
	t.Parallel()
	has := &snapshot.Cond{Op: snapshot.OpHas, Arg: "amount"}
	guarded := &snapshot.Cond{Op: snapshot.OpAnd, Kids: []*snapshot.Cond{has, number("amount", snapshot.OpGe, 100)}}
	for raw, allow := range map[string]bool{`{}`: true, `{"amount":99}`: true, `{"amount":100}`: false, `{"amount":"1"}`: false} {
		_, v, item := shop(t, true, guarded)
		if d := authz.Decide(&v, item, &authz.Request{Args: []byte(raw)}); d.Allow != allow {
			t.Errorf("%s: %+v", raw, d)
		}
	}
}

func TestTimeIsJudgedInLists(t *testing.T) {
	t.Parallel()
	_, v, item := shop(t, false, at(snapshot.OpBefore, 1000))
	if !authz.Visible(&v, item, &authz.Request{NowMS: 999}) || authz.Visible(&v, item, &authz.Request{NowMS: 1000}) {
		t.Error("an allow until 1000 is shown after it or hidden before it")
	}
	d := authz.Decide(&v, item, &authz.Request{NowMS: 1000})
	if d.Allow || !d.Visible || d.Reason != authz.Condition {
		t.Errorf("after its time a grant tells its holder why: %+v", d)
	}
	_, v, item = shop(t, true, at(snapshot.OpAfter, 1000))
	if !authz.Visible(&v, item, &authz.Request{NowMS: 999}) || authz.Visible(&v, item, &authz.Request{NowMS: 1000}) {
		t.Error("a deny from 1000 on")
	}
	_, v, item = shop(t, false, number("amount", snapshot.OpLt, 0))
	if !authz.Visible(&v, item, &authz.Request{NowMS: 0}) {
		t.Error("an argument condition may still come true")
	}
}

func TestDisabledPrincipalIsRefusedEverything(t *testing.T) {
	t.Parallel()
	x := build(t, &snapshot.Policy{
		Tenant: "t", Principals: []snapshot.Principal{{Name: "bob", Disabled: true}},
		Servers: []snapshot.Server{{Name: "s", Items: []string{"a"}}},
		Grants:  []snapshot.Grant{{ID: "g", Subject: snapshot.Everyone, Server: "*"}},
	})
	v := x.View(0, 0)
	if d := authz.Decide(&v, 1, &authz.Request{}); d != (authz.Decision{Reason: authz.Disabled}) || authz.Visible(&v, 1, &authz.Request{NowMS: 0}) {
		t.Errorf("%+v", d)
	}
}

func TestWhatDoesNotExistIsRefused(t *testing.T) {
	t.Parallel()
	x := build(t, &snapshot.Policy{
		Tenant: "t", Principals: []snapshot.Principal{{Name: "bob"}}, Servers: []snapshot.Server{{Name: "s"}},
		Grants: []snapshot.Grant{{ID: "g", Subject: snapshot.Everyone, Server: "*"}},
	})
	views := []index.View{{}, x.View(1, 0), x.View(0, 1), x.View(1<<32-1, 1<<32-1), x.View(0, 0)}
	for i, v := range views {
		for _, item := range []index.ItemID{1, 63, 64, 1 << 20, 1<<32 - 1} {
			if authz.Decide(&v, item, &authz.Request{}).Allow || authz.Visible(&v, item, &authz.Request{NowMS: 0}) {
				t.Errorf("view %d item %d is allowed or shown", i, item)
			}
		}
		_ = authz.Deciding(authz.Reaching(&v, 7), authz.Trace(&v, 7, &authz.Request{}), authz.Decision{})
	}
	other, _ := x.Item(0, snapshot.ItemOther)
	if d := authz.Decide(&views[4], other, &authz.Request{}); !d.Allow {
		t.Errorf("what is not a tool goes with the whole server: %+v", d)
	}
}

func TestMaskHasOnlyItemsThatExist(t *testing.T) {
	t.Parallel()
	x := build(t, &snapshot.Policy{
		Tenant: "t", Principals: []snapshot.Principal{{Name: "bob"}}, Servers: []snapshot.Server{{Name: "s", Items: []string{"a"}}},
		Grants: []snapshot.Grant{
			{ID: "g", Subject: snapshot.Everyone, Server: "*", When: number("amount", snapshot.OpLt, 5)},
			{ID: "h", Subject: "user:bob", Server: "*"},
		},
	})
	v := x.View(0, 0)
	if got := authz.VisibleMask(&v, 0, &authz.Request{NowMS: 0}); got != 0b11 {
		t.Errorf("%b", got)
	}
	if got := authz.VisibleMask(&v, 1, &authz.Request{NowMS: 0}) | authz.VisibleMask(&v, -1, &authz.Request{NowMS: 0}); got != 0 {
		t.Errorf("pages that do not exist: %b", got)
	}
}

func TestExplanationNamesEveryGrantThatTookPart(t *testing.T) {
	t.Parallel()
	x := build(t, &snapshot.Policy{
		Tenant:     "t",
		Principals: []snapshot.Principal{{Name: "alice", Nodes: []snapshot.Ref{"team:a", "team:b"}}},
		Nodes:      []snapshot.Node{{Ref: "team:a", Parents: []snapshot.Ref{"unit:x"}}, {Ref: "team:b", Parents: []snapshot.Ref{"unit:x"}}, {Ref: "unit:x"}},
		Servers:    []snapshot.Server{{Name: "s", Items: []string{"a", "b"}}},
		Grants: []snapshot.Grant{
			{ID: "allow-unit", Subject: "unit:x", Server: "s"},
			{ID: "allow-small", Subject: "team:a", Server: "s", Tool: "a", When: number("amount", snapshot.OpLt, 10)},
			{ID: "deny-large", Deny: true, Subject: snapshot.Everyone, Server: "*", When: number("amount", snapshot.OpGt, 100)},
			{ID: "deny-b", Deny: true, Subject: "user:alice", Server: "s", Tool: "b"},
		},
	})
	item, _ := x.Item(0, "a")
	for _, tc := range []struct {
		raw   string
		rules []string
		out   map[string]string
	}{
		{`{"amount":50}`, []string{"allow-unit"}, map[string]string{"allow-unit": authz.Matched, "allow-small": authz.ConditionFalse, "deny-large": authz.ConditionFalse}},
		{`{"amount":5}`, []string{"allow-small", "allow-unit"}, map[string]string{"allow-unit": authz.Matched, "allow-small": authz.Matched, "deny-large": authz.ConditionFalse}},
		{`{"amount":500}`, []string{"deny-large"}, map[string]string{"allow-unit": authz.Matched, "allow-small": authz.ConditionFalse, "deny-large": authz.Matched}},
		{`{}`, []string{"deny-large"}, map[string]string{"allow-unit": authz.Matched, "allow-small": authz.ConditionError, "deny-large": authz.ConditionError}},
	} {
		r := &authz.Request{Args: []byte(tc.raw)}
		e := authz.Explain(x, 0, 0, item, r)
		if len(e.Grants) != len(tc.out) || e.Principal != "alice" || e.Server != "s" || e.Item != "a" {
			t.Fatalf("%s: %+v", tc.raw, e)
		}
		for _, g := range e.Grants {
			if g.Outcome != tc.out[g.ID] || g.Decided != slices.Contains(tc.rules, g.ID) {
				t.Errorf("%s: %+v", tc.raw, g)
			}
		}
		v := x.View(0, 0)
		if got := authz.Deciding(authz.Reaching(&v, item), authz.Trace(&v, item, r), e.Decision); !slices.Equal(got, tc.rules) {
			t.Errorf("%s: rules %v", tc.raw, got)
		}
	}
	if e := authz.Explain(x, 0, 0, item, &authz.Request{}); !slices.Equal(e.Grants[2].Via, []string{"team:a", "team:b"}) {
		t.Errorf("a grant that came through two teams: %+v", e.Grants[2])
	}
}

func FuzzDecide(f *testing.F) {
	for _, s := range []string{`{}`, `{"amount":5}`, `{"amount":1e400,"x":[{"y":"\ud83d\ude00"}]}`, `{"Amount":5,"amount":"\u0031"}`} {
		f.Add([]byte(s))
	}
	_, allow, item := shop(f, false, number("amount", snapshot.OpLt, 100))
	_, deny, _ := shop(f, true, number("amount", snapshot.OpGe, 100))
	f.Fuzz(func(t *testing.T, args []byte) {
		r := &authz.Request{Args: args}
		a, d := authz.Decide(&allow, item, r), authz.Decide(&deny, item, r)
		if a.Allow != d.Allow || (a.Reason == authz.ArgumentType) != (d.Reason == authz.ArgumentType) {
			t.Fatalf("%q: allow below 100 says %+v, deny from 100 says %+v", args, a, d)
		}
	})
}
