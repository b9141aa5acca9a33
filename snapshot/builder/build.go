// Package builder compiles a policy into the flat index that a cell decides with. It does the work of a decision ahead of
// time: names become dense ids, the graph is closed (what a node inherits is folded into it), facts about items are folded
// into masks, and every (node, page of 64 items) that any grant reaches becomes one 32-byte cell with an allow and a deny
// mask. What cannot be settled ahead stays as small programs.
//
// It promises the same bytes for the same policy, in whatever order its parts come. Package index reads them.
package builder

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// Build compiles a policy. The same policy gives the same bytes in whatever order its parts come. An error names the
// offender; see snapshot.Policy.Validate for what is refused.
func Build(p *snapshot.Policy) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("build index: %w", err)
	}
	if len(p.Principals) > layout.MaxNameSlots {
		return nil, fmt.Errorf("build index: %d principals: at most %d", len(p.Principals), layout.MaxNameSlots)
	}
	b := &builder{w: newWriter(), progID: map[string]uint32{}, zoneID: map[string]uint32{}, folds: map[string]folded{}}
	b.servers(p.Servers)
	b.graph(p)
	if err := b.grantRows(); err != nil {
		return nil, fmt.Errorf("build index: %w", err)
	}
	if err := b.cells(); err != nil {
		return nil, fmt.Errorf("build index: %w", err)
	}
	b.principals(p.Principals)
	return b.finish(p.Tenant)
}

var le = binary.LittleEndian

type builder struct {
	w *writer
	// byName finds a server's place and its items' numbers.
	byName map[string]*serverPlan
	order  []*serverPlan
	pages  uint32
	items  uint32
	// nodes have the number of their place + 1, in the order of names.
	nodes  []nodePlan
	nodeID map[snapshot.Ref]uint32
	// grants, sorted by id, and what each reaches.
	grants []*snapshot.Grant
	reach  [][]reach
	progID map[string]uint32
	zoneID map[string]uint32
	folds  map[string]folded
	key    []byte // room for a key of folds
	// below caches the members of OpMember.
	below map[uint32]uint64
}

type serverPlan struct {
	name     string
	items    []string
	itemID   map[string]uint32
	facts    map[string]snapshot.Facts
	pageBase uint32
	itemBase uint32
}

type nodePlan struct {
	ref     snapshot.Ref
	parents []uint32
	grants  []uint32
}

func (b *builder) servers(servers []snapshot.Server) {
	b.byName = make(map[string]*serverPlan, len(servers))
	for _, s := range servers {
		sp := &serverPlan{name: s.Name, items: slices.Clone(s.Items), facts: s.Facts}
		if !slices.Contains(sp.items, snapshot.ItemOther) {
			sp.items = append(sp.items, snapshot.ItemOther)
		}
		slices.Sort(sp.items)
		b.byName[s.Name] = sp
		b.order = append(b.order, sp)
	}
	slices.SortFunc(b.order, func(x, y *serverPlan) int { return cmp.Compare(x.name, y.name) })
	for _, sp := range b.order {
		sp.pageBase, sp.itemBase = b.pages, b.items
		sp.itemID = make(map[string]uint32, len(sp.items))
		for i, it := range sp.items {
			sp.itemID[it] = uint32(i)
			b.w.name(layout.SecItems, it)
		}
		r := b.w.name(layout.SecServers, sp.name)
		le.PutUint32(r[8:], sp.pageBase)
		le.PutUint32(r[12:], sp.itemBase)
		le.PutUint32(r[16:], uint32(len(sp.items)))
		b.pages += sp.pageCount()
		b.items += uint32(len(sp.items))
	}
}

func (sp *serverPlan) pageCount() uint32 {
	return uint32(len(sp.items)+layout.ItemsPerPage-1) / layout.ItemsPerPage
}

// graph numbers every node that is named anywhere. A principal's own node is one only when something is given to it.
func (b *builder) graph(p *snapshot.Policy) {
	refs := make(map[snapshot.Ref]struct{}, len(p.Nodes)+len(p.Grants))
	for _, n := range p.Nodes {
		refs[n.Ref] = struct{}{}
		for _, up := range n.Parents {
			refs[up] = struct{}{}
		}
	}
	for i := range p.Principals {
		for _, r := range p.Principals[i].Nodes {
			refs[r] = struct{}{}
		}
	}
	for i := range p.Grants {
		g := &p.Grants[i]
		b.grants = append(b.grants, g)
		refs[g.Subject] = struct{}{}
		eachMember(g.When, func(ref snapshot.Ref) { refs[ref] = struct{}{} })
	}
	slices.SortFunc(b.grants, func(x, y *snapshot.Grant) int { return cmp.Compare(x.ID, y.ID) })
	sorted := slices.Sorted(maps.Keys(refs))
	b.nodes = make([]nodePlan, len(sorted))
	b.nodeID = make(map[snapshot.Ref]uint32, len(sorted))
	for i, ref := range sorted {
		b.nodes[i].ref = ref
		b.nodeID[ref] = uint32(i + 1)
	}
	for _, n := range p.Nodes {
		up := make([]uint32, 0, len(n.Parents))
		for _, ref := range n.Parents {
			up = append(up, b.nodeID[ref])
		}
		slices.Sort(up)
		b.nodes[b.nodeID[n.Ref]-1].parents = slices.Compact(up)
	}
	for i, g := range b.grants {
		n := &b.nodes[b.nodeID[g.Subject]-1]
		n.grants = append(n.grants, uint32(i))
	}
}

func eachMember(c *snapshot.Cond, f func(snapshot.Ref)) {
	if c == nil {
		return
	}
	if c.Op == snapshot.OpMember {
		f(snapshot.Ref(c.Arg))
	}
	for _, k := range c.Kids {
		eachMember(k, f)
	}
}

// closure lists the grants of a node and of all it belongs to, in the order of ids, each once.
func (b *builder) closure(id uint32) []uint32 {
	n := &b.nodes[id-1]
	if len(n.parents) == 0 {
		return n.grants
	}
	var out []uint32
	seen := map[uint32]bool{id: true}
	for todo := []uint32{id}; len(todo) > 0; {
		at := &b.nodes[todo[len(todo)-1]-1]
		todo = todo[:len(todo)-1]
		out = append(out, at.grants...)
		for _, up := range at.parents {
			if !seen[up] {
				seen[up] = true
				todo = append(todo, up)
			}
		}
	}
	slices.Sort(out)
	return out
}

// grantRows works out what each grant reaches, and writes nodes and grants.
func (b *builder) grantRows() error {
	b.reach = make([][]reach, len(b.grants))
	for i, g := range b.grants {
		var err error
		if b.reach[i], err = b.reachOf(g); err != nil {
			return fmt.Errorf("grant %q: %w", g.ID, err)
		}
		var flags uint16
		if g.Deny {
			flags = layout.GrantDenies
		}
		r := b.w.unique(layout.SecGrants, g.ID)
		le.PutUint16(r[6:], flags)
		le.PutUint32(r[8:], b.nodeID[g.Subject])
		le.PutUint32(r[12:], b.w.count(layout.SecReaches))
		le.PutUint32(r[16:], uint32(len(b.reach[i])))
		for _, rc := range b.reach[i] {
			r := b.w.record(layout.SecReaches)
			le.PutUint64(r, rc.mask)
			le.PutUint32(r[8:], rc.page)
			le.PutUint32(r[12:], rc.prog)
		}
	}
	for i := range b.nodes {
		n := &b.nodes[i]
		r := b.w.name(layout.SecNodes, string(n.ref))
		le.PutUint32(r[8:], b.w.count(layout.SecEdges))
		le.PutUint32(r[12:], uint32(len(n.parents)))
		le.PutUint32(r[16:], b.w.count(layout.SecNodeGrants))
		le.PutUint32(r[20:], uint32(len(n.grants)))
		for _, up := range n.parents {
			le.PutUint32(b.w.record(layout.SecEdges), up)
		}
		for _, g := range n.grants {
			le.PutUint32(b.w.record(layout.SecNodeGrants), g)
		}
	}
	return nil
}

// cells closes the graph: what a node inherits becomes its own.
func (b *builder) cells() error {
	var built []cellPlan
	var gathered []grantReach
	for id := uint32(1); int(id) <= len(b.nodes); id++ {
		gathered = gathered[:0]
		for _, g := range b.closure(id) {
			for _, r := range b.reach[g] {
				gathered = append(gathered, grantReach{r, b.grants[g].Deny})
			}
		}
		slices.SortFunc(gathered, func(x, y grantReach) int {
			if x.page != y.page {
				return cmp.Compare(x.page, y.page)
			}
			if x.deny != y.deny {
				if x.deny {
					return -1
				}
				return 1
			}
			return cmp.Compare(x.prog, y.prog)
		})
		for i := 0; i < len(gathered); {
			c := cellPlan{key: layout.CellKey(id, gathered[i].page), first: b.w.count(layout.SecConds)}
			n, err := c.gather(b.w, gathered[i:])
			if err != nil {
				return err
			}
			built = append(built, c)
			i += n
		}
	}
	b.placeCells(built)
	return nil
}

type grantReach struct {
	reach
	deny bool
}

// cellPlan is a cell in the making.
type cellPlan struct {
	key           uint64
	allow, deny   uint64
	first         uint32
	nDeny, nAllow uint16
}

// gather takes the reaches of one page from the front of a sorted list, writes its conditions, and says how many it took.
func (c *cellPlan) gather(w *writer, list []grantReach) (int, error) {
	page := list[0].page
	for i := 0; ; {
		if i == len(list) || list[i].page != page {
			return i, nil
		}
		deny, prog, mask := list[i].deny, list[i].prog, uint64(0)
		for ; i < len(list) && list[i].page == page && list[i].deny == deny && list[i].prog == prog; i++ {
			mask |= list[i].mask
		}
		switch {
		case prog == 0 && deny:
			c.deny |= mask
			continue
		case prog == 0:
			c.allow |= mask
			continue
		}
		n := &c.nAllow
		if deny {
			n = &c.nDeny
		}
		if *n == 1<<16-1 {
			return 0, fmt.Errorf("more than %d conditions for one subject on one server", *n)
		}
		*n++
		r := w.record(layout.SecConds)
		le.PutUint64(r, mask)
		le.PutUint32(r[8:], prog-1)
	}
}

// placeCells fills the hash table in the order of keys.
func (b *builder) placeCells(built []cellPlan) {
	slots := cellSlots(len(built))
	table := b.w.table(layout.SecCells, slots)
	for _, c := range built {
		i := layout.CellHome(c.key, uint64(slots))
		for le.Uint64(table[i*layout.CellSize:]) != 0 {
			if i++; i == uint64(slots) {
				i = 0
			}
		}
		r := table[i*layout.CellSize:]
		le.PutUint64(r, c.key)
		le.PutUint64(r[8:], c.allow)
		le.PutUint64(r[16:], c.deny)
		if c.nDeny|c.nAllow != 0 {
			le.PutUint32(r[24:], c.first)
			le.PutUint16(r[28:], c.nDeny)
			le.PutUint16(r[30:], c.nAllow)
		}
	}
}

// principals writes them in the order of names.
func (b *builder) principals(list []snapshot.Principal) {
	order := make([]uint32, len(list))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(x, y uint32) int { return cmp.Compare(list[x].Name, list[y].Name) })
	regions := map[string]uint16{"": 0}
	var own []byte
	var nodes []uint32
	for _, i := range order {
		p := &list[i]
		region, ok := regions[p.Region]
		if !ok {
			region = uint16(len(regions))
			regions[p.Region] = region
			b.w.name(layout.SecRegions, p.Region)
		}
		own = append(append(own[:0], "user:"...), p.Name...)
		nodes = nodes[:0]
		if id, ok := b.nodeID[snapshot.Ref(own)]; ok {
			nodes = append(nodes, id)
		}
		for _, ref := range p.Nodes {
			if ref != snapshot.Everyone {
				nodes = append(nodes, b.nodeID[ref])
			}
		}
		slices.Sort(nodes)
		nodes = slices.Compact(nodes)
		r := b.w.unique(layout.SecPrincipals, p.Name)
		if p.Disabled {
			r[layout.AtFlags] = layout.FlagDisabled
		}
		r[layout.AtKind], r[layout.AtClearance] = byte(p.Kind), p.Clearance
		le.PutUint16(r[layout.AtRegion:], region)
		b.members(r, nodes)
	}
}

func (b *builder) members(r []byte, nodes []uint32) {
	if len(nodes) <= layout.InlineNodes {
		r[layout.AtCount] = byte(len(nodes))
		for i, n := range nodes {
			le.PutUint32(r[layout.AtNodes+4*i:], n)
		}
		return
	}
	r[layout.AtCount] = layout.ManyNodes
	le.PutUint32(r[layout.AtNodes:], b.w.count(layout.SecMembers))
	le.PutUint32(r[layout.AtNodes+4:], uint32(len(nodes)))
	for _, n := range nodes {
		le.PutUint32(b.w.record(layout.SecMembers), n)
	}
}

func (b *builder) finish(tenant snapshot.TenantID) ([]byte, error) {
	b.w.names(layout.SecPrincipalNames, layout.SecPrincipals, nil)
	b.w.names(layout.SecServerNames, layout.SecServers, nil)
	seeds := make([]uint64, 0, b.w.count(layout.SecItems))
	for s, sp := range b.order {
		for range sp.items {
			seeds = append(seeds, uint64(s)+1)
		}
	}
	b.w.names(layout.SecItemNames, layout.SecItems, seeds)
	raw, err := b.w.finish(string(tenant), b.nodeID[snapshot.Everyone], b.pages)
	if err != nil {
		return nil, err
	}
	// The state is read back from the block itself, so that it is that of what readers will see.
	x, err := index.Open(raw)
	if err != nil {
		return nil, fmt.Errorf("build index: what was built does not open: %w", err)
	}
	state := x.Sum()
	copy(raw[layout.StateAt:], state[:])
	return raw, nil
}
