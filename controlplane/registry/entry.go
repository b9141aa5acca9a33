package registry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// kind is one of the lists of a server besides its tools.
type kind struct {
	// capability announces the list; method reads it, member holds it in the answer, and name names an element of it.
	capability, method, member, name, noun string
	of                                     func(*Surface) *[]Entry
}

// kinds are the lists that are pinned besides the tools.
func kinds() []kind {
	return []kind{
		{"prompts", "prompts/list", "prompts", "name", "prompt", func(s *Surface) *[]Entry { return &s.Prompts }},
		{"resources", "resources/list", "resources", "uri", "resource", func(s *Surface) *[]Entry { return &s.Resources }},
		{"resources", "resources/templates/list", "resourceTemplates", "uriTemplate", "resource template", func(s *Surface) *[]Entry { return &s.Templates }},
	}
}

// add reads one element of the list.
func (k kind) add(s *Surface, raw json.RawMessage) error {
	raw, members, err := readObject(k.noun, raw, "name", "title", "description", "arguments", "uri", "uriTemplate", "mimeType", "annotations")
	if err != nil {
		return err
	}
	var name string
	if json.Unmarshal(members[k.name], &name) != nil || snapshot.CheckName(name) != nil {
		return badSurface(fmt.Sprintf("a %s has no %s that is accepted: at most %d bytes of text without control characters", k.noun, k.name, snapshot.MaxName))
	}
	if k.name == "name" {
		// A prompt is named in a request, like a tool.
		if err := checkToolName(name); err != nil {
			return err
		}
	}
	list := k.of(s)
	at, found := slices.BinarySearchFunc(*list, name, func(e Entry, n string) int { return cmp.Compare(e.Name, n) })
	if found {
		return badSurface(fmt.Sprintf("it lists the %s %s twice", k.noun, name))
	}
	*list = slices.Insert(*list, at, Entry{Name: name, Raw: bytes.Clone(raw)})
	return nil
}

func pinned(list []Entry) []snapshot.SurfaceTool {
	out := make([]snapshot.SurfaceTool, 0, len(list))
	for _, e := range list {
		out = append(out, snapshot.SurfaceTool(e))
	}
	return out
}

func catalogued(list []Entry) []*snapshotv1.CatalogueEntry {
	out := make([]*snapshotv1.CatalogueEntry, 0, len(list))
	for _, e := range list {
		out = append(out, &snapshotv1.CatalogueEntry{Name: e.Name, Raw: e.Raw})
	}
	return out
}

func entries(list []*snapshotv1.CatalogueEntry) []Entry {
	var out []Entry
	for _, e := range list {
		out = append(out, Entry{e.GetName(), e.GetRaw()})
	}
	return out
}

// showEntries shows a list and how it differs from the one that is published; nothing differs while nothing is.
func showEntries(list []Entry, published *Surface, of func(*Surface) *[]Entry) []*adminv1.SurfaceEntry {
	diff, old := map[string]string{}, map[string][]byte{}
	if published != nil {
		for _, e := range *of(published) {
			old[e.Name] = e.Raw
		}
		for _, e := range list {
			compare(diff, old, e.Name, e.Raw)
		}
	}
	var out []*adminv1.SurfaceEntry
	for _, e := range list {
		out = append(out, &adminv1.SurfaceEntry{Name: e.Name, Description: description(e.Raw), Raw: e.Raw, Change: diff[e.Name]})
	}
	for name := range removed(map[string]string{}, old) {
		out = append(out, &adminv1.SurfaceEntry{Name: name, Change: "removed"})
	}
	slices.SortStableFunc(out, func(a, b *adminv1.SurfaceEntry) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out
}
