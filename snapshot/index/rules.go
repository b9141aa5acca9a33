package index

import "iter"

// Rule is one grant that reaches an item.
type Rule struct {
	Grant string
	// Via is the node of the principal through which it came: the one that it belongs to directly.
	Via  string
	Deny bool
	// Cond is the number of the grant's program + 1; 0 for an unconditional grant.
	Cond uint32
}

// Rules yields the grants that reach an item of a view, denies and allows, whatever their conditions say. A grant that
// reaches the principal through several nodes comes several times. It is for explaining, not for deciding.
func (x *Index) Rules(v *View, item ItemID) iter.Seq[Rule] {
	return func(yield func(Rule) bool) {
		if v.x != x || uint32(item) >= v.items {
			return
		}
		bit := uint64(1) << (item % itemsPerPage)
		for k := range v.probes() {
			off := v.probe(k, uint32(item)/itemsPerPage)
			if off < 0 {
				continue
			}
			via := string(x.nodeName(uint32(le.Uint64(x.cells[off:]) >> 32)))
			slot := off / cellSize
			from, to := le.Uint32(x.provOffsets[slot*provOffSize:]), le.Uint32(x.provOffsets[(slot+1)*provOffSize:])
			for i := from; i < to; i++ {
				r := x.provenance[int(i)*provenanceSize:]
				if le.Uint64(r)&bit == 0 {
					continue
				}
				ref := le.Uint32(r[8:])
				rule := Rule{Grant: string(x.grantName(ref >> 1)), Via: via, Deny: ref&1 != 0}
				if c := le.Uint32(r[12:]); c != 0 {
					_, prog := x.Cond(c - 1)
					rule.Cond = prog + 1
				}
				if !yield(rule) {
					return
				}
			}
		}
	}
}
