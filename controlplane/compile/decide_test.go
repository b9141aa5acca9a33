package compile

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// TestRowsDecideWhatTheFileSays takes rows the whole way: compiled, opened as a cell does, decided. A line of the file is
//
//	REASON PRINCIPAL SERVER/ITEM [at=TIME] [ip=ADDRESS] [region=REGION] [actor=NAME] [args=JSON]
//
// The time is Wednesday 2026-07-01 12:00 UTC unless the line says.
func TestRowsDecideWhatTheFileSays(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/decide/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, path := range files {
		ar, in := load(t, path)
		out, err := Compile(in)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		x, err := index.Open(out.Index)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		lines := 0
		for line := range strings.Lines(string(ar.Files[1].Data)) {
			if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			lines++
			want, question, _ := strings.Cut(line, " ")
			if got := ask(t, x, question); got != want {
				t.Errorf("%s: %s: got %s, want %s", path, question, got, want)
			}
		}
		if lines < 10 {
			t.Errorf("%s: only %d decisions", path, lines)
		}
	}
}

// ask decides one line without its verdict.
func ask(t *testing.T, x *index.Index, question string) string {
	t.Helper()
	words := strings.Fields(question)
	req := &authz.Request{NowMS: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC).UnixMilli()}
	for _, w := range words[2:] {
		key, value, _ := strings.Cut(w, "=")
		var err error
		switch key {
		case "at":
			var at time.Time
			at, err = time.Parse(time.RFC3339, value)
			req.NowMS = at.UnixMilli()
		case "ip":
			req.IP, err = netip.ParseAddr(value)
		case "region":
			req.Region = value
		case "actor":
			req.Actor = value
		case "args":
			req.Args = []byte(value)
		default:
			t.Fatalf("%s: what is %s?", question, key)
		}
		if err != nil {
			t.Fatalf("%s: %v", question, err)
		}
	}
	p, ok := x.Principal(words[0])
	if !ok {
		t.Fatalf("%s: no such principal", question)
	}
	server, item, _ := strings.Cut(words[1], "/")
	srv, ok := x.Server(server)
	if !ok {
		t.Fatalf("%s: no such server", question)
	}
	view := x.View(p, srv)
	if uri, ok := strings.CutPrefix(item, "resource:"); ok {
		return authz.DecideResource(&view, uri, req).Reason.String()
	}
	if prompt, ok := strings.CutPrefix(item, "prompt:"); ok {
		item = snapshot.PromptItem(prompt)
	}
	id, ok := x.Item(srv, item)
	if !ok {
		t.Fatalf("%s: no such item", question)
	}
	return authz.Decide(&view, id, req).Reason.String()
}
