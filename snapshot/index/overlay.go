package index

import (
	"cmp"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/clock"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// overlay is what deltas have made of a block: small sorted lists, looked at only for what a delta has touched. It is
// copied for each delta and never written to once readers have it.
type overlay struct {
	users []ovUser // by id
	// dirtyUsers and dirtyNodes have a bit for each principal, and for each node with a cell, that is in here.
	dirtyUsers, dirtyNodes []uint64

	newUsers []string // names of the principals past those of the block
	byName   []ovName // the same, by name
	regions  []string // past those of the block
	members  []uint32 // past those of the block, for principals with many nodes

	newNodes []string // refs of the nodes past those of the block
	nodes    []ovNode // by id
	everyone uint32

	cells    []ovCell // by key
	conds    []ovCond // past those of the block
	programs []Program
	args     []uint64 // folded hashes of argument names that the block's programs do not read
	clocks   []clock.Table
	zones    []string

	grants []ovGrant // by id
}

type ovUser struct {
	id  uint32
	rec [layout.PrincipalSize]byte
}

type ovName struct {
	name string
	id   uint32
}

type ovNode struct {
	id      uint32
	parents []uint32
	// ownParents is false while the block's parents hold and only the grants differ.
	ownParents bool
	// added are ids of grants in the overlay that are given to the node.
	added []string
}

type ovCell struct {
	key     uint64
	removed bool
	cell
}

type ovCond struct {
	mask uint64
	prog uint32
}

type ovGrant struct {
	id      string
	removed bool
	deny    bool
	node    uint32
	reach   []reach
}

// reach is what a grant reaches on one page.
type reach struct {
	mask uint64
	page uint32
	prog uint32 // + 1
}

// copy returns an overlay that may be changed. What only grows is cut to its length, so that two deltas on one index
// never write to the same place.
func (o *overlay) copy() *overlay {
	if o == nil {
		return &overlay{}
	}
	c := *o
	c.users, c.byName = slices.Clone(o.users), slices.Clone(o.byName)
	c.dirtyUsers, c.dirtyNodes = slices.Clone(o.dirtyUsers), slices.Clone(o.dirtyNodes)
	c.nodes, c.cells, c.grants = slices.Clone(o.nodes), slices.Clone(o.cells), slices.Clone(o.grants)
	c.newUsers, c.regions, c.members = slices.Clip(o.newUsers), slices.Clip(o.regions), slices.Clip(o.members)
	c.newNodes, c.conds, c.programs = slices.Clip(o.newNodes), slices.Clip(o.conds), slices.Clip(o.programs)
	c.args, c.clocks, c.zones = slices.Clip(o.args), slices.Clip(o.clocks), slices.Clip(o.zones)
	return &c
}

func setBit(set []uint64, i uint32) []uint64 {
	for int(i/64) >= len(set) {
		set = append(set, 0)
	}
	set[i/64] |= 1 << (i % 64)
	return set
}

// user is the record of a principal that a delta has touched; nil for another.
func (o *overlay) user(p PrincipalID) []byte {
	if !bit(o.dirtyUsers, uint32(p)) {
		return nil
	}
	i, ok := slices.BinarySearchFunc(o.users, uint32(p), func(u ovUser, id uint32) int { return cmp.Compare(u.id, id) })
	if !ok {
		return nil
	}
	return o.users[i].rec[:]
}

func (o *overlay) setUser(id uint32, rec [layout.PrincipalSize]byte) {
	o.dirtyUsers = setBit(o.dirtyUsers, id)
	i, ok := slices.BinarySearchFunc(o.users, id, func(u ovUser, id uint32) int { return cmp.Compare(u.id, id) })
	if ok {
		o.users[i].rec = rec
		return
	}
	o.users = slices.Insert(o.users, i, ovUser{id, rec})
}

// principal finds one of the new principals that is not gone.
func (o *overlay) principal(base uint32, name string) (PrincipalID, bool) {
	i, ok := slices.BinarySearchFunc(o.byName, name, func(n ovName, name string) int { return cmp.Compare(n.name, name) })
	for ; ok && i < len(o.byName) && o.byName[i].name == name; i++ {
		id := PrincipalID(o.byName[i].id)
		if r := o.user(id); uint32(id) >= base && r != nil && r[layout.AtFlags]&layout.FlagRemoved == 0 {
			return id, true
		}
	}
	return 0, false
}

func (o *overlay) addName(name string, id uint32) {
	i, _ := slices.BinarySearchFunc(o.byName, name, func(n ovName, name string) int { return cmp.Compare(n.name, name) })
	o.newUsers = append(o.newUsers, name)
	o.byName = slices.Insert(o.byName, i, ovName{name, id})
}

// cell finds the policy of a node on a page, if a delta has touched it.
func (o *overlay) cell(node, page uint32) (ovCell, bool) {
	if !bit(o.dirtyNodes, node) {
		return ovCell{}, false
	}
	i, ok := slices.BinarySearchFunc(o.cells, layout.CellKey(node, page), func(c ovCell, key uint64) int { return cmp.Compare(c.key, key) })
	if !ok {
		return ovCell{}, false
	}
	return o.cells[i], true
}

func (o *overlay) setCell(c ovCell) {
	o.dirtyNodes = setBit(o.dirtyNodes, uint32(c.key>>32))
	i, ok := slices.BinarySearchFunc(o.cells, c.key, func(c ovCell, key uint64) int { return cmp.Compare(c.key, key) })
	if ok {
		o.cells[i] = c
		return
	}
	o.cells = slices.Insert(o.cells, i, c)
}

// node finds or makes the entry of a node.
func (o *overlay) node(id uint32) *ovNode {
	i, ok := slices.BinarySearchFunc(o.nodes, id, func(n ovNode, id uint32) int { return cmp.Compare(n.id, id) })
	if !ok {
		o.nodes = slices.Insert(o.nodes, i, ovNode{id: id})
	}
	return &o.nodes[i]
}

func (o *overlay) findNode(id uint32) *ovNode {
	i, ok := slices.BinarySearchFunc(o.nodes, id, func(n ovNode, id uint32) int { return cmp.Compare(n.id, id) })
	if !ok {
		return nil
	}
	return &o.nodes[i]
}

func (o *overlay) grant(id string) *ovGrant {
	i, ok := slices.BinarySearchFunc(o.grants, id, func(g ovGrant, id string) int { return cmp.Compare(g.id, id) })
	if !ok {
		return nil
	}
	return &o.grants[i]
}

func (o *overlay) setGrant(g ovGrant) {
	i, ok := slices.BinarySearchFunc(o.grants, g.id, func(g ovGrant, id string) int { return cmp.Compare(g.id, id) })
	if ok {
		o.grants[i] = g
		return
	}
	o.grants = slices.Insert(o.grants, i, g)
}

func (o *overlay) readsArg(fold uint64) bool { return slices.Contains(o.args, fold) }

// Touched counts the records that deltas have replaced, and those of the block: when the first is no small part of the
// second, it is time for a new block.
func (x *Index) Touched() (replaced, total int) {
	total = int(x.nPrincipals + x.nCells + x.nGrants + x.nNodes)
	if x.ov != nil {
		replaced = len(x.ov.users) + len(x.ov.cells) + len(x.ov.grants) + len(x.ov.nodes)
	}
	return replaced, total
}

// nodeCount counts the nodes; their numbers run from 1.
func (x *Index) nodeCount() uint32 {
	if x.ov != nil {
		return x.nNodes + uint32(len(x.ov.newNodes))
	}
	return x.nNodes
}

// nodeRef is what a node stands for; node 0 is nobody.
func (x *Index) nodeRef(n uint32) snapshot.Ref {
	if n > x.nNodes {
		return snapshot.Ref(x.ov.newNodes[n-1-x.nNodes])
	}
	return snapshot.Ref(x.name(x.nodes[(n-1)*layout.NodeSize:]))
}

// parentsOf lists the nodes above a node.
func (x *Index) parentsOf(n uint32) []uint32 {
	if x.ov != nil {
		if o := x.ov.findNode(n); o != nil && o.ownParents {
			return o.parents
		}
	}
	if n > x.nNodes {
		return nil
	}
	r := x.nodes[(n-1)*layout.NodeSize:]
	first, count := le.Uint32(r[8:]), le.Uint32(r[12:])
	out := make([]uint32, count)
	for i := range out {
		out[i] = le.Uint32(x.edges[(int(first)+i)*layout.EdgeSize:])
	}
	return out
}

// zone is the i-th time zone of the index.
func (x *Index) zone(i int) clock.Table {
	if i >= len(x.clocks) {
		return x.ov.clocks[i-len(x.clocks)]
	}
	return x.clocks[i]
}
