package bridge_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

func frame(t testing.TB, body string) *mcp.Message {
	t.Helper()
	m, refusal := mcp.NewFramer(mcp.DefaultLimits()).FrameAnswer([]byte(body))
	if refusal != nil {
		t.Fatal(refusal, body)
	}
	return &m
}

func TestOffersAreWhatTheClientSaid(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]string{
		`{}`:                                        `{}`,
		`{"elicitation":{}}`:                        `{"elicitation":{"form":{}}}`,
		`{"elicitation":{"url":{}}}`:                `{"elicitation":{"url":{}}}`,
		`{"elicitation":true,"roots":null}`:         `{}`,
		`{"roots":{"listChanged":true}}`:            `{"roots":{}}`,
		`{"sampling":{"tools":{},"context":{}}}`:    `{"sampling":{"tools":{},"context":{}}}`,
		`{"sampling":{},"elicitation":{"form":{}}}`: `{"elicitation":{"form":{}},"sampling":{}}`,
	} {
		o := bridge.ParseOffers([]byte(said))
		if got := string(o.Capabilities()); got != want || bridge.ParseWord(o.String()) != o {
			t.Errorf("%s: %s, %q", said, got, o)
		}
	}
	for _, tc := range []struct {
		offers         bridge.Offers
		method, params string
		want           bool
	}{
		{bridge.Form, mcp.MethodElicit, `{}`, true},
		{bridge.Form, mcp.MethodElicit, `{"mode":"url"}`, false},
		{bridge.URL, mcp.MethodElicit, `{"mode":"url"}`, true},
		{bridge.URL, mcp.MethodElicit, `{"mode":"form"}`, false},
		{bridge.Sampling, mcp.MethodSample, `{"tools":[]}`, false},
		{bridge.Sampling | bridge.SamplingTools, mcp.MethodSample, `{"tools":[]}`, true},
		{bridge.Roots, mcp.MethodSample, `{}`, false},
		{bridge.Roots, mcp.MethodRoots, ``, true},
		{^bridge.Offers(0), "tools/call", `{}`, false},
	} {
		if got := tc.offers.Answers(tc.method, []byte(tc.params)); got != tc.want {
			t.Errorf("%s answers %s %s: %v", tc.offers, tc.method, tc.params, got)
		}
	}
}

func TestNoticesAreTaggedForTheStreamTheyGoOn(t *testing.T) {
	t.Parallel()
	const key = `"io.modelcontextprotocol/subscriptionId"`
	for _, tc := range []struct{ body, id, want string }{
		{`{"jsonrpc":"2.0","method":"m"}`, `7`, `{"jsonrpc":"2.0","method":"m","params":{"_meta":{` + key + `:7}}}`},
		{`{"jsonrpc":"2.0","method":"m","params":{ }}`, `"x"`, `{"jsonrpc":"2.0","method":"m","params":{"_meta":{` + key + `:"x"} }}`},
		{`{"params":{"uri":"u","_meta":{` + key + `:1 , "a":1.50}},"jsonrpc":"2.0","method":"m"}`, `2`, `{"params":{"uri":"u","_meta":{` + key + `:2,"a":1.50}},"jsonrpc":"2.0","method":"m"}`},
		{`{"jsonrpc":"2.0","method":"m","params":{"_meta":{"a":1,` + key + `:1}}}`, ``, `{"jsonrpc":"2.0","method":"m","params":{"_meta":{"a":1}}}`},
		{`{"jsonrpc":"2.0","method":"m"}`, ``, `{"jsonrpc":"2.0","method":"m"}`},
	} {
		var id []byte
		if tc.id != "" {
			id = []byte(tc.id)
		}
		if got := string(bridge.Tagged(frame(t, tc.body), id)); got != tc.want {
			t.Errorf("%s\n got %s\nwant %s", tc.body, got, tc.want)
		}
	}
}

func TestC24AStreamIsForSoManyResources(t *testing.T) {
	t.Parallel()
	uris := make([]string, bridge.MaxURIs+1)
	for i := range uris {
		uris[i] = fmt.Sprint("file:///", i)
	}
	for n, want := range map[int]bool{bridge.MaxURIs: true, bridge.MaxURIs + 1: false} {
		list, _ := json.Marshal(uris[:n])
		if w, ok := bridge.ParseWanted([]byte(`{"notifications":{"resourceSubscriptions":` + string(list) + `}}`)); ok != want || ok && len(w.URIs) != n {
			t.Errorf("%d: %v", n, ok)
		}
	}
	for _, bad := range []string{`{}`, `{"notifications":[]}`, `{"notifications":{"resourceSubscriptions":{}}}`, `{"notifications":{"resourceSubscriptions":[1]}}`} {
		if _, ok := bridge.ParseWanted([]byte(bad)); ok {
			t.Error(bad)
		}
	}
}

func TestParkedCallsAreBoundedAndTakenOnce(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	p := bridge.NewParked[string](3, 2, func() time.Time { return now })
	alice, bob := [16]byte{1}, [16]byte{2}
	until := now.Add(time.Minute)
	for i, tc := range []struct {
		owner [16]byte
		want  bool
	}{{alice, true}, {alice, true}, {alice, false}, {bob, true}, {bob, false}} {
		if got := p.Room(tc.owner); got != tc.want || p.Put(bridge.Nonce{byte(i)}, tc.owner, until, fmt.Sprint(i)) != tc.want {
			t.Errorf("%d: %v", i, got)
		}
	}
	never, always := func(string) bool { return false }, func(string) bool { return true }
	if _, found, fit := p.Take(bridge.Nonce{0}, never); !found || fit {
		t.Error("what does not fit was taken")
	}
	if call, _, fit := p.Take(bridge.Nonce{0}, always); !fit || call != "0" {
		t.Error("not taken")
	}
	if _, found, _ := p.Take(bridge.Nonce{0}, always); found {
		t.Error("taken twice")
	}
	now = until
	if _, found, _ := p.Take(bridge.Nonce{1}, always); found {
		t.Error("taken too late")
	}
	if late := p.Overdue(false); len(late) != 2 || p.Len() != 0 || !p.Room(alice) {
		t.Errorf("%v", late)
	}
}

func TestDialoguesAreBoundedAndForgotten(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	d := bridge.NewDialogues(1, func() time.Time { return now })
	d.Of(bridge.Session{1}).SetLevel("info")
	d.Of(bridge.Session{2}).SetLevel("debug")
	if d.Len() != 1 || d.Of(bridge.Session{1}).Level() != "info" || d.Of(bridge.Session{2}).Level() != "" {
		t.Error("there is room for one")
	}
	done := d.Of(bridge.Session{1}).Run([]byte("1"), nil)
	now = now.Add(time.Hour)
	if d.Sweep(time.Minute); d.Len() != 1 {
		t.Error("forgotten while a request runs")
	}
	done()
	if d.Sweep(time.Minute); d.Len() != 0 {
		t.Error("not forgotten")
	}
}

// FuzzTranslations holds what comes out of every translation to being JSON that says what went in.
func FuzzTranslations(f *testing.F) {
	for _, s := range []string{
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","inputResponses":{},"_meta":{"progressToken":1},"requestState":"s"}}`,
		`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"requestState":"s","name":"a","inputResponses":{}}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"a":{"method":"roots/list"}},"requestState":"s"}}`,
		`{"jsonrpc":"2.0","id":1,"result":{ }}`, `{"jsonrpc":"2.0","id":1,"error":{"code":-32002,"message":"m"}}`,
		`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"w"}}`,
		`{"jsonrpc":"2.0","id":1,"error":{"code":-32042,"message":"m","data":{"elicitations":[{"mode":"url","url":"https://x.example"}]}}}`,
		`{"jsonrpc":"2.0","id":1,"result":{"task":{"taskId":"t"},"tasks":{"list":{},"cancel":{}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"m","params":{"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t"}}}}`,
		`{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true,"resourceSubscriptions":["u"]}}}`,
	} {
		f.Add([]byte(s))
	}
	strict, loose := mcp.NewFramer(mcp.DefaultLimits()), mcp.NewFramer(mcp.DefaultLimits())
	f.Fuzz(func(t *testing.T, body []byte) {
		valid := func(what string, out []byte) {
			if !json.Valid(out) {
				t.Fatalf("%s of %s: %s", what, body, out)
			}
		}
		if m, refusal := strict.Frame(body); refusal == nil && m.Kind == mcp.KindRequest && m.Name != "" {
			r := bridge.Rename{At: m.NameValue, Name: `a"b`}
			legacy := bridge.LegacyRequest{Rename: r, ID: []byte(`"w"`)}
			out := legacy.Body(&m)
			valid("the legacy request", out)
			if again, refusal := strict.Frame(out); refusal != nil || again.Name != r.Name || string(again.ID) != `"w"` ||
				string(again.Raw(again.Arguments)) != string(m.Raw(m.Arguments)) || again.RequestState.Present() {
				t.Fatalf("%s became %s: %v", body, out, refusal)
			}
			modern := bridge.ModernRequest{Rename: r, ClientInfo: []byte(`{}`), Offers: bridge.Form, Level: "info"}
			valid("the modern request", modern.Body(&m))
		}
		m, refusal := loose.FrameAnswer(body)
		if refusal != nil {
			return
		}
		caller := bridge.Caller{Era: mcp.EraModern, ID: []byte("9"), Token: []byte("8"), Method: mcp.MethodResourcesRead}
		switch m.Kind {
		case mcp.KindResponse:
			out := caller.Answer(&m)
			valid("the answer", out)
			if asked, err := bridge.URLQuestions(&m); err == nil && asked != nil {
				valid("the round of addresses", bridge.AppendInputRequired(nil, []byte("9"), asked, "s"))
			}
			if asked, state, err := bridge.Questions(&m); err == nil && m.Result.Present() {
				valid("the questions", bridge.AppendInputRequired(nil, []byte("9"), asked, string(state)))
				for i := range asked {
					valid("a question", bridge.AppendQuestion(nil, "q", &asked[i]))
				}
			}
		case mcp.KindNotification:
			if out, theirs := caller.Notice(&m, []byte(`"w"`)); theirs {
				valid("the notice", out)
			}
			valid("the tagged notice", bridge.Tagged(&m, []byte("9")))
			valid("the untagged notice", bridge.Tagged(&m, nil))
		case mcp.KindRequest:
			if w, ok := bridge.ParseWanted(m.Raw(m.Params)); ok {
				valid("the acknowledgement", bridge.AppendAcknowledged(nil, m.ID, &w))
			}
		case mcp.KindInvalid:
		}
		if at, _ := bridge.TaskID(&m); at.Present() {
			valid("the message with another task", bridge.WithText(m.Body, at, `a"b`))
		}
		if m.Kind == mcp.KindResponse && m.Result.Present() && m.Raw(m.Result)[0] == '{' {
			valid("capabilities without a list of tasks", bridge.WithoutTaskList(m.Raw(m.Result)))
		}
		_, _ = bridge.ParseState(body)
	})
}
