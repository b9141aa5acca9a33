package index

import (
	"errors"
	"fmt"
	"slices"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/clock"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// What Apply refuses.
var (
	// ErrDelta means that a delta names what the index does not have, or something that no delta may say.
	ErrDelta = errors.New("delta does not fit the index")
	// ErrState means that the delta fits and leads to another state than it says: base and delta are not of one history.
	ErrState = errors.New("state hash differs")
)

// The bounds of an index that deltas have changed, beyond which it has to be built anew.
const (
	maxNewUsers = 1 << 16
	maxNewNodes = 1 << 16
	maxPrograms = 1 << 16
)

// Apply makes a new index of an old one and a delta; the old one stays as it is. It believes nothing that the delta says:
// every number is checked against what is there, as Open does. Errors wrap ErrDelta or ErrState.
func Apply(old *Index, d *snapshotv1.Delta) (*Index, error) {
	x, err := apply(old, d)
	if err != nil {
		return nil, err
	}
	if string(x.state[:]) != string(d.GetStateHash()) {
		return nil, fmt.Errorf("apply delta of generation %d: %v, want %x: %w", d.GetGeneration(), x.state, d.GetStateHash(), ErrState)
	}
	return x, nil
}

func apply(old *Index, d *snapshotv1.Delta) (*Index, error) {
	x := &Index{block: old.block, ov: old.ov.copy()}
	a := &applier{x: x, now: newStater(x), sum: sumOf(old.state)}
	for _, step := range []func(*snapshotv1.Delta) error{a.nodes, a.programs, a.grants, a.cells, a.users} {
		if err := step(d); err != nil {
			return nil, err
		}
	}
	x.state = a.sum.digest()
	return x, nil
}

// applier changes the overlay of x. The state sum loses each record as it was before it gains it as it is now.
type applier struct {
	x   *Index
	now *stater
	sum sum
}

func misfit(what string, i int) error { return fmt.Errorf("apply delta: %s %d: %w", what, i, ErrDelta) }

func (a *applier) nodes(d *snapshotv1.Delta) error {
	ov := a.x.ov
	for i, n := range d.GetNodes() {
		count := a.x.nodeCount()
		fresh := n.GetId() == count+1 && n.GetRef() != ""
		switch {
		case fresh && (snapshot.CheckName(n.GetRef()) != nil || len(ov.newNodes) >= maxNewNodes),
			!fresh && (n.GetRef() != "" || n.GetId() == 0 || n.GetId() > count),
			len(n.GetParents()) > snapshot.MaxParents:
			return misfit("node", i)
		case fresh:
			ov.newNodes = append(ov.newNodes, n.GetRef())
			if snapshot.Ref(n.GetRef()) == snapshot.Everyone {
				ov.everyone = n.GetId()
			}
		default:
			if h, ok := a.now.node(n.GetId()); ok {
				a.sum.sub(h)
			}
		}
		o := ov.node(n.GetId())
		o.ownParents, o.parents = true, n.GetParents()
	}
	// Parents may be nodes that come later in the delta.
	for i, n := range d.GetNodes() {
		for k, p := range n.GetParents() {
			if p == 0 || p > a.x.nodeCount() || k > 0 && p <= n.GetParents()[k-1] {
				return misfit("node", i)
			}
		}
	}
	for _, n := range d.GetNodes() {
		if h, ok := a.now.node(n.GetId()); ok {
			a.sum.add(h)
		}
	}
	return nil
}

func (a *applier) programs(d *snapshotv1.Delta) error {
	ov := a.x.ov
	for i, dp := range d.GetPrograms() {
		if len(ov.programs) >= maxPrograms {
			return misfit("program", i)
		}
		p, err := a.program(dp)
		if err != nil {
			return fmt.Errorf("apply delta: program %d: %w", i, err)
		}
		ov.programs = append(ov.programs, p)
	}
	return nil
}

// program makes a program with a pool of its own out of what the delta says.
func (a *applier) program(dp *snapshotv1.DeltaProgram) (Program, error) {
	x, ov := a.x, a.x.ov
	p := Program{x: x, pool: &pool{}, code: slices.Clone(dp.GetCode())}
	if len(p.code) == 0 || len(p.code)%layout.CodeSize != 0 || len(p.code) > layout.MaxCode*layout.CodeSize {
		return p, ErrDelta
	}
	for _, name := range dp.GetArgs() {
		if snapshot.CheckName(name) != nil {
			return p, ErrDelta
		}
		var r [layout.ArgSize]byte
		le.PutUint32(r[:], uint32(len(p.pool.heap)))
		le.PutUint16(r[4:], uint16(len(name)))
		fold := FoldHash([]byte(name))
		le.PutUint64(r[8:], fold)
		p.args = append(p.args, r[:]...)
		p.pool.heap = append(p.pool.heap, name...)
		if !x.ReadsArg(fold) {
			ov.args = append(ov.args, fold)
		}
	}
	texts, err := a.texts(&p, dp)
	if err != nil {
		return p, err
	}
	sets, err := a.sets(&p, dp)
	if err != nil {
		return p, err
	}
	zones, err := a.zones(dp)
	if err != nil {
		return p, err
	}
	if !relocate(&p, sets, texts, zones) {
		return p, ErrDelta
	}
	if !x.programOK(&p, len(x.clocks)+len(ov.clocks), x.nodeCount()) {
		return p, ErrDelta
	}
	p.Flags = p.flags()
	return p, nil
}

func (a *applier) texts(p *Program, dp *snapshotv1.DeltaProgram) ([]uint64, error) {
	refs := make([]uint64, 0, len(dp.GetTexts()))
	for _, t := range dp.GetTexts() {
		if len(t) > snapshot.MaxCondValue {
			return nil, ErrDelta
		}
		refs = append(refs, uint64(len(p.pool.heap))|uint64(len(t))<<32)
		p.pool.heap = append(p.pool.heap, t...)
	}
	return refs, nil
}

func (a *applier) sets(p *Program, dp *snapshotv1.DeltaProgram) ([]uint64, error) {
	refs := make([]uint64, 0, len(dp.GetSets()))
	for _, s := range dp.GetSets() {
		if len(s)%layout.ValueSize != 0 {
			return nil, ErrDelta
		}
		refs = append(refs, uint64(len(p.pool.values)/layout.ValueSize)|uint64(len(s)/layout.ValueSize)<<32)
		p.pool.values = append(p.pool.values, s...)
	}
	return refs, nil
}

// zones numbers the time zones of a program. One that the index does not have is taken from this process's own data:
// the state hash tells whether that is the same as the compiler's.
func (a *applier) zones(dp *snapshotv1.DeltaProgram) ([]uint32, error) {
	x, ov := a.x, a.x.ov
	ids := make([]uint32, 0, len(dp.GetZones()))
	for _, name := range dp.GetZones() {
		id, ok := x.zoneID(name)
		if !ok {
			c, err := clock.Load(name)
			if err != nil || id >= 1<<16-1 {
				return nil, fmt.Errorf("time zone %.64q: %w", name, ErrDelta)
			}
			ov.clocks, ov.zones = append(ov.clocks, c), append(ov.zones, name)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// zoneID finds a time zone by name; when there is none, the number that it would get.
func (x *Index) zoneID(name string) (uint32, bool) {
	n := len(x.clocks)
	if x.ov != nil {
		n += len(x.ov.clocks)
	}
	for i := range n {
		if x.zoneName(i) == name {
			return uint32(i), true
		}
	}
	return uint32(n), false
}

// relocate turns what instructions refer to, by place in the delta's lists, into references to the program's own pool.
func relocate(p *Program, sets, texts []uint64, zones []uint32) bool {
	seen := map[uint64]bool{}
	for pc := range p.Len() {
		r := p.code[pc*layout.CodeSize : (pc+1)*layout.CodeSize]
		in := p.Instr(pc)
		switch {
		case hasSet(in.Op):
			if in.Operand >= uint64(len(sets)) {
				return false
			}
			ref := sets[in.Operand]
			le.PutUint64(r[8:], ref)
			if in.Op == snapshot.OpIn && in.Type == snapshot.TypeString && !seen[ref] {
				seen[ref] = true
				for k := range int(ref >> 32) {
					at := (int(uint32(ref)) + k) * layout.ValueSize
					n := le.Uint64(p.pool.values[at:])
					if n >= uint64(len(texts)) {
						return false
					}
					le.PutUint64(p.pool.values[at:], texts[n])
				}
			}
		case hasText(in):
			if in.Operand >= uint64(len(texts)) {
				return false
			}
			le.PutUint64(r[8:], texts[in.Operand])
		}
		if in.From == snapshot.FromClock && readsZone(in.Op) {
			if in.Zone >= len(zones) {
				return false
			}
			le.PutUint32(r[4:], layout.ArgWord(in.From, uint32(in.Arg), zones[in.Zone]))
		}
	}
	return true
}

// hasSet reports whether the operand of an instruction refers to a set.
func hasSet(op snapshot.Op) bool {
	return op == snapshot.OpIn || op == snapshot.OpInRange || op == snapshot.OpMember
}

// hasText reports whether the operand of an instruction refers to a text.
func hasText(in Instr) bool {
	if in.Op == snapshot.OpForeign {
		return true
	}
	return (in.Op == snapshot.OpEq || in.Op == snapshot.OpNe) && in.Type == snapshot.TypeString
}

// readsZone reports whether an instruction may compare what a clock shows.
func readsZone(op snapshot.Op) bool { return ReadsOperand(op) && op != snapshot.OpHas }

func (a *applier) grants(d *snapshotv1.Delta) error {
	x, ov := a.x, a.x.ov
	for i, dg := range d.GetGrants() {
		if snapshot.CheckName(dg.GetId()) != nil {
			return misfit("grant", i)
		}
		old, had := x.grant(dg.GetId())
		if had {
			a.sum.sub(a.now.grant(old))
		} else if dg.GetRemoved() {
			return misfit("grant", i)
		}
		g := ovGrant{id: dg.GetId(), removed: dg.GetRemoved(), deny: dg.GetDeny(), node: dg.GetNode()}
		if !g.removed {
			var ok bool
			if g.reach, ok = a.reach(dg.GetReach()); !ok || g.node == 0 || g.node > x.nodeCount() {
				return misfit("grant", i)
			}
			n := ov.node(g.node)
			if !slices.Contains(n.added, g.id) {
				n.added = append(slices.Clip(n.added), g.id)
			}
		}
		ov.setGrant(g)
		if !g.removed {
			a.sum.add(a.now.grant(grantInfo{g.id, g.deny, g.node, g.reach}))
		}
	}
	return nil
}

// reach checks what a grant reaches, or the conditions of a cell.
func (a *applier) reach(list []*snapshotv1.DeltaReach) ([]reach, bool) {
	out := make([]reach, 0, len(list))
	for _, r := range list {
		if r.GetPage() != layout.AnyPage && r.GetPage() >= a.x.nPages || int(r.GetProgram()) > a.x.Programs() {
			return nil, false
		}
		out = append(out, reach{mask: r.GetMask(), page: r.GetPage(), prog: r.GetProgram()})
	}
	return out, true
}

func (a *applier) cells(d *snapshotv1.Delta) error {
	x, ov := a.x, a.x.ov
	for i, dc := range d.GetCells() {
		node, page := dc.GetNode(), dc.GetPage()
		if node == 0 || node > x.nodeCount() || page != layout.AnyPage && page >= x.nPages {
			return misfit("cell", i)
		}
		old, had := x.cellOf(node, page)
		if had {
			a.sum.sub(a.now.cell(layout.CellKey(node, page), old))
		} else if dc.GetRemoved() {
			return misfit("cell", i)
		}
		c := ovCell{key: layout.CellKey(node, page), removed: dc.GetRemoved()}
		if !c.removed {
			c.allow, c.deny = dc.GetAllow(), dc.GetDeny()
			c.conds.First = x.nConds + uint32(len(ov.conds))
			for k, list := range [][]*snapshotv1.DeltaReach{dc.GetDenies(), dc.GetAllows()} {
				rs, ok := a.reach(list)
				if !ok || len(rs) >= 1<<16 {
					return misfit("cell", i)
				}
				for _, r := range rs {
					if r.prog == 0 {
						return misfit("cell", i)
					}
					ov.conds = append(ov.conds, ovCond{r.mask, r.prog - 1})
				}
				if k == 0 {
					c.conds.Deny = uint16(len(rs))
				} else {
					c.conds.Allow = uint16(len(rs))
				}
			}
		}
		ov.setCell(c)
		if !c.removed {
			a.sum.add(a.now.cell(c.key, c.cell))
		}
	}
	return nil
}

func (a *applier) users(d *snapshotv1.Delta) error {
	x, ov := a.x, a.x.ov
	for i, du := range d.GetUsers() {
		count := uint32(x.Principals())
		fresh := du.GetId() == count && du.GetName() != ""
		switch {
		case fresh:
			if _, taken := x.Principal(du.GetName()); taken || du.GetRemoved() || snapshot.CheckName(du.GetName()) != nil ||
				len(ov.newUsers) >= maxNewUsers {
				return misfit("user", i)
			}
			ov.addName(du.GetName(), du.GetId())
		case du.GetName() != "" || du.GetId() >= count || x.gone(PrincipalID(du.GetId())):
			return misfit("user", i)
		default:
			a.sum.sub(a.now.user(PrincipalID(du.GetId())))
		}
		rec, ok := a.user(du)
		if !ok {
			return misfit("user", i)
		}
		ov.setUser(du.GetId(), rec)
		if !du.GetRemoved() {
			a.sum.add(a.now.user(PrincipalID(du.GetId())))
		}
	}
	return nil
}

// user makes the record of a principal. Its name stays where it is.
func (a *applier) user(du *snapshotv1.DeltaUser) (rec [layout.PrincipalSize]byte, ok bool) {
	if id := du.GetId(); id < a.x.nPrincipals {
		copy(rec[:], a.x.principals[id*layout.PrincipalSize:][:layout.AtFlags])
	}
	if du.GetRemoved() {
		rec[layout.AtFlags] = layout.FlagDisabled | layout.FlagRemoved
		return rec, true
	}
	if du.GetFlags()&^layout.FlagDisabled != 0 || du.GetKind() > uint32(snapshot.KindWorkload) || du.GetClearance() > snapshot.MaxLevel {
		return rec, false
	}
	rec[layout.AtFlags], rec[layout.AtKind], rec[layout.AtClearance] = byte(du.GetFlags()), byte(du.GetKind()), byte(du.GetClearance())
	region, ok := a.region(du.GetRegion())
	if !ok {
		return rec, false
	}
	le.PutUint16(rec[layout.AtRegion:], region)
	nodes := du.GetNodes()
	for i, n := range nodes {
		if n == 0 || n > a.x.nodeCount() || i > 0 && n <= nodes[i-1] {
			return rec, false
		}
	}
	if len(nodes) <= layout.InlineNodes {
		rec[layout.AtCount] = byte(len(nodes))
		for i, n := range nodes {
			le.PutUint32(rec[layout.AtNodes+4*i:], n)
		}
		return rec, true
	}
	rec[layout.AtCount] = layout.ManyNodes
	le.PutUint32(rec[layout.AtNodes:], uint32(len(a.x.members)/layout.MemberSize+len(a.x.ov.members)))
	le.PutUint32(rec[layout.AtNodes+4:], uint32(len(nodes)))
	a.x.ov.members = append(a.x.ov.members, nodes...)
	return rec, true
}

// region numbers a region; 0 is none.
func (a *applier) region(name string) (uint16, bool) {
	if name == "" {
		return 0, true
	}
	base := len(a.x.regions) / layout.RegionSize
	for i := range base {
		if string(a.x.name(a.x.regions[i*layout.RegionSize:])) == name {
			return uint16(i + 1), true
		}
	}
	if i := slices.Index(a.x.ov.regions, name); i >= 0 {
		return uint16(base + i + 1), true
	}
	n := base + len(a.x.ov.regions)
	if snapshot.CheckName(name) != nil || n >= 1<<16-1 {
		return 0, false
	}
	a.x.ov.regions = append(a.x.ov.regions, name)
	return uint16(n + 1), true
}
