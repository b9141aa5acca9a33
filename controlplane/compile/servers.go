package compile

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// Names of facts that this compiler writes, besides the hints.
const (
	factEffect    = "effect"
	factVersion   = "version"
	factClass     = "class"
	factEndpoints = "endpoints"
	factOwners    = "owners"
	factRegions   = "regions"
	factAccess    = "access"
	factLabel     = "labels."
)

// server is one published server while it is compiled.
type server struct {
	row       Server
	shown     *snapshotv1.CatalogueServer
	prompts   []string
	labels    map[string]map[string]string // by tool, "" for the server's own
	links     map[string][]controlplane.Link
	endpoints map[string]*controlplane.Endpoint
	// extra are items that grants name: prompts that are not published, and patterns of resources.
	extra  []string
	parsed map[string]policy.Schema // by tool
	whole  map[string]policy.Schema // of all tools, when something asked for it
	shape  string                   // of the whole
}

// newServer reads the stored surface and makes of it what the catalogue shows.
func (c *compiler) newServer(row Server) (*server, error) {
	shown := &snapshotv1.CatalogueServer{}
	if err := proto.Unmarshal(row.Surface, shown); err != nil {
		return nil, fmt.Errorf("compile server %s: its stored surface does not decode: %w", row.Name, err)
	}
	s := &server{
		row: row, shown: shown, labels: map[string]map[string]string{}, links: map[string][]controlplane.Link{},
		endpoints: c.endpoints, parsed: map[string]policy.Schema{},
	}
	for _, l := range row.Labels {
		if s.labels[l.Tool] == nil {
			s.labels[l.Tool] = map[string]string{}
		}
		s.labels[l.Tool][l.Key] = l.Value
	}
	for _, l := range row.Links {
		s.links[l.Item] = append(s.links[l.Item], l)
		if snapshot.IsSurface(l.Item) {
			s.extra = append(s.extra, l.Item)
		}
	}
	shown.Id, shown.Name = row.ID, row.Name
	shown.Version, shown.VersionDigest = row.Version, row.Digest
	shown.ProtocolVersions, shown.Labels = row.ProtocolVersions, labelWords(s.labels[""])
	shown.Tools = sorted(shown.GetTools(), (*snapshotv1.CatalogueTool).GetName)
	for _, t := range shown.GetTools() {
		t.Effect, t.Labels = effect(row.Effects[t.GetName()]), shown.GetLabels()
		if own := s.labels[t.GetName()]; len(own) > 0 {
			t.Labels = labelWords(s.labelsOf(t.GetName()))
		}
	}
	shown.Prompts = sorted(shown.GetPrompts(), (*snapshotv1.CatalogueEntry).GetName)
	shown.Resources = sorted(shown.GetResources(), (*snapshotv1.CatalogueEntry).GetName)
	shown.ResourceTemplates = sorted(shown.GetResourceTemplates(), (*snapshotv1.CatalogueEntry).GetName)
	for _, p := range shown.GetPrompts() {
		s.prompts = append(s.prompts, p.GetName())
	}
	return s, nil
}

// readAhead reads the schemas that the conditions of grants are typed against, on all processors: one by one, as they are
// asked for, they would be a quarter of a compilation.
func (c *compiler) readAhead() {
	type job struct {
		server *server
		tool   *snapshotv1.CatalogueTool
		schema policy.Schema
	}
	var jobs []job
	seen := map[*snapshotv1.CatalogueTool]bool{}
	for i := range c.in.Grants {
		g := &c.in.Grants[i]
		s := c.servers[g.Server]
		if g.Condition == "" || s == nil {
			continue
		}
		tools := s.shown.GetTools()
		if t := s.tool(g.Item); t != nil {
			tools = []*snapshotv1.CatalogueTool{t}
		} else if g.Item != "" && g.Item != controlplane.AllTools {
			continue
		}
		for _, t := range tools {
			if !seen[t] {
				seen[t] = true
				jobs = append(jobs, job{server: s, tool: t})
			}
		}
	}
	var all sync.WaitGroup
	part := len(jobs)/runtime.GOMAXPROCS(0) + 1
	for chunk := range slices.Chunk(jobs, part) {
		all.Go(func() {
			for i := range chunk {
				j := &chunk[i]
				j.schema = policy.ParseSchema(j.server.row.Name+"/"+j.tool.GetName(), j.tool.GetRaw())
			}
		})
	}
	all.Wait()
	for _, j := range jobs {
		j.server.parsed[j.tool.GetName()] = j.schema
	}
}

// tool is nil when the published version has none of that name.
func (s *server) tool(name string) *snapshotv1.CatalogueTool {
	tools := s.shown.GetTools()
	i, ok := slices.BinarySearchFunc(tools, name, func(t *snapshotv1.CatalogueTool, n string) int { return cmp.Compare(t.GetName(), n) })
	if !ok {
		return nil
	}
	return tools[i]
}

// schemas types the arguments of one tool, or of all of them for what reaches every tool, and names the shape that they
// have together; "" for none. Only what conditions are about is parsed, and that once.
func (s *server) schemas(item string) (map[string]policy.Schema, string) {
	if t := s.tool(item); t != nil {
		schema := s.schema(t)
		return map[string]policy.Schema{item: schema}, schema.Shape()
	}
	if item != "" && item != controlplane.AllTools {
		return nil, ""
	}
	if s.whole == nil {
		s.whole = make(map[string]policy.Schema, len(s.shown.GetTools()))
		var shapes []string
		for _, t := range s.shown.GetTools() {
			schema := s.schema(t)
			s.whole[t.GetName()], shapes = schema, append(shapes, schema.Shape())
		}
		slices.Sort(shapes)
		s.shape = strings.Join(slices.Compact(shapes), "\x00")
	}
	return s.whole, s.shape
}

func (s *server) schema(t *snapshotv1.CatalogueTool) policy.Schema {
	schema, ok := s.parsed[t.GetName()]
	if !ok {
		schema = policy.ParseSchema(s.row.Name+"/"+t.GetName(), t.GetRaw())
		s.parsed[t.GetName()] = schema
	}
	return schema
}

// labelsOf are the server's labels and the tool's own, which count more.
func (s *server) labelsOf(tool string) map[string]string {
	out := maps.Clone(s.labels[""])
	if out == nil {
		return s.labels[tool]
	}
	maps.Copy(out, s.labels[tool])
	return out
}

func labelWords(of map[string]string) []string {
	var out []string
	for k, v := range of {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

// items are everything that can be granted by itself, and what conditions may ask about each.
func (s *server) items() ([]string, map[string]snapshot.Facts) {
	tools := s.shown.GetTools()
	items := make([]string, 0, 1+len(tools)+len(s.prompts)+len(s.extra))
	items = append(items, snapshot.ItemOther)
	for _, p := range s.prompts {
		items = append(items, snapshot.PromptItem(p))
	}
	slices.Sort(s.extra)
	for _, extra := range slices.Compact(s.extra) {
		if !slices.Contains(items, extra) {
			items = append(items, extra)
		}
	}
	facts := make(map[string]snapshot.Facts, cap(items))
	plain := s.base("")
	for _, item := range items {
		facts[item] = plain
		if links := s.links[item]; len(links) > 0 {
			facts[item] = s.touching(maps.Clone(plain), links)
		}
	}
	// Tools without labels and links of their own differ by class and hints only, and share what is the same.
	shared := map[kindOfTool]snapshot.Facts{}
	for _, t := range tools {
		items = append(items, t.GetName())
		kind := kindOfTool{effect: t.GetEffect(), hints: hintsOf(t.GetRaw())}
		links, own := s.links[t.GetName()], s.labels[t.GetName()]
		if len(links) > 0 || len(own) > 0 {
			facts[t.GetName()] = s.touching(kind.facts(s.base(t.GetName())), links)
			continue
		}
		if shared[kind] == nil {
			shared[kind] = kind.facts(s.base(""))
		}
		facts[t.GetName()] = shared[kind]
	}
	return items, facts
}

// base are the facts of everything of a server.
func (s *server) base(tool string) snapshot.Facts {
	f := snapshot.Facts{factVersion: {Value: number(int64(s.shown.GetVersion()))}}
	for k, v := range s.labelsOf(tool) {
		f[factLabel+k] = snapshot.Fact{Value: text(v)}
	}
	return f
}

// touching adds what the endpoints are that something touches: their names, owners and regions, the ways in which it does,
// and the highest class among them.
func (s *server) touching(f snapshot.Facts, links []controlplane.Link) snapshot.Facts {
	var names, owners, regions, access []string
	class := f[factClass].Int
	for _, l := range links {
		e := s.endpoints[l.Endpoint]
		if e == nil {
			continue
		}
		names, regions = append(names, e.Name), append(regions, e.Regions...)
		if e.Owner != "" {
			owners = append(owners, e.Owner)
		}
		for _, pattern := range l.Access {
			access = append(access, e.Name+":"+pattern)
		}
		class = max(class, int64(e.Class))
	}
	if len(names) == 0 {
		return f
	}
	f[factClass] = snapshot.Fact{Value: number(class)}
	for name, list := range map[string][]string{factEndpoints: names, factOwners: owners, factRegions: regions, factAccess: access} {
		slices.Sort(list)
		f[name] = snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeSet}, Set: slices.Compact(list)}
	}
	return f
}

// kindOfTool is what tools share: the class that the approver gave them, and the server's own hints.
type kindOfTool struct {
	effect snapshotv1.Effect
	hints  [4]hint
}

// hint is what an annotation says.
type hint uint8

const (
	unsaid hint = iota
	saysFalse
	saysTrue
)

func (k kindOfTool) facts(f snapshot.Facts) snapshot.Facts {
	word := "destructive"
	switch k.effect {
	case snapshotv1.Effect_EFFECT_READ:
		word = "read"
	case snapshotv1.Effect_EFFECT_WRITE:
		word = "write"
	case snapshotv1.Effect_EFFECT_DESTRUCTIVE, snapshotv1.Effect_EFFECT_UNSPECIFIED:
	}
	f[factEffect] = snapshot.Fact{Value: text(word)}
	// A tool that touches no endpoint touches public data only, as far as anybody said.
	f[factClass] = snapshot.Fact{Value: number(0)}
	for i, name := range controlplane.Hints() {
		if k.hints[i] != unsaid {
			f[name] = snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeBool, Bool: k.hints[i] == saysTrue}}
		}
	}
	return f
}

// hintsOf reads the annotations of a raw tool object, in the order of controlplane.Hints. What is no boolean is not said.
// The raw object was checked when it was scanned; what does not parse says nothing.
func hintsOf(raw []byte) (out [4]hint) {
	if !bytes.Contains(raw, []byte(`"annotations"`)) {
		return out
	}
	// A buffer is read in place. Members are there once: the scan refuses anything else.
	d := jsontext.NewDecoder(bytes.NewBuffer(raw), jsontext.AllowDuplicateNames(true))
	if !enter(d, "annotations") || d.PeekKind() != '{' {
		return out
	}
	if _, err := d.ReadToken(); err != nil {
		return out
	}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return out
		}
		i := slices.Index(controlplane.Hints(), name.String())
		value, err := d.ReadValue()
		if err != nil {
			return out
		}
		switch {
		case i < 0:
		case value.Kind() == 't':
			out[i] = saysTrue
		case value.Kind() == 'f':
			out[i] = saysFalse
		}
	}
	return out
}

// enter goes to the value of a member of the object that comes next.
func enter(d *jsontext.Decoder, member string) bool {
	if t, err := d.ReadToken(); err != nil || t.Kind() != '{' {
		return false
	}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return false
		}
		if name.String() == member {
			return true
		}
		if d.SkipValue() != nil {
			return false
		}
	}
	return false
}
