package index

// View is what is left of the policy once a principal and a server are fixed. It is a plain value: build it once a
// session and server, keep it, and build it anew when the index is replaced. The zero View denies everything.
type View struct {
	x         *Index
	principal PrincipalID
	server    ServerID
	disabled  bool
	pageBase  uint32
	items     uint32
	first     Page
}

// Page is the policy for 64 items of a server: a bit an item.
type Page struct {
	Allow, Deny         uint64
	CondAllow, CondDeny uint64 // some condition applies to the item
	ranges              [inlineRanges]CondRange
	n                   uint32 // ranges in use; inlineRanges+1 when there are more and they must be looked up
}

const inlineRanges = 8

// CondRange is where the conditions of one cell are: denies first.
type CondRange struct {
	First       uint32
	Deny, Allow uint16
}

// View fixes a principal and a server.
func (x *Index) View(p PrincipalID, s ServerID) View {
	v := View{x: x, principal: p, server: s, disabled: true}
	if uint32(p) >= x.nPrincipals || uint32(s) >= x.nServers {
		return v
	}
	v.disabled = x.Disabled(p)
	v.pageBase = x.pageBase(s)
	_, v.items = x.itemRange(s)
	v.load(&v.first, 0)
	return v
}

// Index is the index that the view was built on; nil for the zero View.
func (v *View) Index() *Index { return v.x }

// Principal is the principal of the view.
func (v *View) Principal() PrincipalID { return v.principal }

// Server is the server of the view.
func (v *View) Server() ServerID { return v.server }

// Items counts the server's items.
func (v *View) Items() int { return int(v.items) }

// Disabled reports whether the principal is switched off.
func (v *View) Disabled() bool { return v.disabled }

// Pages counts the pages of 64 items.
func (v *View) Pages() int { return int(v.items+itemsPerPage-1) / itemsPerPage }

// Page returns the page of an item and the item's bit in it, which is 0 for an item that does not exist. Pages after the
// first are built into scratch.
func (v *View) Page(item ItemID, scratch *Page) (*Page, uint64) {
	if uint32(item) >= v.items {
		return &v.first, 0
	}
	bit := uint64(1) << (item % itemsPerPage)
	if item < itemsPerPage {
		return &v.first, bit
	}
	v.load(scratch, uint32(item)/itemsPerPage)
	return scratch, bit
}

// load gathers the masks of one page over all nodes of the principal.
func (v *View) load(pg *Page, page uint32) {
	*pg = Page{}
	x := v.x
	for k := range v.probes() {
		off := v.probe(k, page)
		if off < 0 {
			continue
		}
		c := x.cells[off : off+cellSize : off+cellSize]
		pg.Allow |= le.Uint64(c[8:])
		pg.Deny |= le.Uint64(c[16:])
		r := CondRange{First: le.Uint32(c[24:]), Deny: le.Uint16(c[28:]), Allow: le.Uint16(c[30:])}
		if r.Deny|r.Allow != 0 {
			pg.add(x, r)
		}
	}
	if rest := v.items - page*itemsPerPage; rest < itemsPerPage {
		valid := uint64(1)<<rest - 1
		pg.Allow &= valid
		pg.Deny &= valid
		pg.CondAllow &= valid
		pg.CondDeny &= valid
	}
}

func (pg *Page) add(x *Index, r CondRange) {
	for i := range uint32(r.Deny) {
		mask, _ := x.Cond(r.First + i)
		pg.CondDeny |= mask
	}
	for i := range uint32(r.Allow) {
		mask, _ := x.Cond(r.First + uint32(r.Deny) + i)
		pg.CondAllow |= mask
	}
	if pg.n < inlineRanges {
		pg.ranges[pg.n] = r
	}
	if pg.n <= inlineRanges {
		pg.n++
	}
}

// Ranges counts the condition ranges to try with Range; some may be empty.
func (v *View) Ranges(pg *Page) int {
	if pg.n <= inlineRanges {
		return int(pg.n)
	}
	return v.probes()
}

// Range returns the k-th range of conditions of the item's page.
func (v *View) Range(pg *Page, item ItemID, k int) CondRange {
	if pg.n <= inlineRanges {
		return pg.ranges[k&(inlineRanges-1)]
	}
	off := v.probe(k, uint32(item)/itemsPerPage)
	if off < 0 {
		return CondRange{}
	}
	c := v.x.cells[off:]
	return CondRange{First: le.Uint32(c[24:]), Deny: le.Uint16(c[28:]), Allow: le.Uint16(c[30:])}
}

// probes counts the cells that can speak about a page: for each direct node, and for everyone, its own and its wildcard.
func (v *View) probes() int {
	return 2 * (int(le.Uint32(v.x.principals[int(v.principal)*principalSize+8:])) + 1)
}

// probe returns the offset of the k-th of those cells, or -1.
func (v *View) probe(k int, page uint32) int {
	x := v.x
	node := x.everyone
	if k >= 2 {
		node = x.memberOf(v.principal, k/2-1)
	}
	if node == 0 {
		return -1
	}
	if k&1 == 0 {
		return x.cell(node, v.pageBase+page)
	}
	if x.anyNode[node/64]&(1<<(node%64)) == 0 {
		return -1
	}
	return x.cell(node, anyPage)
}

// memberOf returns the i-th direct node of a principal.
func (x *Index) memberOf(p PrincipalID, i int) uint32 {
	r := x.principals[int(p)*principalSize : (int(p)+1)*principalSize]
	if le.Uint32(r[8:]) <= inlineNodes {
		return le.Uint32(r[12+4*i:])
	}
	return le.Uint32(x.members[(int(le.Uint32(r[12:]))+i)*memberSize:])
}

// First is Page for an item of the first page, of which it has less work.
func (v *View) First(item ItemID) (*Page, uint64) {
	if uint32(item) >= v.items {
		return &v.first, 0
	}
	return &v.first, 1 << (item % itemsPerPage)
}
