package access

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// TestAReportSaysWhatDecisionsCanBe: who is let in was said to be able to, and who always can is always let in.
func TestAReportSaysWhatDecisionsCanBe(t *testing.T) {
	t.Parallel()
	usable, always := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		p := snapshottest.Policies().Draw(t, "policy")
		raw, err := builder.Build(p)
		if err != nil {
			t.Fatalf("build: %v", err)
		}
		x, err := index.Open(raw)
		if err != nil {
			t.Fatalf("open: %v", err)
		}
		for range 30 {
			c := snapshottest.Calls(p, true).Draw(t, "call")
			r := &reporter{view: &view{index: x}, nowMS: c.Request.NowMS - rapid.Int64Range(0, 3).Draw(t, "earlier"), pages: map[int]*standing{}}
			pid, _ := x.Principal(c.Principal)
			srv, _ := x.Server(c.Server)
			v := x.View(pid, srv)
			word := c.Item
			switch kind, name := snapshot.KindOf(c.Item); kind {
			case snapshot.ItemResource:
				word = "resource:" + c.URI
			case snapshot.ItemPrompt:
				word = "prompt:" + name
			case snapshot.ItemTool, snapshot.ItemRest:
			}
			what, ok := r.view.find(srv, word)
			if !ok || what.kind == snapshot.ItemResource && !authz.Canonical(c.URI) || v.Disabled() {
				continue
			}
			d := authz.Decide(&v, what.items[0], &c.Request)
			if what.kind == snapshot.ItemResource {
				d = authz.DecideResource(&v, c.URI, &c.Request)
			}
			got := r.verdict(&v, what)
			if d.Allow && !got.usable || got.always && (!d.Allow || !got.usable) {
				t.Fatalf("%+v: decided %+v, reported %+v", c, d, got)
			}
			if got.usable {
				usable++
			}
			if got.always {
				always++
			}
		}
	})
	if usable < 100 || always < 20 || always == usable {
		t.Errorf("%d usable, %d always: too few to say anything", usable, always)
	}
}
