package compile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

var update = flag.Bool("update", false, "rewrite testdata")

// story is an Input as a test file writes it: tools as JSON instead of an encoded surface.
type story struct {
	Input
	Servers []struct {
		Server
		Tools, Prompts, Resources []json.RawMessage
	}
}

func (s story) input(t *testing.T) Input {
	t.Helper()
	in := s.Input
	for _, srv := range s.Servers {
		surface := &snapshotv1.CatalogueServer{Url: "http://" + srv.Name + ".example/mcp"}
		for _, raw := range srv.Tools {
			var tool struct{ Name string }
			if err := json.Unmarshal(raw, &tool); err != nil {
				t.Fatal(err)
			}
			surface.Tools = append(surface.Tools, &snapshotv1.CatalogueTool{Name: tool.Name, Raw: raw})
		}
		surface.Prompts, surface.Resources = entries(t, srv.Prompts), entries(t, srv.Resources)
		b, err := proto.Marshal(surface)
		if err != nil {
			t.Fatal(err)
		}
		srv.Surface = b
		srv.Digest = bytes.Repeat([]byte{byte(srv.Version)}, 32)
		in.Servers = append(in.Servers, srv.Server)
	}
	return in
}

func entries(t *testing.T, list []json.RawMessage) (out []*snapshotv1.CatalogueEntry) {
	t.Helper()
	for _, raw := range list {
		var e struct{ Name, URI string }
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		out = append(out, &snapshotv1.CatalogueEntry{Name: cmp.Or(e.URI, e.Name), Raw: raw})
	}
	return out
}

func load(t *testing.T, path string) (*txtar.Archive, Input) {
	t.Helper()
	ar, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s story
	if err := json.Unmarshal(ar.Files[0].Data, &s); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return ar, s.input(t)
}

func TestCompileGivesWhatTheFileSays(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, path := range files {
		ar, in := load(t, path)
		pol, catalogue, notes, err := lower(in)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		got := dump(pol, catalogue, notes)
		if *update {
			ar.Files[1].Data = []byte(got)
			if err := os.WriteFile(path, txtar.Format(ar), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if want := string(ar.Files[1].Data); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
		}
	}
}

func TestCompileGivesTheSameBytesForRowsInAnyOrder(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"testdata/shop.txtar", "testdata/tree.txtar", "testdata/grants.txtar", "testdata/policies.txtar", "testdata/decide/grants.txtar"} {
		_, in := load(t, path)
		first, err := Compile(in)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for range 20 {
			shuffleAll(rng, &in)
			out, err := Compile(in)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Index, first.Index) || !bytes.Equal(out.Catalogue, first.Catalogue) {
				t.Fatalf("%s: the bytes depend on the order of the rows", path)
			}
		}
	}
}

func shuffleAll(rng *rand.Rand, in *Input) {
	shuffle(rng, in.Users)
	shuffle(rng, in.Units)
	shuffle(rng, in.Teams)
	shuffle(rng, in.Groups)
	shuffle(rng, in.Roles)
	shuffle(rng, in.Servers)
	shuffle(rng, in.Endpoints)
	shuffle(rng, in.Grants)
	shuffle(rng, in.Policies)
	shuffle(rng, in.Tenant.Hosts)
	for _, u := range in.Users {
		shuffle(rng, u.Roles)
		shuffle(rng, u.Teams)
		shuffle(rng, u.Groups)
	}
	for _, s := range in.Servers {
		shuffle(rng, s.Labels)
		shuffle(rng, s.Links)
	}
}

func TestCompileLeavesItsInputAlone(t *testing.T) {
	t.Parallel()
	_, in := load(t, "testdata/grants.txtar")
	in.Users = append(in.Users, User{Name: "aaron", Teams: []string{"b", "a"}})
	before, _ := json.Marshal(in)
	if _, err := Compile(in); err != nil {
		t.Fatal(err)
	}
	if after, _ := json.Marshal(in); !bytes.Equal(before, after) {
		t.Error("Compile wrote into its input")
	}
}

func TestCompileOfAnEmptyTenantIsAPolicyThatAllowsNothing(t *testing.T) {
	t.Parallel()
	in := Input{}
	in.Tenant.ID, in.Tenant.Name = "t", "t"
	out, err := Compile(in)
	if err != nil || len(out.Index) == 0 || len(out.Shards) != 2 {
		t.Fatalf("got %+v, %v", out, err)
	}
}

func TestCompileNamesTheServerWhoseSurfaceIsBroken(t *testing.T) {
	t.Parallel()
	in := Input{Servers: []Server{{Name: "crm", Surface: []byte{0xff}}}}
	in.Tenant.ID = "t"
	if _, err := Compile(in); err == nil || !strings.Contains(err.Error(), "server crm") {
		t.Errorf("got %v", err)
	}
}

func shuffle[T any](rng *rand.Rand, list []T) {
	rng.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

// dump writes what was compiled as lines that a review can read.
func dump(pol *snapshot.Policy, cat *snapshotv1.Catalogue, notes []Note) string {
	var b strings.Builder
	for _, p := range pol.Principals {
		fmt.Fprintf(&b, "principal %s disabled=%v %v", p.Name, p.Disabled, p.Nodes)
		if p.Kind != snapshot.KindPerson || p.Clearance != 0 || p.Region != "" {
			fmt.Fprintf(&b, " kind=%d clearance=%d region=%s", p.Kind, p.Clearance, p.Region)
		}
		b.WriteByte('\n')
	}
	for _, n := range pol.Nodes {
		fmt.Fprintf(&b, "node %s %v\n", n.Ref, n.Parents)
	}
	for _, g := range pol.Grants {
		fmt.Fprintf(&b, "grant %s deny=%v %s %s/%s %s\n", g.ID, g.Deny, g.Subject, g.Server, g.Tool, when(g.When))
	}
	for _, srv := range pol.Servers {
		for _, item := range srv.Items {
			fmt.Fprintf(&b, "item %s/%s%s\n", srv.Name, item, facts(srv.Facts[item]))
		}
	}
	fmt.Fprintf(&b, "hosts %v read=%d write=%d", cat.GetHosts(), cat.GetSettings().GetMaxStalenessReadMs(), cat.GetSettings().GetMaxStalenessWriteMs())
	for _, l := range cat.GetSettings().GetLabelStaleness() {
		fmt.Fprintf(&b, " %s:%d", l.GetLabel(), l.GetMaxMs())
	}
	b.WriteByte('\n')
	for _, s := range cat.GetServers() {
		fmt.Fprintf(&b, "server %s@%d %s %v%s\n", s.GetName(), s.GetVersion(), s.GetUrl(), s.GetProtocolVersions(), labelsOf(s.GetLabels()))
		for _, tool := range s.GetTools() {
			fmt.Fprintf(&b, "  %s %s %s%s\n", tool.GetName(), tool.GetEffect(), tool.GetRaw(), labelsOf(tool.GetLabels()))
		}
		for _, e := range slices.Concat(s.GetPrompts(), s.GetResources()) {
			fmt.Fprintf(&b, "  %s %s\n", e.GetName(), e.GetRaw())
		}
	}
	for _, i := range cat.GetIssuers() {
		fmt.Fprintf(&b, "issuer %s %v\n", i.GetIssuer(), i.GetAudiences())
	}
	for _, n := range notes {
		fmt.Fprintf(&b, "note %s: %s\n", n.Grant, n.Problem)
	}
	return b.String()
}

func labelsOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return fmt.Sprintf(" labels=%v", list)
}

func facts(f snapshot.Facts) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(f)) {
		v := f[name]
		fmt.Fprintf(&b, " %s=%s", name, value(v.Value))
		if v.Type == snapshot.TypeSet {
			fmt.Fprintf(&b, "%v", v.Set)
		}
	}
	return b.String()
}

func value(v snapshot.Value) string {
	if v.Type == snapshot.TypeBool {
		return strconv.FormatBool(v.Bool)
	}
	if v.Type == snapshot.TypeNumber {
		return strconv.FormatInt(v.Int, 10)
	}
	return v.Str
}

func when(c *snapshot.Cond) string {
	if c == nil {
		return "always"
	}
	name := map[snapshot.Op]string{
		snapshot.OpTrue: "true", snapshot.OpFalse: "never", snapshot.OpAnd: "and", snapshot.OpOr: "or", snapshot.OpNot: "not", snapshot.OpHas: "has",
		snapshot.OpLt: "<", snapshot.OpLe: "<=", snapshot.OpGe: ">=", snapshot.OpEq: "==", snapshot.OpIn: "in", snapshot.OpBefore: "before",
		snapshot.OpAfter: "after", snapshot.OpInRange: "within", snapshot.OpContains: "contains",
	}[c.Op]
	switch c.Op {
	case snapshot.OpTrue, snapshot.OpFalse:
		return name
	case snapshot.OpBefore, snapshot.OpAfter:
		return name + " " + value(c.Value)
	case snapshot.OpAnd, snapshot.OpOr, snapshot.OpNot:
		var kids []string
		for _, k := range c.Kids {
			kids = append(kids, when(k))
		}
		return name + "(" + strings.Join(kids, ", ") + ")"
	default: // what is left compares something
	}
	source := func(from snapshot.Source, arg string) string {
		return [...]string{"", "context.", "clock.", "principal.", "resource."}[from] + arg
	}
	left := source(c.From, c.Arg)
	if c.Zone != "" {
		left += "[" + c.Zone + "]"
	}
	switch {
	case c.Op == snapshot.OpHas:
		return "has " + left
	case c.With != nil:
		return left + " " + name + " " + source(c.With.From, c.With.Arg)
	case c.Op == snapshot.OpIn:
		var values []string
		for _, v := range c.Values {
			values = append(values, value(v))
		}
		return left + " in [" + strings.Join(values, " ") + "]"
	}
	return left + " " + name + " " + value(c.Value)
}
