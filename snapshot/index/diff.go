package index

import (
	"errors"
	"fmt"
	"slices"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// ErrRebase means that no delta leads from one index to the other: servers or items differ, or there is too much to say.
var ErrRebase = errors.New("a new base is needed")

// maxOps bounds how many records one delta replaces; more would not fit a delta's bytes anyway.
const maxOps = 8192

// Diff says what has to be done to old for it to become next. Only the operations and the state hash are filled in. The
// error wraps ErrRebase when that cannot be said by a delta.
func Diff(old, next *Index) (*snapshotv1.Delta, error) {
	if err := sameServers(old, next); err != nil {
		return nil, err
	}
	d := &differ{
		old: old, next: next, was: newStater(old), now: newStater(next),
		out: &snapshotv1.Delta{}, progs: map[snapshot.Digest]uint32{}, count: old.nodeCount(),
	}
	state := next.StateHash()
	d.out.StateHash = state[:]
	d.nodes()
	d.programs()
	d.grants()
	d.cells()
	d.users()
	if n := len(d.out.GetPrograms()) + len(d.out.GetNodes()) + len(d.out.GetGrants()) + len(d.out.GetCells()) + len(d.out.GetUsers()); n > maxOps {
		return nil, fmt.Errorf("%d records differ: %w", n, ErrRebase)
	}
	return d.out, nil
}

func sameServers(old, next *Index) error {
	if old.tenant != next.tenant || old.nServers != next.nServers || len(old.items) != len(next.items) {
		return fmt.Errorf("servers or items differ: %w", ErrRebase)
	}
	for s := range old.nServers {
		base, n := old.itemRange(ServerID(s))
		if other, m := next.itemRange(ServerID(s)); string(old.serverName(s)) != string(next.serverName(s)) || base != other || n != m {
			return fmt.Errorf("server %s differs: %w", next.serverName(s), ErrRebase)
		}
		for i := base; i < base+n; i++ {
			if string(old.itemName(i)) != string(next.itemName(i)) {
				return fmt.Errorf("an item of server %s differs: %w", next.serverName(s), ErrRebase)
			}
		}
	}
	return nil
}

// differ compares two indexes. Everything it writes is in the numbers of the old one.
type differ struct {
	old, next *Index
	was, now  *stater
	out       *snapshotv1.Delta
	// node maps nodes of next to those of old; count is how many those are with the new ones.
	node  []uint32
	count uint32
	// progs are the old numbers of programs by what they do, with the new ones.
	progs map[snapshot.Digest]uint32
	// fresh counts the new principals so far.
	fresh int
}

func (d *differ) nodes() {
	old := make(map[snapshot.Ref]uint32, d.count)
	for n := uint32(1); n <= d.count; n++ {
		old[d.old.nodeRef(n)] = n
	}
	d.node = make([]uint32, d.next.nodeCount()+1)
	var fresh []uint32
	for n := uint32(1); n <= d.next.nodeCount(); n++ {
		ref := d.next.nodeRef(n)
		id, ok := old[ref]
		if !ok {
			d.count++
			id = d.count
			fresh = append(fresh, n)
		}
		d.node[n] = id
		delete(old, ref)
	}
	for _, n := range fresh {
		d.out.Nodes = append(d.out.Nodes, &snapshotv1.DeltaNode{Id: d.node[n], Ref: string(d.next.nodeRef(n)), Parents: d.mapNodes(d.next.parentsOf(n))})
	}
	for n := uint32(1); n <= d.next.nodeCount(); n++ {
		if id := d.node[n]; id <= d.old.nodeCount() {
			if up := d.mapNodes(d.next.parentsOf(n)); !slices.Equal(up, sortedNodes(d.old.parentsOf(id))) {
				d.out.Nodes = append(d.out.Nodes, &snapshotv1.DeltaNode{Id: id, Parents: up})
			}
		}
	}
	// What is left of old is named nowhere any more.
	gone := make([]uint32, 0, len(old))
	for _, n := range old {
		if len(d.old.parentsOf(n)) > 0 {
			gone = append(gone, n)
		}
	}
	for _, n := range sortedNodes(gone) {
		d.out.Nodes = append(d.out.Nodes, &snapshotv1.DeltaNode{Id: n})
	}
}

func sortedNodes(list []uint32) []uint32 {
	slices.Sort(list)
	return list
}

// mapNodes gives nodes of next their numbers in old, ascending.
func (d *differ) mapNodes(list []uint32) []uint32 {
	out := make([]uint32, 0, len(list))
	for _, n := range list {
		out = append(out, d.node[n])
	}
	return sortedNodes(out)
}

// programs learns what the old programs do.
func (d *differ) programs() {
	for i := range uint32(d.old.Programs()) {
		h := d.was.program(i)
		if _, twice := d.progs[h]; !twice {
			d.progs[h] = i
		}
	}
}

// program is the old number of a program of next; one that there is not is added.
func (d *differ) program(id uint32) uint32 {
	h := d.now.program(id)
	n, ok := d.progs[h]
	if !ok {
		n = uint32(d.old.Programs() + len(d.out.GetPrograms()))
		d.progs[h] = n
		d.out.Programs = append(d.out.Programs, d.extract(id))
	}
	return n
}

// extract writes a program so that it stands by itself.
func (d *differ) extract(id uint32) *snapshotv1.DeltaProgram {
	p := d.next.Program(id)
	out := &snapshotv1.DeltaProgram{Code: slices.Clone(p.code)}
	for i := range len(p.args) / layout.ArgSize {
		name, _ := p.ArgName(i)
		out.Args = append(out.Args, string(name))
	}
	for pc := range p.Len() {
		in := p.Instr(pc)
		r := out.GetCode()[pc*layout.CodeSize : (pc+1)*layout.CodeSize]
		switch {
		case hasSet(in.Op):
			le.PutUint64(r[8:], uint64(len(out.GetSets())))
			out.Sets = append(out.Sets, d.extractSet(&p, in, out))
		case hasText(in):
			le.PutUint64(r[8:], uint64(len(out.GetTexts())))
			out.Texts = append(out.Texts, slices.Clone(p.Text(in.Operand)))
		}
		if in.From == snapshot.FromClock && readsZone(in.Op) {
			name := d.next.zoneName(in.Zone)
			at := slices.Index(out.GetZones(), name)
			if at < 0 {
				at = len(out.GetZones())
				out.Zones = append(out.Zones, name)
			}
			le.PutUint32(r[4:], layout.ArgWord(in.From, uint32(in.Arg), uint32(at)))
		}
	}
	return out
}

func (d *differ) extractSet(p *Program, in Instr, out *snapshotv1.DeltaProgram) []byte {
	var b []byte
	switch {
	case in.Op == snapshot.OpMember:
		members := make([]uint32, 0, p.Set(in.Operand))
		for i := range p.Set(in.Operand) {
			members = append(members, uint32(p.Member(in.Operand, i)))
		}
		for _, n := range d.mapNodes(members) {
			b = le.AppendUint64(b, uint64(n))
		}
	case in.Op == snapshot.OpIn && in.Type == snapshot.TypeString:
		for i := range p.Set(in.Operand) {
			b = le.AppendUint64(b, uint64(len(out.GetTexts())))
			out.Texts = append(out.Texts, slices.Clone(p.Text(p.Member(in.Operand, i))))
		}
	default:
		for i := range p.Set(in.Operand) {
			b = le.AppendUint64(b, p.Member(in.Operand, i))
		}
	}
	return b
}

func (d *differ) grants() {
	for g := range d.next.allGrants() {
		old, had := d.old.grant(g.id)
		if had && d.was.grant(old) == d.now.grant(g) {
			continue
		}
		dg := &snapshotv1.DeltaGrant{Id: g.id, Deny: g.deny, Node: d.node[g.node]}
		for _, r := range g.reach {
			dg.Reach = append(dg.Reach, d.reach(r))
		}
		d.out.Grants = append(d.out.Grants, dg)
	}
	for g := range d.old.allGrants() {
		if _, still := d.next.grant(g.id); !still {
			d.out.Grants = append(d.out.Grants, &snapshotv1.DeltaGrant{Id: g.id, Removed: true})
		}
	}
}

func (d *differ) reach(r reach) *snapshotv1.DeltaReach {
	out := &snapshotv1.DeltaReach{Page: r.page, Mask: r.mask}
	if r.prog != 0 {
		out.Program = d.program(r.prog-1) + 1
	}
	return out
}

func (d *differ) cells() {
	kept := make(map[uint64]bool, d.old.nCells)
	for key, c := range d.next.allCells() {
		node, page := d.node[uint32(key>>32)], uint32(key)
		kept[layout.CellKey(node, page)] = true
		old, had := d.old.cellOf(node, page)
		if had && d.sameCell(old, c) {
			continue
		}
		dc := &snapshotv1.DeltaCell{Node: node, Page: page, Allow: c.allow, Deny: c.deny}
		for i := range uint32(c.conds.Deny) + uint32(c.conds.Allow) {
			mask, prog := d.next.Cond(c.conds.First + i)
			r := &snapshotv1.DeltaReach{Page: page, Mask: mask, Program: d.program(prog) + 1}
			if i < uint32(c.conds.Deny) {
				dc.Denies = append(dc.Denies, r)
			} else {
				dc.Allows = append(dc.Allows, r)
			}
		}
		d.out.Cells = append(d.out.Cells, dc)
	}
	var gone []uint64
	for key := range d.old.allCells() {
		if !kept[key] {
			gone = append(gone, key)
		}
	}
	slices.Sort(gone)
	for _, key := range gone {
		d.out.Cells = append(d.out.Cells, &snapshotv1.DeltaCell{Node: uint32(key >> 32), Page: uint32(key), Removed: true})
	}
}

// sameCell compares by what cells say, in whatever order their conditions stand.
func (d *differ) sameCell(old, next cell) bool {
	if old.allow != next.allow || old.deny != next.deny || old.conds.Deny != next.conds.Deny || old.conds.Allow != next.conds.Allow {
		return false
	}
	return slices.Equal(d.was.conds(old.conds), d.now.conds(next.conds))
}

func (d *differ) users() {
	for i := range d.next.Principals() {
		p := PrincipalID(i)
		name := d.next.PrincipalName(p)
		if name == "" {
			continue
		}
		if old, ok := d.old.Principal(name); !ok {
			fresh := d.user(uint32(d.old.Principals()+d.fresh), p)
			fresh.Name = name
			d.fresh++
			d.out.Users = append(d.out.Users, fresh)
		} else if !d.sameUser(old, p) {
			d.out.Users = append(d.out.Users, d.user(uint32(old), p))
		}
	}
	for i := range d.old.Principals() {
		name := d.old.PrincipalName(PrincipalID(i))
		if _, still := d.next.Principal(name); name != "" && !still {
			d.out.Users = append(d.out.Users, &snapshotv1.DeltaUser{Id: uint32(i), Removed: true})
		}
	}
}

func (d *differ) user(id uint32, p PrincipalID) *snapshotv1.DeltaUser {
	r := d.next.principal(p)
	return &snapshotv1.DeltaUser{
		Id: id, Flags: uint32(r[layout.AtFlags]), Kind: uint32(r[layout.AtKind]), Clearance: uint32(r[layout.AtClearance]),
		Region: string(d.next.Region(p)), Nodes: d.members(d.next, p, true),
	}
}

// members are the direct nodes of a principal, ascending; those of next in the numbers of old.
func (d *differ) members(x *Index, p PrincipalID, translate bool) []uint32 {
	r := x.principal(p)
	out := make([]uint32, 0, x.memberCount(r))
	for i := range x.memberCount(r) {
		n := x.memberAt(r, i)
		if translate {
			n = d.node[n]
		}
		out = append(out, n)
	}
	return sortedNodes(out)
}

func (d *differ) sameUser(old, next PrincipalID) bool {
	a, b := d.old.principal(old), d.next.principal(next)
	return a[layout.AtFlags] == b[layout.AtFlags] && a[layout.AtKind] == b[layout.AtKind] && a[layout.AtClearance] == b[layout.AtClearance] &&
		string(d.old.Region(old)) == string(d.next.Region(next)) &&
		slices.Equal(d.members(d.old, old, false), d.members(d.next, next, true))
}
