package index

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// The state hash is the sum, modulo 2^256, of the SHA-256 of each record: users, cells, grants, nodes with parents, and
// servers. A record is written by what it names, never by ids or places, so that the sum does not depend on layout or
// history, and a delta changes it by what it changes. It tells honest states apart. It does not stand for the records
// against somebody who may choose them: signatures do that.

// sum adds a hash to, or takes it from, the state.
type sum struct{ w [4]uint64 }

func (s *sum) add(h snapshot.Digest) {
	var c uint64
	for i := range s.w {
		s.w[i], c = bits.Add64(s.w[i], binary.LittleEndian.Uint64(h[8*i:]), c)
	}
}

func (s *sum) sub(h snapshot.Digest) {
	var c uint64
	for i := range s.w {
		s.w[i], c = bits.Sub64(s.w[i], binary.LittleEndian.Uint64(h[8*i:]), c)
	}
}

func (s *sum) digest() (d snapshot.Digest) {
	for i, w := range s.w {
		binary.LittleEndian.PutUint64(d[8*i:], w)
	}
	return d
}

func sumOf(d snapshot.Digest) (s sum) {
	s.add(d)
	return s
}

// Sum computes the state hash from every record, as nobody has to who believes StateHash.
func (x *Index) Sum() snapshot.Digest { return newStater(x).whole() }

// stater writes the records of an index. It keeps what it looked up; it is for one goroutine.
type stater struct {
	x     *Index
	buf   []byte
	progs map[uint32]snapshot.Digest
	pages []pageName
	// names are the refs of nodes that were asked for, by number; refs is room for a list of them.
	names []string
	refs  []string
}

type pageName struct {
	server uint32
	number uint32
}

func newStater(x *Index) *stater {
	s := &stater{x: x, progs: map[uint32]snapshot.Digest{}}
	for srv := range x.nServers {
		_, n := x.itemRange(ServerID(srv))
		for pg := range (n + layout.ItemsPerPage - 1) / layout.ItemsPerPage {
			s.pages = append(s.pages, pageName{srv, pg})
		}
	}
	return s
}

func (s *stater) begin(kind byte)          { s.buf = append(s.buf[:0], kind) }
func (s *stater) num(n uint64)             { s.buf = binary.AppendUvarint(s.buf, n) }
func (s *stater) text(b string)            { s.num(uint64(len(b))); s.buf = append(s.buf, b...) }
func (s *stater) bytes(b []byte)           { s.num(uint64(len(b))); s.buf = append(s.buf, b...) }
func (s *stater) word(n uint64)            { s.buf = binary.LittleEndian.AppendUint64(s.buf, n) }
func (s *stater) end() (d snapshot.Digest) { return sha256.Sum256(s.buf) }

// whole is the state of everything.
func (s *stater) whole() snapshot.Digest {
	x := s.x
	var all sum
	for srv := range x.nServers {
		all.add(s.server(ServerID(srv)))
	}
	for p := range x.Principals() {
		if !x.gone(PrincipalID(p)) {
			all.add(s.user(PrincipalID(p)))
		}
	}
	for n := uint32(1); n <= x.nodeCount(); n++ {
		if d, ok := s.node(n); ok {
			all.add(d)
		}
	}
	for g := range x.allGrants() {
		all.add(s.grant(g))
	}
	for key, c := range x.allCells() {
		all.add(s.cell(key, c))
	}
	return all.digest()
}

func (s *stater) server(id ServerID) snapshot.Digest {
	s.begin('s')
	s.bytes(s.x.serverName(uint32(id)))
	base, n := s.x.itemRange(id)
	for i := range n {
		s.bytes(s.x.itemName(base + i))
	}
	return s.end()
}

func (s *stater) user(p PrincipalID) snapshot.Digest {
	r := s.x.principal(p)
	s.begin('u')
	s.text(s.x.NameOf(p))
	s.buf = append(s.buf, r[layout.AtFlags], r[layout.AtKind], r[layout.AtClearance])
	s.bytes(s.x.Region(p))
	refs := s.refs[:0]
	for i := range s.x.memberCount(r) {
		refs = append(refs, s.ref(s.x.memberAt(r, i)))
	}
	s.list(refs)
	s.refs = refs
	return s.end()
}

// ref is what a node stands for.
func (s *stater) ref(n uint32) string {
	if int(n) >= len(s.names) {
		s.names = append(s.names, make([]string, int(s.x.nodeCount())+1-len(s.names))...)
	}
	if s.names[n] == "" {
		s.names[n] = string(s.x.nodeRef(n))
	}
	return s.names[n]
}

func (s *stater) list(refs []string) {
	slices.Sort(refs)
	for _, ref := range refs {
		s.text(ref)
	}
}

// node is false for a node without parents: it is there as far as others name it.
func (s *stater) node(n uint32) (snapshot.Digest, bool) {
	up := s.x.parentsOf(n)
	if len(up) == 0 {
		return snapshot.Digest{}, false
	}
	s.begin('n')
	s.text(s.ref(n))
	refs := make([]string, 0, len(up))
	for _, p := range up {
		refs = append(refs, s.ref(p))
	}
	s.list(refs)
	return s.end(), true
}

func (s *stater) grant(g grantInfo) snapshot.Digest {
	progs := make([]snapshot.Digest, len(g.reach))
	order := make([]int, len(g.reach))
	for i, r := range g.reach {
		order[i] = i
		if r.prog != 0 {
			progs[i] = s.program(r.prog - 1)
		}
	}
	slices.SortFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(g.reach[a].page, g.reach[b].page), compareDigests(progs[a], progs[b]),
			cmp.Compare(g.reach[a].mask, g.reach[b].mask))
	})
	s.begin('g')
	s.text(g.id)
	s.flag(g.deny)
	s.text(s.ref(g.node))
	for _, i := range order {
		s.page(g.reach[i].page)
		s.word(g.reach[i].mask)
		s.buf = append(s.buf, progs[i][:]...)
	}
	return s.end()
}

func compareDigests(a, b snapshot.Digest) int { return slices.Compare(a[:], b[:]) }

func (s *stater) flag(b bool) {
	if b {
		s.buf = append(s.buf, 1)
	} else {
		s.buf = append(s.buf, 0)
	}
}

// page names a page by its server and its number there.
func (s *stater) page(page uint32) {
	if page == layout.AnyPage {
		s.text("*")
		return
	}
	at := s.pages[page]
	s.bytes(s.x.serverName(at.server))
	s.num(uint64(at.number))
}

func (s *stater) cell(key uint64, c cell) snapshot.Digest {
	conds := s.conds(c.conds)
	s.begin('c')
	s.text(s.ref(uint32(key >> 32)))
	s.page(uint32(key))
	s.word(c.allow)
	s.word(c.deny)
	for _, d := range conds {
		s.flag(d.allow)
		s.buf = append(s.buf, d.prog[:]...)
		s.word(d.mask)
	}
	return s.end()
}

type namedCond struct {
	allow bool
	prog  snapshot.Digest
	mask  uint64
}

// conds are the conditions of a cell in the order of their contents.
func (s *stater) conds(r CondRange) []namedCond {
	if r.Deny|r.Allow == 0 {
		return nil
	}
	out := make([]namedCond, 0, int(r.Deny)+int(r.Allow))
	for i := range uint32(r.Deny) + uint32(r.Allow) {
		mask, prog := s.x.Cond(r.First + i)
		out = append(out, namedCond{i >= uint32(r.Deny), s.program(prog), mask})
	}
	slices.SortFunc(out, func(a, b namedCond) int {
		if a.allow != b.allow {
			if b.allow {
				return -1
			}
			return 1
		}
		return cmp.Or(compareDigests(a.prog, b.prog), cmp.Compare(a.mask, b.mask))
	})
	return out
}

// program names a program by what it does.
func (s *stater) program(id uint32) snapshot.Digest {
	if d, ok := s.progs[id]; ok {
		return d
	}
	outer := s.buf
	s.buf = nil
	p := s.x.Program(id)
	s.begin('p')
	for pc := range p.Len() {
		s.instr(&p, p.Instr(pc))
	}
	d := s.end()
	s.buf = outer
	s.progs[id] = d
	return d
}

func (s *stater) instr(p *Program, in Instr) {
	s.buf = append(s.buf, byte(in.Op), byte(in.Type), byte(in.From))
	s.num(uint64(in.Target))
	switch {
	case in.Op == OpJumpFalse || in.Op == OpJumpTrue:
		return
	case in.Op == snapshot.OpMember:
		refs := make([]string, 0, p.Set(in.Operand))
		for i := range p.Set(in.Operand) {
			refs = append(refs, s.ref(uint32(p.Member(in.Operand, i))))
		}
		s.num(uint64(len(refs)))
		s.list(refs)
		return
	case in.From == snapshot.FromClock:
		s.text(s.x.zoneName(in.Zone))
		c := s.x.zone(in.Zone)
		for i := range c.At {
			s.word(uint64(c.At[i]))
			s.word(uint64(c.Off[i]))
		}
		s.num(uint64(in.Arg))
	case in.From == snapshot.FromArgs && ReadsOperand(in.Op):
		name, _ := p.ArgName(in.Arg)
		s.bytes(name)
	default:
		s.num(uint64(in.Arg))
	}
	switch {
	case in.Op == snapshot.OpIn || in.Op == snapshot.OpInRange:
		s.num(uint64(p.Set(in.Operand)))
		for i := range p.Set(in.Operand) {
			s.constant(p, in.Type, p.Member(in.Operand, i))
		}
	case in.Op == snapshot.OpForeign:
		s.bytes(p.Text(in.Operand))
	case in.Op == OpSame || in.Op == OpDiffer || in.Op == snapshot.OpHas:
		s.word(in.Operand)
	default:
		s.constant(p, in.Type, in.Operand)
	}
}

// ReadsOperand reports whether an operator of a condition reads an operand, arguments among them.
func ReadsOperand(op snapshot.Op) bool {
	switch op {
	case snapshot.OpHas, snapshot.OpEq, snapshot.OpNe, snapshot.OpLt, snapshot.OpLe, snapshot.OpGt, snapshot.OpGe, snapshot.OpIn:
		return true
	default:
		return false
	}
}

func (s *stater) constant(p *Program, t snapshot.Type, v uint64) {
	if t == snapshot.TypeString {
		s.bytes(p.Text(v))
		return
	}
	s.word(v)
}

// zoneName is the name of the i-th time zone.
func (x *Index) zoneName(i int) string {
	if i >= len(x.clocks) {
		return x.ov.zones[i-len(x.clocks)]
	}
	return string(x.name(x.zoneRecs[i*layout.ZoneSize:]))
}

// allCells yields the cells in force with their keys.
func (x *Index) allCells() func(yield func(uint64, cell) bool) {
	return func(yield func(uint64, cell) bool) {
		for i := 0; i < len(x.cells); i += layout.CellSize {
			c := x.cells[i : i+layout.CellSize]
			key := le.Uint64(c)
			if key == 0 {
				continue
			}
			if x.ov != nil {
				if _, touched := x.ov.cell(uint32(key>>32), uint32(key)); touched {
					continue
				}
			}
			if !yield(key, cell{
				allow: le.Uint64(c[8:]), deny: le.Uint64(c[16:]),
				conds: CondRange{First: le.Uint32(c[24:]), Deny: le.Uint16(c[28:]), Allow: le.Uint16(c[30:])},
			}) {
				return
			}
		}
		if x.ov == nil {
			return
		}
		for _, c := range x.ov.cells {
			if !c.removed && !yield(c.key, c.cell) {
				return
			}
		}
	}
}
