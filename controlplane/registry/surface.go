package registry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/schema"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/shard"
)

// MaxToolName is the longest tool name in bytes: what the protocol advises.
const MaxToolName = 128

// Surface is what a server advertises: everything that a caller or a model is shown.
type Surface struct {
	URL string
	// Tools are sorted by name; each raw object is what the server sent, byte for byte.
	Tools []Tool
	// Prompts by name, Resources by URI, Templates by URI template, sorted too.
	Prompts, Resources, Templates []Entry
	// ServerInfo and Capabilities are raw JSON objects.
	ServerInfo, Capabilities []byte
	Instructions             string
	// ProtocolVersions the server was seen to speak, newest first. Not part of what is hashed: a server that learns a new
	// revision has not changed its tools.
	ProtocolVersions []string
	// remote names the tools whose input schemas refer to something outside of themselves.
	remote []string
}

// Tool is one tool of a surface.
type Tool struct {
	Name string
	Raw  []byte
}

// Entry is a prompt, a resource or a resource template of a surface.
type Entry struct {
	Name string
	Raw  []byte
}

// Digest identifies the version: what a model is shown, whatever the order and the white space of its JSON. The address is
// that of the server's row and never changes; the server's own name and number change without any change of its tools.
func (s *Surface) Digest() (snapshot.Digest, error) {
	shown := snapshot.Surface{Instructions: s.Instructions}
	for _, t := range s.Tools {
		shown.Tools = append(shown.Tools, snapshot.SurfaceTool{Name: t.Name, Raw: t.Raw})
	}
	shown.Prompts, shown.Resources, shown.Templates = pinned(s.Prompts), pinned(s.Resources), pinned(s.Templates)
	d, err := shown.Digest()
	if err != nil {
		return d, badSurface(err.Error())
	}
	return d, nil
}

// Encode is the form in which a surface is stored and compiled.
func (s *Surface) Encode() ([]byte, error) {
	m := &snapshotv1.CatalogueServer{Url: s.URL, ServerInfo: s.ServerInfo, Capabilities: s.Capabilities, Instructions: s.Instructions}
	for _, t := range s.Tools {
		m.Tools = append(m.Tools, &snapshotv1.CatalogueTool{Name: t.Name, Raw: t.Raw})
	}
	m.Prompts, m.Resources, m.ResourceTemplates = catalogued(s.Prompts), catalogued(s.Resources), catalogued(s.Templates)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode surface: %w", err)
	}
	return b, nil
}

// DecodeSurface reads what Encode wrote.
func DecodeSurface(b []byte) (*Surface, error) {
	m := &snapshotv1.CatalogueServer{}
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("decode surface: %w", err)
	}
	s := &Surface{URL: m.GetUrl(), ServerInfo: m.GetServerInfo(), Capabilities: m.GetCapabilities(), Instructions: m.GetInstructions()}
	for _, t := range m.GetTools() {
		s.Tools = append(s.Tools, Tool{t.GetName(), t.GetRaw()})
	}
	s.Prompts, s.Resources, s.Templates = entries(m.GetPrompts()), entries(m.GetResources()), entries(m.GetResourceTemplates())
	return s, nil
}

// Names lists the tools, or the prompts.
func (s *Surface) Names(kind snapshot.ItemKind) []string {
	var names []string
	if kind == snapshot.ItemPrompt {
		for _, p := range s.Prompts {
			names = append(names, p.Name)
		}
		return names
	}
	for _, t := range s.Tools {
		names = append(names, t.Name)
	}
	return names
}

// Schemas are the tools' schemas by name, for conditions.
func (s *Surface) Schemas(server string) map[string]policy.Schema {
	out := make(map[string]policy.Schema, len(s.Tools))
	for _, t := range s.Tools {
		out[t.Name] = policy.ParseSchema(server+"/"+t.Name, t.Raw)
	}
	return out
}

// addTool reads one element of a tools/list answer.
func (s *Surface) addTool(raw json.RawMessage) error {
	raw, members, err := readObject("tool", raw, "name", "description", "inputSchema", "outputSchema", "annotations")
	if err != nil {
		return err
	}
	var name string
	if err := json.Unmarshal(members["name"], &name); err != nil {
		return badSurface("a tool has no name")
	}
	if err := checkToolName(name); err != nil {
		return err
	}
	if err := s.vetSchema(name, members["inputSchema"]); err != nil {
		return err
	}
	at, found := slices.BinarySearchFunc(s.Tools, name, func(t Tool, n string) int { return cmp.Compare(t.Name, n) })
	if found {
		return badSurface(fmt.Sprintf("it lists the tool %s twice", name))
	}
	s.Tools = slices.Insert(s.Tools, at, Tool{Name: name, Raw: bytes.Clone(raw)})
	return nil
}

// vetSchema refuses an input schema that is a trap for whoever checks arguments against it.
func (s *Surface) vetSchema(tool string, raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	err := schema.Vet(raw)
	if errors.Is(err, schema.ErrRemote) {
		s.remote = append(s.remote, tool)
	}
	for _, trap := range []error{schema.ErrExpansion, schema.ErrTooDeep, schema.ErrPattern} {
		if errors.Is(err, trap) {
			return badSurface(fmt.Sprintf("the input schema of the tool %q cannot be used: %v", tool, trap))
		}
	}
	return nil
}

// readObject reads an element of a list. What two JSON parsers would read differently is refused: it would be approved as
// one thing and shown as another.
func readObject(noun string, raw json.RawMessage, known ...string) (json.RawMessage, map[string]json.RawMessage, error) {
	raw = bytes.TrimSpace(raw)
	if len(raw) > shard.MaxTool {
		// A cell would refuse it, and with it everything else of the tenant that is published.
		return nil, nil, badSurface(fmt.Sprintf("a %s's description is %d bytes long; at most %d are accepted", noun, len(raw), shard.MaxTool))
	}
	if len(raw) == 0 || raw[0] != '{' {
		return nil, nil, badSurface("an element of its " + noun + " list is not an object")
	}
	if err := policy.StrictJSON(raw); err != nil {
		return nil, nil, badSurface("a " + noun + "'s description is ambiguous: " + err.Error())
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, nil, badSurface("a " + noun + "'s description does not parse")
	}
	for m := range members {
		for _, k := range known {
			if m != k && strings.EqualFold(m, k) {
				return nil, nil, badSurface(fmt.Sprintf("a %s's description has a member %q, which some clients read as %q", noun, m, k))
			}
		}
	}
	return raw, members, nil
}

func checkToolName(name string) error {
	odd := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || !unicode.IsGraphic(r) }
	switch {
	case name == "":
		return badSurface("a tool has an empty name")
	case len(name) > MaxToolName:
		return badSurface(fmt.Sprintf("the tool name %.40q... is %d bytes long; at most %d are accepted", name, len(name), MaxToolName))
	case snapshot.CheckName(name) != nil || snapshot.IsSurface(name) || strings.ContainsFunc(name, odd):
		return badSurface(fmt.Sprintf("the tool name %q has characters that are not accepted", name))
	}
	return nil
}

func badSurface(what string) *problem.Problem {
	return problem.New(problem.Invalid, "the server's answer cannot be used: "+what, "have the server corrected, then scan again")
}

// hint is the effect class that a tool's own annotations propose; destructive when they do not say.
func hint(raw []byte) string {
	var t struct {
		Annotations map[string]json.RawMessage `json:"annotations"`
	}
	if json.Unmarshal(raw, &t) != nil {
		return Destructive
	}
	switch {
	case string(t.Annotations["readOnlyHint"]) == "true":
		return Read
	case string(t.Annotations["destructiveHint"]) == "false":
		return Write
	}
	return Destructive
}

// description is a tool's description for people.
func description(raw []byte) string {
	var t map[string]json.RawMessage
	var s string
	if json.Unmarshal(raw, &t) != nil || json.Unmarshal(t["description"], &s) != nil {
		return ""
	}
	return s
}

// Differences says for each tool how next differs from before: added, changed or removed.
func Differences(before, next *Surface) map[string]string {
	if before == nil {
		before = &Surface{}
	}
	diff, old := map[string]string{}, map[string][]byte{}
	for _, t := range before.Tools {
		old[t.Name] = t.Raw
	}
	for _, t := range next.Tools {
		compare(diff, old, t.Name, t.Raw)
	}
	return removed(diff, old)
}

// compare notes how one thing differs, and takes it from the old ones.
func compare(diff map[string]string, old map[string][]byte, name string, raw []byte) {
	before, ok := old[name]
	switch {
	case !ok:
		diff[name] = "added"
	case !bytes.Equal(before, raw):
		diff[name] = "changed"
	}
	delete(old, name)
}

// removed notes what is left of the old ones.
func removed(diff map[string]string, old map[string][]byte) map[string]string {
	for name := range old {
		diff[name] = "removed"
	}
	return diff
}
