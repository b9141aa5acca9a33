package pep_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pep"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// A dialogue is a file in testdata/dialogues. It begins with settings:
//
//	client: modern|legacy     the era of the client
//	offers: {...}             what the client says that it can do
//	upstream: 2025-11-25      the revision of the server
//	path: /mcp/lib            where the client goes; /mcp/lib when it does not say
//	origins: https://a        where questions may lead; nowhere else when it does not say
//	forbidden: sampling       what no server may ask for
//
// and goes on with what happens, in order:
//
//	C body      the client posts it; META stands for the _meta members of a modern request
//	V body      the same, while what it waits on stays what it was; it must be answered with an empty result
//	I pattern   the body of the newest initialize that the server saw
//	U pattern   the next thing that the server sees
//	H name: v   a header of it; "-" for none
//	A event     the server says it on the stream of the newest request it saw; an answer ends the stream
//	O event     the server says it on the newest stream that was opened by GET
//	B id        the server gives the stream of the newest request a place to come back to, at once, and closes it
//	G pattern   the next message that the client gets on its newest request
//	S status    that of the client's newest post
//	Q           the server sees that stream closed
//	X           the client closes its newest request
//	P           the policy is published anew
//	R reason    there is a record with this reason
//	E           nothing more comes on the client's newest request
//	L           the client opens a stream (GET)
//
// In patterns, $name stands for what it stood for before, or for anything without a quote in it.
type dialogue struct {
	t    *testing.T
	g    *gateway
	set  map[string]string
	vars map[string]string

	session  string
	arrivals chan *arrival
	inits    chan string
	newest   *arrival
	stream   *arrival // of the newest request
	own      *arrival // of the newest GET
	post     *posted
}

// arrival is something that the server saw.
type arrival struct {
	body   string
	header http.Header
	method string
	say    chan string // closed when the answer was given
	gone   <-chan struct{}
}

// posted is something that the client sent.
type posted struct {
	status chan int
	got    chan string // closed at the end
	cancel context.CancelFunc
}

const patience = 10 * time.Second

func TestDialoguesAcrossTheEras(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/dialogues/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			play(t, string(text))
		})
	}
}

func play(t *testing.T, text string) {
	t.Helper()
	d := &dialogue{
		t: t, set: map[string]string{"path": "/mcp/lib", "offers": "{}"}, vars: map[string]string{},
		arrivals: make(chan *arrival, 16), inits: make(chan string, 16),
	}
	began := false
	for n, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		key, rest, _ := strings.Cut(line, " ")
		if strings.HasSuffix(key, ":") && len(key) > 2 {
			d.set[strings.TrimSuffix(key, ":")] = strings.TrimSpace(rest)
			continue
		}
		if !began {
			began = true
			d.begin()
		}
		if err := d.step(key, rest); err != nil {
			t.Fatalf("line %d: %s\n%v", n+1, line, err)
		}
	}
}

// begin starts the server and the gateway, and a legacy client's session.
func (d *dialogue) begin() {
	srv := httptest.NewServer(http.HandlerFunc(d.serve))
	d.t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	region := tool{"borrow", `{"name":"borrow","inputSchema":{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}}`, destructive}
	s := catalogueServer("lib", srv.URL+"/mcp", []string{d.set["upstream"]}, region, plainTool("find", read))
	s.Capabilities = []byte(`{"tools":{},"prompts":{},"resources":{"subscribe":true},"completions":{},"logging":{}}`)
	s.Prompts = append(s.Prompts, entry("title", "brief"))
	s.Resources = append(s.Resources, entry("uri", "file:///a.md"))
	s.ResourceTemplates = append(s.ResourceTemplates, entry("uriTemplate", "file:///docs/{name}"))
	d.g = newGateway(d.t, pep.Config{KeepAlive: time.Minute}, nil, s)
	d.g.cat.Settings.Guards = &snapshotv1.Guards{Origins: strings.Fields(d.set["origins"]), Forbidden: strings.Fields(d.set["forbidden"])}
	d.g.policy.Servers[0].Items = append(d.g.policy.Servers[0].Items, snapshot.PromptItem("brief"))
	d.g.publish()
	if d.set["client"] == "legacy" {
		a := d.g.post(d.set["path"], "root", `{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":`+d.set["offers"]+`,"clientInfo":{"name":"t","version":"1"}}}`)
		if d.session = a.header.Get("Mcp-Session-Id"); d.session == "" {
			d.t.Fatalf("initialize: %s", a.body)
		}
	}
}

// serve is the server: it opens sessions by itself and leaves the rest to the file.
func (d *dialogue) serve(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	var m struct {
		ID     json.RawMessage
		Method string
	}
	_ = json.Unmarshal(b, &m)
	switch {
	case m.Method == "initialize":
		d.inits <- string(b)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Mcp-Session-Id", "upstream-session")
		_, _ = fmt.Fprintf(w, `{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{},"logging":{}},"serverInfo":{"name":"lib","version":"1"}}}`, m.ID)
		return
	case m.Method == "notifications/initialized", r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusAccepted)
		return
	}
	a := &arrival{body: string(b), header: r.Header.Clone(), method: r.Method, say: make(chan string, 16), gone: r.Context().Done()}
	d.arrivals <- a
	if r.Method == http.MethodPost && (m.ID == nil || m.Method == "") {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	for {
		select {
		case ev, more := <-a.say:
			if !more {
				return
			}
			_, _ = fmt.Fprintf(w, "data: %s\n\n", ev)
			_ = rc.Flush()
		case <-r.Context().Done():
			return
		}
	}
}

func (d *dialogue) step(key, rest string) error {
	switch key {
	case "C":
		d.send(http.MethodPost, d.fill(rest))
	case "V":
		if a := d.g.post(d.set["path"], "root", rest, "Mcp-Session-Id", d.session); string(a.Result) != "{}" {
			return fmt.Errorf("got %s", a.body)
		}
	case "L":
		d.send(http.MethodGet, "")
	case "X":
		d.post.cancel()
	case "Q":
		return receive(d.stream.gone, func(struct{}) error { return nil })
	case "P":
		if rest != "" {
			d.g.policy.Grants = append(d.g.policy.Grants, snapshot.Grant{ID: "deny-" + rest, Subject: "user:root", Server: "lib", Tool: rest, Deny: true})
		}
		d.g.publish()
	case "I":
		return receive(d.inits, func(body string) error { return d.match(rest, body) })
	case "U":
		return receive(d.arrivals, func(a *arrival) error {
			if d.newest = a; strings.Contains(a.body, `"method"`) && strings.Contains(a.body, `"id"`) || a.method == http.MethodGet {
				d.stream = a
			}
			if a.method == http.MethodGet {
				d.own = a
			}
			return d.match(rest, strings.TrimSpace(a.method+" "+a.body))
		})
	case "H":
		name, want, _ := strings.Cut(rest, ": ")
		got := d.newest.header.Get(name)
		if got == "" {
			got = "-"
		}
		return d.match(want, got)
	case "A":
		d.stream.say <- d.fill(rest)
		if !strings.Contains(rest, `"method"`) || strings.Contains(rest, `"inputRequests"`) {
			close(d.stream.say)
		}
	case "O":
		d.own.say <- d.fill(rest)
	case "B":
		d.stream.say <- "\nid: " + rest + "\nretry: 100"
		close(d.stream.say)
	case "G":
		return receive(d.post.got, func(m string) error { return d.match(rest, m) })
	case "E":
		select {
		case m, more := <-d.post.got:
			if more {
				return fmt.Errorf("the client got %s", m)
			}
		case <-time.After(patience):
			return fmt.Errorf("the stream did not end")
		}
	case "R":
		until(d.t, "a record of "+rest, func() bool {
			return slices.ContainsFunc(d.g.book.all(), func(r *auditv1.Record) bool { return r.GetReason() == rest })
		})
	case "S":
		return receive(d.post.status, func(status int) error { return d.match(rest, fmt.Sprint(status)) })
	default:
		return fmt.Errorf("no such step")
	}
	return nil
}

func receive[T any](from <-chan T, see func(T) error) error {
	select {
	case v, more := <-from:
		if _, signal := any(v).(struct{}); !more && !signal {
			return fmt.Errorf("nothing more came")
		}
		return see(v)
	case <-time.After(patience):
		return fmt.Errorf("waited in vain")
	}
}

var variable = regexp.MustCompile(`\\?\$[a-z]+[0-9]*`)

func (d *dialogue) fill(s string) string {
	s = strings.ReplaceAll(s, "META", `"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":`+d.set["offers"]+`}`)
	return variable.ReplaceAllStringFunc(s, func(v string) string { return d.vars[strings.TrimLeft(v, `\$`)] })
}

func (d *dialogue) match(pattern, got string) error {
	var names []string
	re, err := regexp.Compile("^" + variable.ReplaceAllStringFunc(regexp.QuoteMeta(pattern), func(v string) string {
		name := strings.TrimLeft(v, `\$`)
		if known, ok := d.vars[name]; ok {
			return regexp.QuoteMeta(known)
		}
		names = append(names, name)
		return `([^"]+)`
	}) + "$")
	if err != nil {
		return err
	}
	m := re.FindStringSubmatch(got)
	if m == nil {
		return fmt.Errorf("got  %s", got)
	}
	for i, name := range names {
		d.vars[name] = m[i+1]
	}
	return nil
}

// send posts as the client, or opens its stream, and reads what comes back.
func (d *dialogue) send(method, body string) {
	var m struct {
		Method string
		Params struct {
			Name, URI string
			Arguments struct{ Region string }
		}
	}
	_ = json.Unmarshal([]byte(body), &m)
	header := []string{"Mcp-Session-Id", d.session, "MCP-Protocol-Version", "2025-11-25"}
	if d.set["client"] == "modern" {
		header = []string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", m.Method, "Mcp-Name", m.Params.Name + m.Params.URI, "Mcp-Param-Region", m.Params.Arguments.Region}
	}
	ctx, cancel := context.WithCancel(d.t.Context())
	p := &posted{status: make(chan int, 1), got: make(chan string, 64), cancel: cancel}
	if method == http.MethodPost && (!strings.Contains(body, `"method"`) || !strings.Contains(body, `"id"`)) {
		// A response or a notification is not what the client waits on.
		defer func(before *posted) { p.got, p.cancel = before.got, before.cancel }(d.post)
	}
	d.post = p
	got := p.got
	req := d.g.request(ctx, method, d.set["path"], "root", body, header...)
	if method == http.MethodGet {
		req.Header.Set("Accept", "text/event-stream")
	}
	done := make(chan struct{})
	d.t.Cleanup(func() {
		cancel()
		<-done
	})
	go func() {
		defer close(done)
		defer close(got)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		p.status <- resp.StatusCode
		sc := bufio.NewScanner(resp.Body)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			if line := strings.TrimPrefix(sc.Text(), "data: "); strings.HasPrefix(line, "{") {
				got <- line
			}
		}
	}()
}
