package access

import (
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// thing is what somebody may use of a server, and the items that decide about it.
type thing struct {
	kind  snapshot.ItemKind
	name  string
	items []index.ItemID
}

// find reads what a person calls something: TOOL, prompt:NAME or resource:URI. It reports false for a tool that does not
// exist; prompts and resources that the policy does not name are like the rest of their server.
func (v *view) find(srv index.ServerID, word string) (thing, bool) {
	x := v.index
	kind, name, _ := strings.Cut(word, ":")
	switch {
	case kind == "prompt" && name != "":
		item, ok := x.Item(srv, snapshot.PromptItem(name))
		if !ok {
			item, ok = x.Item(srv, snapshot.ItemOther)
		}
		return thing{snapshot.ItemPrompt, name, []index.ItemID{item}}, ok
	case kind == "resource" && name != "":
		return thing{snapshot.ItemResource, name, slices.Collect(x.Resources(srv, name))}, true
	case kind == "tool" && name != "":
		word = name
	}
	item, ok := x.Item(srv, word)
	k, name := snapshot.KindOf(word)
	return thing{k, name, []index.ItemID{item}}, ok
}

// word is how the thing is named in a target.
func (t thing) word() string {
	if t.kind == snapshot.ItemTool || t.kind == snapshot.ItemRest {
		return t.name
	}
	return t.kind.String() + ":" + t.name
}

func (t thing) verb() string {
	switch t.kind {
	case snapshot.ItemTool:
		return "call"
	case snapshot.ItemResource:
		return "read"
	case snapshot.ItemPrompt, snapshot.ItemRest:
	}
	return "use"
}

// quoted makes one word for a shell of what needs it.
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:@", r)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return quote(s)
	}
	return s
}
