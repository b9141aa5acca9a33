package index

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
)

// Build compiles a policy. The same policy gives the same bytes in whatever order its parts come. An error names the
// offender; see snapshot.Policy.Validate for what is refused.
func Build(p *snapshot.Policy) ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("build index: %w", err)
	}
	b := &builder{w: newWriter(), nodeID: map[snapshot.Ref]uint32{}, progID: map[string]uint32{}}
	b.servers(p.Servers)
	b.graph(p)
	b.grantNames()
	if err := b.cells(p.Nodes); err != nil {
		return nil, fmt.Errorf("build index: %w", err)
	}
	b.principals(p.Principals)
	b.provenance()
	return b.finish(p.Tenant)
}

type builder struct {
	w *writer
	// byName finds a server's place and its items' numbers.
	byName map[string]*serverPlan
	order  []*serverPlan
	pages  uint32
	// grants, sorted by id; byNode are those whose subject the node is.
	grants []*snapshot.Grant
	byNode map[snapshot.Ref][]uint32
	// parents and the closure over them, for nodes that any grant may reach.
	parents map[snapshot.Ref][]snapshot.Ref
	nodeID  map[snapshot.Ref]uint32
	progID  map[string]uint32
	// progOf is the program of each grant + 1, once one node asked for it.
	progOf []uint32
	built  []*cellPlan
	slots  []*cellPlan
}

type serverPlan struct {
	name     string
	items    []string
	itemID   map[string]uint32
	pageBase uint32
	itemBase uint32
}

// cellPlan is a cell in the making.
type cellPlan struct {
	key         uint64
	allow, deny uint64
	conds       map[condKey]uint64
	condAt      map[condKey]uint32
	prov        []provPlan
}

type condKey struct {
	allow bool // denies sort first
	prog  uint32
}

type provPlan struct {
	mask  uint64
	grant uint32
	deny  bool
	cond  bool
	key   condKey
}

func (b *builder) servers(servers []snapshot.Server) {
	b.byName = make(map[string]*serverPlan, len(servers))
	var items uint32
	for _, s := range servers {
		sp := &serverPlan{name: s.Name, items: slices.Clone(s.Items)}
		if !slices.Contains(sp.items, snapshot.ItemOther) {
			sp.items = append(sp.items, snapshot.ItemOther)
		}
		slices.Sort(sp.items)
		b.byName[s.Name] = sp
		b.order = append(b.order, sp)
	}
	slices.SortFunc(b.order, func(x, y *serverPlan) int { return cmp.Compare(x.name, y.name) })
	for _, sp := range b.order {
		sp.pageBase, sp.itemBase = b.pages, items
		sp.itemID = make(map[string]uint32, len(sp.items))
		for i, it := range sp.items {
			sp.itemID[it] = uint32(i)
			b.w.name(secItems, it, 0)
		}
		r := b.w.name(secServers, sp.name, 0)
		le.PutUint32(r[8:], sp.pageBase)
		le.PutUint32(r[12:], sp.itemBase)
		le.PutUint32(r[16:], uint32(len(sp.items)))
		b.pages += sp.pageCount()
		items += uint32(len(sp.items))
	}
}

func (sp *serverPlan) pageCount() uint32 {
	return uint32(len(sp.items)+itemsPerPage-1) / itemsPerPage
}

func (b *builder) graph(p *snapshot.Policy) {
	b.parents = make(map[snapshot.Ref][]snapshot.Ref, len(p.Nodes))
	for _, n := range p.Nodes {
		b.parents[n.Ref] = n.Parents
	}
	for i := range p.Grants {
		b.grants = append(b.grants, &p.Grants[i])
	}
	slices.SortFunc(b.grants, func(x, y *snapshot.Grant) int { return cmp.Compare(x.ID, y.ID) })
	b.progOf = make([]uint32, len(b.grants))
	b.byNode = make(map[snapshot.Ref][]uint32)
	for i, g := range b.grants {
		b.byNode[g.Subject] = append(b.byNode[g.Subject], uint32(i))
	}
}

func (b *builder) grantNames() {
	for _, g := range b.grants {
		b.w.name(secGrants, g.ID, 0)
	}
}

// closure lists the grants of a node and of all it belongs to, in the order of ids, each once.
func (b *builder) closure(ref snapshot.Ref) []uint32 {
	if len(b.parents[ref]) == 0 {
		return b.byNode[ref]
	}
	var out []uint32
	seen := map[snapshot.Ref]bool{ref: true}
	for todo := []snapshot.Ref{ref}; len(todo) > 0; {
		r := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		out = append(out, b.byNode[r]...)
		for _, up := range b.parents[r] {
			if !seen[up] {
				seen[up] = true
				todo = append(todo, up)
			}
		}
	}
	slices.Sort(out)
	return out
}

// cells makes the cells of every node that a grant reaches, and gives those nodes their ids in the order of names.
func (b *builder) cells(nodes []snapshot.Node) error {
	refs := make(map[snapshot.Ref]bool, len(nodes)+len(b.byNode))
	for _, n := range nodes {
		refs[n.Ref] = true
	}
	for r := range b.byNode {
		refs[r] = true
	}
	for _, ref := range slices.Sorted(maps.Keys(refs)) {
		cells := map[uint32]*cellPlan{}
		for _, g := range b.closure(ref) {
			if err := b.grant(cells, g); err != nil {
				return fmt.Errorf("grant %q: %w", b.grants[g].ID, err)
			}
		}
		if len(cells) == 0 {
			continue
		}
		id := uint32(len(b.nodeID) + 1)
		b.nodeID[ref] = id
		b.w.name(secNodes, string(ref), 0)
		for _, page := range slices.Sorted(maps.Keys(cells)) {
			c := cells[page]
			c.key = cellKey(id, page)
			b.built = append(b.built, c)
		}
	}
	return b.placeCells()
}

// grant adds one grant to the cells of a node.
func (b *builder) grant(cells map[uint32]*cellPlan, g uint32) error {
	gr := b.grants[g]
	key := condKey{allow: !gr.Deny}
	if gr.When != nil {
		if b.progOf[g] == 0 {
			prog, err := b.program(gr.When)
			if err != nil {
				return err
			}
			b.progOf[g] = prog + 1
		}
		key.prog = b.progOf[g] - 1
	}
	add := func(page uint32, mask uint64) {
		c := cells[page]
		if c == nil {
			c = &cellPlan{}
			cells[page] = c
		}
		c.add(mask, g, gr.When != nil, key)
	}
	switch {
	case gr.Server == "*" && gr.Tool == "":
		add(anyPage, ^uint64(0))
	case gr.Server == "*":
		for _, sp := range b.order {
			sp.reach(gr.Tool, add)
		}
	default:
		if sp := b.byName[gr.Server]; sp != nil {
			sp.reach(gr.Tool, add)
		}
	}
	return nil
}

// reach calls add for the page of a tool, or with all pages for "".
func (sp *serverPlan) reach(tool string, add func(page uint32, mask uint64)) {
	if tool != "" {
		if i, ok := sp.itemID[tool]; ok {
			add(sp.pageBase+i/itemsPerPage, 1<<(i%itemsPerPage))
		}
		return
	}
	for pg := range sp.pageCount() {
		mask := ^uint64(0)
		if rest := uint32(len(sp.items)) - pg*itemsPerPage; rest < itemsPerPage {
			mask = 1<<rest - 1
		}
		add(sp.pageBase+pg, mask)
	}
}

func (c *cellPlan) add(mask uint64, grant uint32, cond bool, key condKey) {
	c.prov = append(c.prov, provPlan{mask: mask, grant: grant, deny: !key.allow, cond: cond, key: key})
	switch {
	case cond:
		if c.conds == nil {
			c.conds = map[condKey]uint64{}
		}
		c.conds[key] |= mask
	case key.allow:
		c.allow |= mask
	default:
		c.deny |= mask
	}
}

// placeCells writes the conditions and fills the hash table in the order of keys.
func (b *builder) placeCells() error {
	slots := tableSize(len(b.built))
	b.slots = make([]*cellPlan, slots)
	table := b.w.table(secCells, slots)
	shift := shiftFor(slots)
	for _, c := range b.built {
		first := b.w.count(secConds)
		deny, allow, err := b.placeConds(c)
		if err != nil {
			return err
		}
		i := cellHome(c.key, shift)
		for b.slots[i] != nil {
			i = (i + 1) & uint32(slots-1)
		}
		b.slots[i] = c
		r := table[int(i)*cellSize:]
		le.PutUint64(r, c.key)
		le.PutUint64(r[8:], c.allow)
		le.PutUint64(r[16:], c.deny)
		if deny|allow != 0 {
			le.PutUint32(r[24:], first)
			le.PutUint16(r[28:], deny)
			le.PutUint16(r[30:], allow)
		}
	}
	return nil
}

func (b *builder) placeConds(c *cellPlan) (deny, allow uint16, err error) {
	keys := slices.SortedFunc(maps.Keys(c.conds), func(x, y condKey) int {
		if x.allow != y.allow {
			if y.allow {
				return -1
			}
			return 1
		}
		return cmp.Compare(x.prog, y.prog)
	})
	c.condAt = make(map[condKey]uint32, len(keys))
	for _, k := range keys {
		n := &deny
		if k.allow {
			n = &allow
		}
		if *n == 1<<16-1 {
			return 0, 0, fmt.Errorf("more than %d conditions for one subject on one server", *n)
		}
		*n++
		c.condAt[k] = b.w.count(secConds)
		r := b.w.record(secConds)
		le.PutUint64(r, c.conds[k])
		le.PutUint32(r[8:], k.prog)
	}
	return deny, allow, nil
}

// principals writes them in the order of names, each with those of its nodes that own cells.
func (b *builder) principals(list []snapshot.Principal) {
	list = slices.SortedFunc(slices.Values(list), func(x, y snapshot.Principal) int { return cmp.Compare(x.Name, y.Name) })
	for _, p := range list {
		var flags uint16
		if p.Disabled {
			flags = flagDisabled
		}
		nodes := b.direct(p)
		r := b.w.name(secPrincipals, p.Name, flags)
		le.PutUint32(r[8:], uint32(len(nodes)))
		if len(nodes) <= inlineNodes {
			for i, n := range nodes {
				le.PutUint32(r[12+4*i:], n)
			}
			continue
		}
		le.PutUint32(r[12:], b.w.count(secMembers))
		for _, n := range nodes {
			le.PutUint32(b.w.record(secMembers), n)
		}
	}
}

func (b *builder) direct(p snapshot.Principal) []uint32 {
	var nodes []uint32
	for _, ref := range append([]snapshot.Ref{"user:" + snapshot.Ref(p.Name)}, p.Nodes...) {
		if id := b.nodeID[ref]; id != 0 && ref != snapshot.Everyone {
			nodes = append(nodes, id)
		}
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// provenance writes, slot by slot, which grants made a cell what it is.
func (b *builder) provenance() {
	for _, c := range b.slots {
		le.PutUint32(b.w.record(secProvOffsets), b.w.count(secProvenance))
		if c == nil {
			continue
		}
		for _, p := range c.prov {
			r := b.w.record(secProvenance)
			le.PutUint64(r, p.mask)
			ref := p.grant << 1
			if p.deny {
				ref |= 1
			}
			le.PutUint32(r[8:], ref)
			if p.cond {
				le.PutUint32(r[12:], c.condAt[p.key]+1)
			}
		}
	}
	le.PutUint32(b.w.record(secProvOffsets), b.w.count(secProvenance))
}

func (b *builder) finish(tenant snapshot.TenantID) ([]byte, error) {
	b.w.names(secPrincipalNames, secPrincipals, nil)
	b.w.names(secServerNames, secServers, nil)
	seeds := make([]uint64, 0, b.w.count(secItems))
	for s, sp := range b.order {
		for range sp.items {
			seeds = append(seeds, uint64(s)+1)
		}
	}
	b.w.names(secItemNames, secItems, seeds)
	return b.w.finish(string(tenant), b.nodeID[snapshot.Everyone], b.pages)
}
