package index

import "github.com/mcpvault/mcpvault/snapshot/internal/layout"

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

// cell is the policy of one node on one page.
type cell struct {
	allow, deny uint64
	conds       CondRange
}

// View fixes a principal and a server.
func (x *Index) View(p PrincipalID, s ServerID) View {
	v := View{x: x, principal: p, server: s, disabled: true}
	if int(p) >= x.Principals() || uint32(s) >= x.nServers {
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
func (v *View) Pages() int { return int(v.items+layout.ItemsPerPage-1) / layout.ItemsPerPage }

// Page returns the page of an item and the item's bit in it, which is 0 for an item that does not exist. Pages after the
// first are built into scratch.
func (v *View) Page(item ItemID, scratch *Page) (*Page, uint64) {
	if uint32(item) >= v.items {
		return &v.first, 0
	}
	bit := uint64(1) << (item % layout.ItemsPerPage)
	if item < layout.ItemsPerPage {
		return &v.first, bit
	}
	v.load(scratch, uint32(item)/layout.ItemsPerPage)
	return scratch, bit
}

// First is Page for an item of the first page, of which it has less work.
func (v *View) First(item ItemID) (*Page, uint64) {
	if uint32(item) >= v.items {
		return &v.first, 0
	}
	return &v.first, 1 << (item % layout.ItemsPerPage)
}

// load gathers the masks of one page over all nodes of the principal.
func (v *View) load(pg *Page, page uint32) {
	*pg = Page{}
	x := v.x
	r := x.principal(v.principal)
	n := x.memberCount(r)
	for i := range n + 1 {
		node := x.everyoneNode()
		if i < n {
			node = x.memberAt(r, i)
		}
		if c, ok := x.cellOf(node, v.pageBase+page); ok {
			pg.add(x, c)
		}
		if c, ok := x.cellOf(node, layout.AnyPage); ok {
			pg.add(x, c)
		}
	}
	if rest := v.items - page*layout.ItemsPerPage; rest < layout.ItemsPerPage {
		valid := uint64(1)<<rest - 1
		pg.Allow &= valid
		pg.Deny &= valid
		pg.CondAllow &= valid
		pg.CondDeny &= valid
	}
}

func (pg *Page) add(x *Index, c cell) {
	pg.Allow |= c.allow
	pg.Deny |= c.deny
	if c.conds.Deny|c.conds.Allow == 0 {
		return
	}
	for i := range uint32(c.conds.Deny) {
		mask, _ := x.Cond(c.conds.First + i)
		pg.CondDeny |= mask
	}
	for i := range uint32(c.conds.Allow) {
		mask, _ := x.Cond(c.conds.First + uint32(c.conds.Deny) + i)
		pg.CondAllow |= mask
	}
	if pg.n < inlineRanges {
		pg.ranges[pg.n] = c.conds
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
	return 2 * (v.x.memberCount(v.x.principal(v.principal)) + 1)
}

// Range returns the k-th range of conditions of the item's page.
func (v *View) Range(pg *Page, item ItemID, k int) CondRange {
	if pg.n <= inlineRanges {
		return pg.ranges[k&(inlineRanges-1)]
	}
	page := v.pageBase + uint32(item)/layout.ItemsPerPage
	if k&1 == 1 {
		page = layout.AnyPage
	}
	c, _ := v.x.cellOf(v.nodeAt(k/2), page)
	return c.conds
}

// nodeAt is the i-th node of the principal; everyone comes last.
func (v *View) nodeAt(i int) uint32 {
	r := v.x.principal(v.principal)
	if i >= v.x.memberCount(r) {
		return v.x.everyoneNode()
	}
	return v.x.memberAt(r, i)
}

// cellOf finds the policy of a node on a page.
func (x *Index) cellOf(node, page uint32) (cell, bool) {
	if x.ov != nil {
		if c, known := x.ov.cell(node, page); known {
			return c.cell, !c.removed
		}
	}
	owners := x.ownNode
	if page == layout.AnyPage {
		owners = x.anyNode
	}
	if !bit(owners, node) {
		return cell{}, false
	}
	off := x.cell(node, page)
	if off < 0 {
		return cell{}, false
	}
	c := x.cells[off : off+layout.CellSize : off+layout.CellSize]
	return cell{
		allow: le.Uint64(c[8:]), deny: le.Uint64(c[16:]),
		conds: CondRange{First: le.Uint32(c[24:]), Deny: le.Uint16(c[28:]), Allow: le.Uint16(c[30:])},
	}, true
}

// memberCount counts the direct nodes of a principal.
func (x *Index) memberCount(r []byte) int {
	if n := r[layout.AtCount]; n != layout.ManyNodes {
		return int(n)
	}
	return int(le.Uint32(r[layout.AtNodes+4:]))
}

// memberAt is the i-th direct node of a principal.
func (x *Index) memberAt(r []byte, i int) uint32 {
	if r[layout.AtCount] != layout.ManyNodes {
		return le.Uint32(r[layout.AtNodes+4*i:])
	}
	at := int(le.Uint32(r[layout.AtNodes:])) + i
	if base := len(x.members) / layout.MemberSize; at >= base {
		return x.ov.members[at-base]
	}
	return le.Uint32(x.members[at*layout.MemberSize:])
}

// everyoneNode is the node of everyone, 0 when there is none.
func (x *Index) everyoneNode() uint32 {
	if x.ov != nil && x.ov.everyone != 0 {
		return x.ov.everyone
	}
	return x.everyone
}
