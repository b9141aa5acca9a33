package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"github.com/mcpvault/mcpvault/kit/problem"
)

func newScanner() *Scanner {
	return NewScanner(http.DefaultTransport.(*http.Transport), nil, "test", slog.New(slog.DiscardHandler))
}

// upstream is a server that answers exactly the bytes it is given.
type upstream struct {
	// revisions it accepts in initialize; modern when it knows server/discover.
	revisions []string
	modern    bool
	// pages of tools/list: the text of each tools array.
	pages []string
	// lists are pages of other methods, each the text of a whole result.
	lists map[string][]string
	sse   bool
	caps  string

	mu       sync.Mutex
	requests []string
	ended    int
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		u.mu.Lock()
		u.ended++
		u.mu.Unlock()
		return
	}
	body, _ := io.ReadAll(r.Body)
	var req struct {
		ID     json.RawMessage
		Method string
		Params struct {
			ProtocolVersion string
			Cursor          string
			Meta            map[string]json.RawMessage `json:"_meta"`
		}
	}
	if json.Unmarshal(body, &req) != nil {
		http.Error(w, "what?", http.StatusBadRequest)
		return
	}
	u.mu.Lock()
	u.requests = append(u.requests, req.Method+" "+r.Header.Get("Mcp-Protocol-Version")+" "+r.Header.Get("Mcp-Method"))
	u.mu.Unlock()
	caps := u.caps
	if caps == "" {
		caps = `{"tools":{}}`
	}
	switch req.Method {
	case "server/discover":
		if !u.modern || req.Params.Meta[mcp.MetaKeyProtocolVersion] == nil {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}`, req.ID)
			return
		}
		u.answer(w, req.ID, `{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":`+caps+`,"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"raw","version":"9"}}}`)
	case "initialize":
		if len(u.revisions) == 0 {
			u.answerError(w, req.ID, -32601)
			return
		}
		v := u.revisions[0]
		if slices.Contains(u.revisions, req.Params.ProtocolVersion) {
			v = req.Params.ProtocolVersion
		}
		w.Header().Set("Mcp-Session-Id", "s-"+v)
		u.answer(w, req.ID, `{"protocolVersion":"`+v+`","capabilities":`+caps+`,"serverInfo":{"name":"raw","version":"9"},"instructions":"be nice"}`)
	case "notifications/initialized":
		w.WriteHeader(http.StatusAccepted)
	case "tools/list":
		page := 0
		if req.Params.Cursor != "" {
			fmt.Sscan(req.Params.Cursor, &page)
		}
		next := ""
		if page+1 < len(u.pages) {
			next = fmt.Sprintf(`,"nextCursor":"%d"`, page+1)
		}
		u.answer(w, req.ID, `{"tools":`+u.pages[page]+next+`}`)
	default:
		pages := u.lists[req.Method]
		if pages == nil {
			u.answerError(w, req.ID, -32601)
			return
		}
		page := 0
		if req.Params.Cursor != "" {
			fmt.Sscan(req.Params.Cursor, &page)
		}
		u.answer(w, req.ID, pages[page])
	}
}

func (u *upstream) answerError(w http.ResponseWriter, id json.RawMessage, code int) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"error":{"code":%d,"message":"no"}}`, id, code)
}

func (u *upstream) answer(w http.ResponseWriter, id json.RawMessage, result string) {
	msg := `{"jsonrpc":"2.0","id":` + string(id) + `,"result":` + result + `}`
	if u.sse {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{}}\n\nevent: message\ndata: %s\n\n", msg)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, msg)
}

const awkward = `{"name": "refund",  "inputSchema":{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object","oneOf":[{"required":["a"]}],` +
	`"properties":{"a":{"type":"integer","maximum":9007199254740993123}},"x-vendor":{"\u00e9":1.50}}, "x-acme":{"keep":"me <&>"}, "annotations":{}}`

func TestScanKeepsToolsByteForByte(t *testing.T) {
	t.Parallel()
	for _, u := range []*upstream{
		{revisions: []string{"2025-11-25"}}, {revisions: []string{"2025-11-25"}, sse: true}, {modern: true}, {modern: true, sse: true},
	} {
		u.pages = []string{`[` + awkward + `]`, `[{"name":"balance"}]`}
		srv := httptest.NewServer(u)
		defer srv.Close()
		s, err := newScanner().Scan(t.Context(), srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Tools) != 2 || s.Tools[0].Name != "balance" || string(s.Tools[1].Raw) != awkward {
			t.Errorf("got %s", s.Tools)
		}
	}
}

func TestScanKeepsPromptsAndResourcesByteForByte(t *testing.T) {
	t.Parallel()
	const review, brief = `{"name": "review", "arguments":[{"name":"pr","required":true}]}`, `{"name":"brief", "x":1.50}`
	const page, template = `{"uri": "file:///pub/a", "name":"a"}`, `{"uriTemplate":"file:///pub/{id}","name":"t"}`
	for _, u := range []*upstream{{revisions: []string{"2025-11-25"}}, {modern: true, sse: true}} {
		u.pages, u.caps = []string{`[]`}, `{"tools":{},"prompts":{},"resources":{}}`
		u.lists = map[string][]string{
			"prompts/list":             {`{"prompts":[` + review + `],"nextCursor":"1"}`, `{"prompts":[` + brief + `]}`},
			"resources/list":           {`{"resources":[` + page + `]}`},
			"resources/templates/list": {`{"resourceTemplates":[` + template + `]}`},
		}
		srv := httptest.NewServer(u)
		defer srv.Close()
		s, err := newScanner().Scan(t.Context(), srv.URL)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Prompts) != 2 || s.Prompts[0].Name != "brief" || string(s.Prompts[0].Raw) != brief || string(s.Prompts[1].Raw) != review {
			t.Errorf("prompts: %s", s.Prompts)
		}
		if len(s.Resources) != 1 || s.Resources[0].Name != "file:///pub/a" || string(s.Resources[0].Raw) != page {
			t.Errorf("resources: %s", s.Resources)
		}
		if len(s.Templates) != 1 || s.Templates[0].Name != "file:///pub/{id}" || string(s.Templates[0].Raw) != template {
			t.Errorf("templates: %s", s.Templates)
		}
		b, err := s.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if again, err := DecodeSurface(b); err != nil || digestOf(t, again) != digestOf(t, s) || len(again.Prompts) != 2 {
			t.Errorf("decoded %+v, %v", again, err)
		}
	}
}

func TestScanAsksForWhatTheServerSaysItHasOnly(t *testing.T) {
	t.Parallel()
	u := &upstream{modern: true, pages: []string{`[]`}}
	srv := httptest.NewServer(u)
	defer srv.Close()
	if _, err := newScanner().Scan(t.Context(), srv.URL); err != nil {
		t.Fatal(err)
	}
	for _, r := range u.requests {
		if strings.HasPrefix(r, "prompts/") || strings.HasPrefix(r, "resources/") {
			t.Errorf("asked %s", r)
		}
	}
	// Resources do not promise templates; prompts that were promised must be there.
	bare := &upstream{modern: true, pages: []string{`[]`}, caps: `{"tools":{},"resources":{}}`, lists: map[string][]string{"resources/list": {`{"resources":[]}`}}}
	srv2 := httptest.NewServer(bare)
	defer srv2.Close()
	if _, err := newScanner().Scan(t.Context(), srv2.URL); err != nil {
		t.Errorf("without templates: %v", err)
	}
	broken := &upstream{modern: true, pages: []string{`[]`}, caps: `{"tools":{},"prompts":{}}`}
	srv3 := httptest.NewServer(broken)
	defer srv3.Close()
	if _, err := newScanner().Scan(t.Context(), srv3.URL); problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), "prompts/list") {
		t.Errorf("promised prompts that are not there: %v", err)
	}
}

func TestScanRefusesPromptsAndResourcesThatCannotBeApproved(t *testing.T) {
	t.Parallel()
	many := strings.TrimSuffix(strings.Repeat(`{"name":"p"},`, MaxEntries+1), ",")
	for _, c := range []struct{ method, result, want string }{
		{"prompts/list", `{"prompts":[{"name":"a"},{"name":"a"}]}`, "lists the prompt a twice"},
		{"prompts/list", `{"prompts":[{"title":"a"}]}`, "a prompt has no name"},
		{"prompts/list", `{"prompts":[{"name":"*other"}]}`, "not accepted"},
		{"prompts/list", `{"prompts":[{"name":"a","Description":"x"}]}`, `some clients read as "description"`},
		{"prompts/list", `{"prompts":[` + many + `]}`, "more than 1000 prompts"},
		{"prompts/list", `{"prompts":{}}`, "prompt list does not parse"},
		{"prompts/list", `{"prompts":[],"nextCursor":"0"}`, "never ends"},
		{"resources/list", `{"resources":[{"name":"a"}]}`, "a resource has no uri"},
		{"resources/list", `{"resources":[{"uri":"a:\u0007"}]}`, "a resource has no uri"},
		{"resources/templates/list", `{"resourceTemplates":[{"uri":"a:b"}]}`, "has no uriTemplate"},
		{"resources/templates/list", `{}`, "resource template list does not parse"},
	} {
		u := &upstream{modern: true, pages: []string{`[]`}, caps: `{"tools":{},"prompts":{},"resources":{}}`, lists: map[string][]string{
			"prompts/list": {`{"prompts":[]}`}, "resources/list": {`{"resources":[]}`}, "resources/templates/list": {`{"resourceTemplates":[]}`},
		}}
		u.lists[c.method] = []string{c.result}
		srv := httptest.NewServer(u)
		_, err := newScanner().Scan(t.Context(), srv.URL)
		srv.Close()
		if problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.60s: got %.200v, want %q", c.method, c.result, err, c.want)
		}
	}
}

func TestScanFindsEveryRevisionAndUsesTheNewest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		u    *upstream
		want []string
		list string
	}{
		"both eras": {&upstream{modern: true, revisions: []string{"2025-11-25", "2025-06-18"}}, []string{"2026-07-28", "2025-11-25", "2025-06-18"}, "tools/list 2026-07-28 tools/list"},
		"modern":    {&upstream{modern: true}, []string{"2026-07-28"}, "tools/list 2026-07-28 tools/list"},
		"old only":  {&upstream{revisions: []string{"2025-06-18"}}, []string{"2025-06-18"}, "tools/list 2025-06-18 "},
		"legacy":    {&upstream{revisions: []string{"2025-11-25", "2025-06-18"}}, []string{"2025-11-25", "2025-06-18"}, "tools/list 2025-11-25 "},
	} {
		c.u.pages = []string{`[]`}
		srv := httptest.NewServer(c.u)
		s, err := newScanner().Scan(t.Context(), srv.URL)
		srv.Close()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !slices.Equal(s.ProtocolVersions, c.want) {
			t.Errorf("%s: got %v", name, s.ProtocolVersions)
		}
		if !slices.Contains(c.u.requests, c.list) {
			t.Errorf("%s: %q not in %q", name, c.list, c.u.requests)
		}
		if c.u.ended < len(c.u.revisions) {
			t.Errorf("%s: %d of %d sessions were ended", name, c.u.ended, len(c.u.revisions))
		}
	}
}

func TestScanRefusesWhatCannotBeApproved(t *testing.T) {
	t.Parallel()
	many := `[{"name":"t0"}` + strings.Repeat(`,{"name":"t"}`, MaxTools) + `]`
	for pages, want := range map[string]string{
		`[{"name":"a"},{"name":"a"}]`:                   "lists the tool a twice",
		`[{"name":""}]`:                                 "empty name",
		`[{"title":"x"}]`:                               "has no name",
		`[{"name":"a b"}]`:                              "not accepted",
		`[{"name":"*other"}]`:                           "not accepted",
		`[{"name":"` + strings.Repeat("x", 200) + `"}]`: "200 bytes long",
		`["x"]`:                     "not an object",
		`{}`:                        "does not parse",
		`[{"name":"a","name":"b"}]`: `"name" appears twice`,
		`[{"name":"a","Name":"b"}]`: `some clients read as "name"`,
		many:                        "more than 1000 tools",
		`[{"name":"a","x":"` + strings.Repeat("y", 1<<20) + `"}]`:        "at most 1048576 are accepted",
		`[{"name":"a","x":"` + strings.Repeat("y", MaxScanBytes) + `"}]`: "larger than 8 MiB",
	} {
		srv := httptest.NewServer(&upstream{modern: true, pages: []string{pages}})
		_, err := newScanner().Scan(t.Context(), srv.URL)
		srv.Close()
		if problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: got %.300v, want %q", pages, err, want)
		}
	}
	loop := &upstream{modern: true}
	loop.pages = slices.Repeat([]string{`[]`}, 3000)
	srv := httptest.NewServer(loop)
	defer srv.Close()
	if _, err := newScanner().Scan(t.Context(), srv.URL); err == nil || !strings.Contains(err.Error(), "never ends") {
		t.Errorf("endless list: %v", err)
	}
}

func TestScanSaysWhyAServerCannotBeRead(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	if _, err := newScanner().Scan(t.Context(), gone.URL); problem.CodeOf(err) != problem.Unavailable {
		t.Errorf("a server that is gone: %v", err)
	}
	for status, want := range map[int]problem.Code{http.StatusUnauthorized: problem.Denied, http.StatusFound: problem.Unavailable, http.StatusInternalServerError: problem.Unavailable} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://169.254.169.254/")
			w.WriteHeader(status)
		}))
		_, err := newScanner().Scan(t.Context(), srv.URL)
		srv.Close()
		if problem.CodeOf(err) != want {
			t.Errorf("status %d: %v (%s)", status, err, problem.CodeOf(err))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	srv := httptest.NewServer(&upstream{modern: true, pages: []string{`[]`}})
	defer srv.Close()
	if _, err := newScanner().Scan(ctx, srv.URL); problem.CodeOf(err) != problem.Unavailable {
		t.Errorf("cancelled: %v", err)
	}
}

func TestScanReadsAServerOfTheLibraryInBothEras(t *testing.T) {
	t.Parallel()
	m := server.NewMCPServer("demo", "1.0", server.WithToolCapabilities(true))
	m.AddTool(mcp.NewTool("echo", mcp.WithString("message", mcp.Required())), nil)
	srv := httptest.NewServer(server.NewStreamableHTTPServer(m))
	defer srv.Close()
	s, err := newScanner().Scan(t.Context(), srv.URL+"/mcp")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Tools) != 1 || s.Tools[0].Name != "echo" || !slices.Contains(s.ProtocolVersions, "2025-11-25") {
		t.Errorf("got %v %s", s.ProtocolVersions, s.Tools)
	}
	if again, err := newScanner().Scan(t.Context(), srv.URL+"/mcp"); err != nil || digestOf(t, again) != digestOf(t, s) {
		t.Errorf("the same server scanned twice: %v", err)
	}
}

func digestOf(t *testing.T, s *Surface) string {
	t.Helper()
	d, err := s.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestDigestCoversWhatAModelIsShown(t *testing.T) {
	t.Parallel()
	base := Surface{URL: "u", Tools: []Tool{{"a", []byte(`{"name":"a"}`)}}, ServerInfo: []byte("{}"), Capabilities: []byte("{}"), Instructions: "i"}
	seen := map[string]string{digestOf(t, &base): "base"}
	for what, change := range map[string]func(*Surface){
		"instructions": func(s *Surface) { s.Instructions = "" },
		"tool":         func(s *Surface) { s.Tools = []Tool{{"a", []byte(`{"name":"a","title":"x"}`)}} },
		"tools":        func(s *Surface) { s.Tools = nil },
		"prompts":      func(s *Surface) { s.Prompts = []Entry{{"a", []byte(`{"name":"a"}`)}} },
		"resources":    func(s *Surface) { s.Resources = []Entry{{"a", []byte(`{"name":"a"}`)}} },
		"templates":    func(s *Surface) { s.Templates = []Entry{{"a", []byte(`{"name":"a"}`)}} },
	} {
		s := base
		change(&s)
		if other, ok := seen[digestOf(t, &s)]; ok {
			t.Errorf("%s has the digest of %s", what, other)
		}
		seen[digestOf(t, &s)] = what
	}
	same := base
	same.ProtocolVersions = []string{"2026-07-28"}
	same.ServerInfo = []byte(`{"version":"2"}`)
	if digestOf(t, &same) != digestOf(t, &base) {
		t.Error("a new protocol revision is taken for another surface")
	}
	b, err := base.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeSurface(b); err != nil || digestOf(t, got) != digestOf(t, &base) {
		t.Errorf("decoded %+v, %v", got, err)
	}
}

func FuzzAddTool(f *testing.F) {
	f.Add([]byte(awkward))
	f.Add([]byte(`{"name":"a","Name":"b"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := &Surface{}
		if s.addTool(raw) != nil {
			return
		}
		if !json.Valid(s.Tools[0].Raw) || checkToolName(s.Tools[0].Name) != nil {
			t.Fatalf("accepted %q as %q", raw, s.Tools[0].Name)
		}
		hint(raw)
		description(raw)
	})
}

func FuzzAddEntry(f *testing.F) {
	f.Add(0, []byte(`{"name":"a","Name":"b"}`))
	f.Add(1, []byte(`{"uri":"file:///a"}`))
	f.Add(2, []byte(`{"uriTemplate":"file:///{a}"}`))
	f.Fuzz(func(t *testing.T, i int, raw []byte) {
		k := kinds()[uint(i)%3]
		s := &Surface{}
		if k.add(s, raw) != nil {
			return
		}
		if e := (*k.of(s))[0]; !json.Valid(e.Raw) || e.Name == "" {
			t.Fatalf("accepted %q as %q", raw, e.Name)
		}
		if k.add(s, raw) == nil {
			t.Fatalf("accepted %q twice", raw)
		}
	})
}
