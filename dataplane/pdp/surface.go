package pdp

import (
	"encoding/json"
	"slices"
	"strings"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Surfaces are what a published server offers besides tools, each sorted by name.
type Surfaces struct {
	Prompts, Resources, Templates []Entry
	// PromptItems and ResourceItems are the items of their kinds that the policy speaks of by name: prompts, and patterns of
	// resources.
	PromptItems, ResourceItems []index.ItemID
	// patterns are those of ResourceItems.
	patterns []string
}

// HasResource reports whether an address is approved by itself.
func (s *Server) HasResource(uri string) bool {
	_, found := slices.BinarySearchFunc(s.Resources, uri, func(e Entry, uri string) int { return strings.Compare(e.Name, uri) })
	return found
}

// CoversResource reports whether an approved template, or a pattern that the policy speaks of, has an address.
func (s *Server) CoversResource(uri string) bool {
	for i := range s.Templates {
		if index.Match(globOf(s.Templates[i].Name), uri) {
			return true
		}
	}
	return slices.ContainsFunc(s.patterns, func(p string) bool { return index.Match(p, uri) })
}

// Entry is a prompt, a resource or a resource template.
type Entry struct {
	// Name of a prompt, address of a resource or a template.
	Name string
	// Raw is the object as the upstream sent it.
	Raw json.RawMessage
	// Item decides about a prompt: its own, or that of everything else.
	Item index.ItemID
	// URIs decide about resources and templates: the entry may be shown when one of them may be read. A template has one
	// for each pattern that it has an address in common with.
	URIs []string
}

func newSurfaces(x *index.Index, id index.ServerID, other index.ItemID, cs *snapshotv1.CatalogueServer) Surfaces {
	var s Surfaces
	var patterns []string
	for item, name := range x.Items(id) {
		switch kind, rest := snapshot.KindOf(name); kind {
		case snapshot.ItemPrompt:
			s.PromptItems = append(s.PromptItems, item)
		case snapshot.ItemResource:
			s.ResourceItems = append(s.ResourceItems, item)
			patterns = append(patterns, rest)
		case snapshot.ItemTool, snapshot.ItemRest:
		}
	}
	s.patterns = patterns
	s.Prompts = entries(cs.GetPrompts(), func(e *Entry) {
		item, own := x.Item(id, snapshot.PromptItem(e.Name))
		if e.Item = other; own {
			e.Item = item
		}
	})
	s.Resources = entries(cs.GetResources(), func(e *Entry) { e.URIs = []string{e.Name} })
	s.Templates = entries(cs.GetResourceTemplates(), func(e *Entry) { e.URIs = samples(e.Name, patterns) })
	return s
}

func entries(list []*snapshotv1.CatalogueEntry, decideBy func(*Entry)) []Entry {
	out := make([]Entry, 0, len(list))
	for _, ce := range list {
		e := Entry{Name: ce.GetName(), Raw: ce.GetRaw()}
		decideBy(&e)
		out = append(out, e)
	}
	slices.SortStableFunc(out, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// samples are addresses that a template can be filled in to: one at large, and one within each pattern that it meets.
func samples(template string, patterns []string) []string {
	glob := globOf(template)
	out := []string{strings.ReplaceAll(glob, "*", filler)}
	for _, p := range patterns {
		if s, ok := common(glob, p); ok && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// filler stands for what a caller would fill in.
const filler = "x"

// globOf writes a URI template (RFC 6570) with a star for each expression.
func globOf(template string) string {
	var b strings.Builder
	for {
		before, rest, open := strings.Cut(template, "{")
		b.WriteString(before)
		if !open {
			return b.String()
		}
		_, after, closed := strings.Cut(rest, "}")
		if !closed {
			return b.String() + "{" + rest
		}
		b.WriteByte('*')
		template = after
	}
}

// maxCommon bounds the work for one template and one pattern; beyond it they are taken to have nothing in common, which
// hides at most an entry of a list.
const maxCommon = 1 << 20

// common finds a text that both globs match.
func common(a, b string) (string, bool) {
	if (len(a)+1)*(len(b)+1) > maxCommon {
		return "", false
	}
	type place struct{ i, j int }
	dead := map[place]bool{}
	var find func(i, j int, text []byte) ([]byte, bool)
	find = func(i, j int, text []byte) ([]byte, bool) {
		at := place{i, j}
		if dead[at] {
			return nil, false
		}
		n := len(text)
		var next [][3]int // i, j, byte to write or 0
		switch {
		case i == len(a) && j == len(b):
			return text, true
		case i < len(a) && a[i] == '*' && j < len(b) && b[j] == '*':
			next = [][3]int{{i + 1, j, int(filler[0])}, {i, j + 1, 0}}
		case i < len(a) && a[i] == '*':
			if j < len(b) {
				next = append(next, [3]int{i, j + 1, int(b[j])})
			}
			next = append(next, [3]int{i + 1, j, 0})
		case j < len(b) && b[j] == '*':
			if i < len(a) {
				next = append(next, [3]int{i + 1, j, int(a[i])})
			}
			next = append(next, [3]int{i, j + 1, 0})
		case i < len(a) && j < len(b) && a[i] == b[j]:
			next = [][3]int{{i + 1, j + 1, int(a[i])}}
		}
		for _, s := range next {
			t := text[:n]
			if s[2] != 0 {
				t = append(t, byte(s[2]))
			}
			if out, ok := find(s[0], s[1], t); ok {
				return out, true
			}
		}
		dead[at] = true
		return nil, false
	}
	out, ok := find(0, 0, nil)
	return string(out), ok
}
