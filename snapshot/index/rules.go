package index

import (
	"cmp"
	"iter"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// Rule is one grant that reaches an item.
type Rule struct {
	Grant string
	// Via is the node through which it came: one that the principal belongs to directly.
	Via string
	// Path leads from Via up to the node that the grant is given to, both included.
	Path []string
	Deny bool
	// Cond is the number of the grant's program + 1; 0 for an unconditional grant.
	Cond uint32
}

// grantInfo is one grant as it lies in the block or in the overlay.
type grantInfo struct {
	id    string
	deny  bool
	node  uint32
	reach []reach
}

// Rules yields the grants that reach an item of a view, denies and allows, whatever their conditions say. A grant that
// reaches the principal through several nodes comes several times. It is for explaining, not for deciding.
func (x *Index) Rules(v *View, item ItemID) iter.Seq[Rule] {
	return func(yield func(Rule) bool) {
		bit := uint64(1) << (item % layout.ItemsPerPage)
		for mask, rule := range x.PageRules(v, int(item)/layout.ItemsPerPage) {
			if mask&bit != 0 && uint32(item) < v.items && !yield(rule) {
				return
			}
		}
	}
}

// PageRules is Rules for the 64 items of a page at once; with each rule comes which of them it reaches.
func (x *Index) PageRules(v *View, page int) iter.Seq2[uint64, Rule] {
	return func(yield func(uint64, Rule) bool) {
		if v.x != x || page < 0 || page >= v.Pages() {
			return
		}
		n := x.memberCount(x.principal(v.principal))
		for i := range n + 1 {
			if node := v.nodeAt(i); node != 0 && !x.rulesFrom(node, v.pageBase+uint32(page), yield) {
				return
			}
		}
	}
}

// rulesFrom climbs from a direct node. It reports false when the caller has had enough.
func (x *Index) rulesFrom(via, page uint32, yield func(uint64, Rule) bool) bool {
	type step struct {
		node uint32
		from int // place in the queue of the step below
	}
	queue := []step{{via, -1}}
	seen := map[uint32]bool{via: true}
	for at := 0; at < len(queue); at++ {
		var path []string
		for _, g := range x.grantsOf(queue[at].node) {
			for _, r := range g.reach {
				if r.page != page && r.page != layout.AnyPage {
					continue
				}
				if path == nil {
					for k := at; k >= 0; k = queue[k].from {
						path = append(path, string(x.nodeRef(queue[k].node)))
					}
					slices.Reverse(path)
				}
				if !yield(r.mask, Rule{Grant: g.id, Via: path[0], Path: path, Deny: g.deny, Cond: r.prog}) {
					return false
				}
			}
		}
		for _, up := range x.parentsOf(queue[at].node) {
			if !seen[up] {
				seen[up] = true
				queue = append(queue, step{up, at})
			}
		}
	}
	return true
}

// grantsOf lists the grants given to a node, by id.
func (x *Index) grantsOf(node uint32) []grantInfo {
	var out []grantInfo
	if node <= x.nNodes {
		r := x.nodes[(node-1)*layout.NodeSize:]
		first, count := int(le.Uint32(r[16:])), int(le.Uint32(r[20:]))
		for i := range count {
			g := x.grantAt(le.Uint32(x.nodeGrants[(first+i)*layout.EdgeSize:]))
			if x.ov == nil || x.ov.grant(g.id) == nil {
				out = append(out, g)
			}
		}
	}
	if x.ov == nil {
		return out
	}
	if n := x.ov.findNode(node); n != nil {
		for _, id := range n.added {
			if g := x.ov.grant(id); g != nil && !g.removed && g.node == node {
				out = append(out, grantInfo{g.id, g.deny, g.node, g.reach})
			}
		}
	}
	slices.SortFunc(out, func(a, b grantInfo) int { return cmp.Compare(a.id, b.id) })
	return out
}

// grantAt is the i-th grant of the block.
func (b *block) grantAt(i uint32) grantInfo {
	r := b.grants[int(i)*layout.GrantSize : (int(i)+1)*layout.GrantSize]
	first, n := int(le.Uint32(r[12:])), int(le.Uint32(r[16:]))
	g := grantInfo{
		id: string(b.name(r)), deny: le.Uint16(r[6:])&layout.GrantDenies != 0, node: le.Uint32(r[8:]), reach: make([]reach, n),
	}
	for k := range g.reach {
		c := b.reaches[(first+k)*layout.ReachSize:]
		g.reach[k] = reach{mask: le.Uint64(c), page: le.Uint32(c[8:]), prog: le.Uint32(c[12:])}
	}
	return g
}

// findGrant finds a grant of the block by its id.
func (b *block) findGrant(id string) (grantInfo, bool) {
	lo, hi := uint32(0), b.nGrants
	for lo < hi {
		if mid := lo + (hi-lo)/2; string(b.name(b.grants[mid*layout.GrantSize:])) < id {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == b.nGrants || string(b.name(b.grants[lo*layout.GrantSize:])) != id {
		return grantInfo{}, false
	}
	return b.grantAt(lo), true
}

// grant finds a grant that is in force.
func (x *Index) grant(id string) (grantInfo, bool) {
	if x.ov != nil {
		if g := x.ov.grant(id); g != nil {
			return grantInfo{g.id, g.deny, g.node, g.reach}, !g.removed
		}
	}
	return x.findGrant(id)
}

// allGrants yields the grants in force, those of the block first.
func (x *Index) allGrants() iter.Seq[grantInfo] {
	return func(yield func(grantInfo) bool) {
		for i := range x.nGrants {
			g := x.grantAt(i)
			if x.ov != nil && x.ov.grant(g.id) != nil {
				continue
			}
			if !yield(g) {
				return
			}
		}
		if x.ov == nil {
			return
		}
		for _, g := range x.ov.grants {
			if !g.removed && !yield(grantInfo{g.id, g.deny, g.node, g.reach}) {
				return
			}
		}
	}
}
