package index

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/clock"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
	"github.com/mcpvault/mcpvault/snapshot/residual"
)

// What Open refuses.
var (
	ErrFormat  = errors.New("not an index")
	ErrVersion = errors.New("index of another major version")
	ErrSize    = errors.New("index too large")
)

// Open checks a block and returns a reader on it. It keeps b, and keep, which may own the memory that b lies in. Whoever
// calls it has compared the digest of b with the one that was signed: Open sees to it that no read goes astray, not that
// the policy is the right one. Errors wrap ErrFormat, ErrVersion or ErrSize.
func Open(b []byte, keep ...any) (*Index, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("open index: %d bytes: %w", len(b), ErrSize)
	}
	x := &Index{block: &block{size: len(b), keep: keep}}
	sections, err := readHeader(b)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	for _, s := range x.sections() {
		data, ok := sections[s.id]
		if !ok {
			return nil, fmt.Errorf("open index: section %d missing: %w", s.id, ErrFormat)
		}
		*s.data = data[:len(data):len(data)]
	}
	x.nPrincipals = uint32(len(x.principals) / layout.PrincipalSize)
	x.nServers = uint32(len(x.servers) / layout.ServerSize)
	x.nNodes = uint32(len(x.nodes) / layout.NodeSize)
	x.nPrograms = uint32(len(x.programs) / layout.ProgramSize)
	x.nConds = uint32(len(x.conds) / layout.CondSize)
	x.nGrants = uint32(len(x.grants) / layout.GrantSize)
	x.everyone, x.nPages = le.Uint32(b[32:]), le.Uint32(b[36:])
	copy(x.state[:], b[layout.StateAt:])
	if err := x.check(le.Uint32(b[24:]), le.Uint32(b[28:])); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return x, nil
}

type section struct {
	id   int
	data *[]byte
}

func (b *block) sections() []section {
	return []section{
		{layout.SecPrincipals, &b.principals},
		{layout.SecMembers, &b.members},
		{layout.SecRegions, &b.regions},
		{layout.SecServers, &b.servers},
		{layout.SecItems, &b.items},
		{layout.SecCells, &b.cells},
		{layout.SecConds, &b.conds},
		{layout.SecPrograms, &b.programs},
		{layout.SecCode, &b.code},
		{layout.SecArgs, &b.args},
		{layout.SecValues, &b.values},
		{layout.SecZones, &b.zoneRecs},
		{layout.SecTransitions, &b.transitions},
		{layout.SecPrincipalNames, &b.principalNames},
		{layout.SecServerNames, &b.serverNames},
		{layout.SecItemNames, &b.itemNames},
		{layout.SecNodes, &b.nodes},
		{layout.SecEdges, &b.edges},
		{layout.SecNodeGrants, &b.nodeGrants},
		{layout.SecGrants, &b.grants},
		{layout.SecReaches, &b.reaches},
		{layout.SecHeap, &b.heap},
	}
}

// readHeader returns the sections by id.
func readHeader(b []byte) (map[int][]byte, error) {
	if len(b) < layout.HeaderFixed || string(b[:8]) != layout.Magic {
		return nil, ErrFormat
	}
	if v := le.Uint16(b[8:]); v != layout.Major {
		return nil, fmt.Errorf("version %d.%d: %w", v, le.Uint16(b[10:]), ErrVersion)
	}
	n := le.Uint32(b[12:])
	start := layout.AlignUp(layout.HeaderFixed + layout.SectionEntry*uint64(n))
	if n > layout.MaxSections || le.Uint64(b[16:]) != uint64(len(b)) || start > uint64(len(b)) {
		return nil, fmt.Errorf("length: %w", ErrFormat)
	}
	if !zero(b[layout.HeaderFixed+layout.SectionEntry*uint64(n) : start]) {
		return nil, fmt.Errorf("after the header: %w", ErrFormat)
	}
	sections := make(map[int][]byte, n)
	at := start
	for i := range n {
		e := b[layout.HeaderFixed+i*layout.SectionEntry:][:layout.SectionEntry]
		id, width := le.Uint32(e), uint64(le.Uint32(e[4:]))
		off, count := le.Uint64(e[8:]), le.Uint64(e[16:])
		if off != at || width == 0 || count > uint64(len(b))/width || off+layout.AlignUp(width*count) > uint64(len(b)) {
			return nil, fmt.Errorf("section %d lies outside: %w", id, ErrFormat)
		}
		at = off + layout.AlignUp(width*count)
		if !zero(b[off+width*count : at]) {
			return nil, fmt.Errorf("after section %d: %w", id, ErrFormat)
		}
		if _, twice := sections[int(id)]; twice || id == 0 || id < layout.SecEnd && width != uint64(layout.RecordSize(int(id))) {
			return nil, fmt.Errorf("section %d: %w", id, ErrFormat)
		}
		sections[int(id)] = b[off : off+width*count]
	}
	if at != uint64(len(b)) {
		return nil, fmt.Errorf("trailing bytes: %w", ErrFormat)
	}
	return sections, nil
}

func zero(b []byte) bool {
	var or byte
	for _, c := range b {
		or |= c
	}
	return or == 0
}

// check walks every record once.
func (x *Index) check(tenantOff, tenantLen uint32) error {
	if uint64(tenantOff)+uint64(tenantLen) > uint64(len(x.heap)) || tenantLen == 0 || tenantLen > snapshot.MaxName {
		return bad("tenant", 0)
	}
	x.tenant = string(x.heap[tenantOff : tenantOff+tenantLen])
	if x.everyone > x.nNodes || x.nPrincipals > layout.MaxNameSlots {
		return bad("everyone", 0)
	}
	for _, step := range []func() error{
		x.checkNames, x.checkServers, x.checkPrincipals, x.checkZones, x.checkPrograms, x.checkConds, x.checkCells,
		x.checkGraph, x.checkTables,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func bad(what string, i int) error { return fmt.Errorf("%s %d: %w", what, i, ErrFormat) }

// checkNames checks every name reference: inside the heap, not empty, valid UTF-8.
func (x *Index) checkNames() error {
	for _, s := range []struct {
		what  string
		recs  []byte
		width int
	}{
		{"principal", x.principals, layout.PrincipalSize},
		{"region", x.regions, layout.RegionSize},
		{"server", x.servers, layout.ServerSize},
		{"item", x.items, layout.ItemSize},
		{"node", x.nodes, layout.NodeSize},
		{"grant", x.grants, layout.GrantSize},
		{"zone", x.zoneRecs, layout.ZoneSize},
		{"arg", x.args, layout.ArgSize},
	} {
		for i := 0; i < len(s.recs); i += s.width {
			off, n := le.Uint32(s.recs[i:]), le.Uint16(s.recs[i+4:])
			if n == 0 || n > snapshot.MaxName || uint64(off)+uint64(n) > uint64(len(x.heap)) ||
				!utf8.Valid(x.heap[off:off+uint32(n)]) {
				return bad(s.what, i/s.width)
			}
		}
	}
	x.argNames = make([]uint64, argTable(len(x.args)/layout.ArgSize))
	for i := 0; i < len(x.args); i += layout.ArgSize {
		fold := le.Uint64(x.args[i+8:])
		if fold == 0 || fold != FoldHash(x.name(x.args[i:])) {
			return bad("arg", i/layout.ArgSize)
		}
		x.addArg(fold)
	}
	return nil
}

// argTable is a power of two that n names fill at most by half.
func argTable(n int) int {
	slots := 4
	for slots < 2*n {
		slots *= 2
	}
	return slots
}

// checkServers checks that servers tile the pages and the items, and that names rise.
func (x *Index) checkServers() error {
	var page, item uint64
	for s := range x.nServers {
		r := x.servers[s*layout.ServerSize:]
		n := le.Uint32(r[16:])
		if uint64(le.Uint32(r[8:])) != page || uint64(le.Uint32(r[12:])) != item || n > snapshot.MaxServerItems+1 ||
			item+uint64(n) > uint64(len(x.items)/layout.ItemSize) ||
			s > 0 && bytes.Compare(x.serverName(s-1), x.serverName(s)) >= 0 {
			return bad("server", int(s))
		}
		for i := uint32(1); i < n; i++ {
			if bytes.Compare(x.itemName(uint32(item)+i-1), x.itemName(uint32(item)+i)) >= 0 {
				return bad("item", int(uint32(item)+i))
			}
		}
		page += (uint64(n) + layout.ItemsPerPage - 1) / layout.ItemsPerPage
		item += uint64(n)
	}
	if page != uint64(x.nPages) || item != uint64(len(x.items)/layout.ItemSize) || item > layout.MaxNameSlots {
		return bad("servers", int(x.nServers))
	}
	return nil
}

func (x *Index) checkPrincipals() error {
	for i := 0; i < len(x.members); i += layout.MemberSize {
		if n := le.Uint32(x.members[i:]); n == 0 || n > x.nNodes {
			return bad("member", i/layout.MemberSize)
		}
	}
	regions := len(x.regions) / layout.RegionSize
	for p := range x.nPrincipals {
		r := x.principals[p*layout.PrincipalSize : (p+1)*layout.PrincipalSize]
		if r[layout.AtFlags]&^layout.FlagDisabled != 0 || r[layout.AtKind] > byte(snapshot.KindWorkload) || r[layout.AtClearance] > snapshot.MaxLevel ||
			int(le.Uint16(r[layout.AtRegion:])) > regions {
			return bad("principal", int(p))
		}
		n := r[layout.AtCount]
		if n == layout.ManyNodes {
			if uint64(le.Uint32(r[layout.AtNodes:]))+uint64(le.Uint32(r[layout.AtNodes+4:])) > uint64(len(x.members)/layout.MemberSize) {
				return bad("principal", int(p))
			}
			continue
		}
		if n > layout.InlineNodes {
			return bad("principal", int(p))
		}
		for i := range int(n) {
			if node := le.Uint32(r[layout.AtNodes+4*i:]); node == 0 || node > x.nNodes {
				return bad("principal", int(p))
			}
		}
	}
	return nil
}

func (x *Index) checkZones() error {
	total := uint64(len(x.transitions) / layout.TransitionSize)
	for i := 0; i < len(x.zoneRecs); i += layout.ZoneSize {
		first, n := le.Uint32(x.zoneRecs[i+8:]), le.Uint32(x.zoneRecs[i+12:])
		if n == 0 || uint64(first)+uint64(n) > total {
			return bad("zone", i/layout.ZoneSize)
		}
		c := clock.Table{At: make([]int64, n), Off: make([]int32, n)}
		for k := range c.At {
			t := x.transitions[(int(first)+k)*layout.TransitionSize:]
			c.At[k], c.Off[k] = int64(le.Uint64(t)), int32(le.Uint32(t[8:]))
		}
		if !c.OK() {
			return bad("zone", i/layout.ZoneSize)
		}
		x.clocks = append(x.clocks, c)
	}
	return nil
}

func (x *Index) checkPrograms() error {
	for i := range x.nPrograms {
		r := x.programs[i*layout.ProgramSize:]
		code, nCode := le.Uint32(r), le.Uint16(r[4:])
		args, nArgs := le.Uint32(r[8:]), le.Uint16(r[6:])
		if nCode == 0 || nCode > layout.MaxCode || uint64(code)+uint64(nCode) > uint64(len(x.code)/layout.CodeSize) ||
			uint64(args)+uint64(nArgs) > uint64(len(x.args)/layout.ArgSize) {
			return bad("program", int(i))
		}
		p := x.Program(i)
		if !x.programOK(&p, len(x.clocks), x.nNodes) || p.Flags != p.flags() {
			return bad("program", int(i))
		}
	}
	return nil
}

// programOK checks every instruction of a program, and makes its Cedar expressions ready.
func (x *Index) programOK(p *Program, zones int, nodes uint32) bool {
	for pc := range p.Len() {
		if !instrOK(p, p.Instr(pc), pc, zones, nodes) {
			return false
		}
	}
	return true
}

func instrOK(p *Program, in Instr, pc, zones int, nodes uint32) bool {
	switch in.Op {
	case OpJumpFalse, OpJumpTrue:
		return in.Target > pc && in.Target <= p.Len()
	case snapshot.OpNot, snapshot.OpTrue, snapshot.OpFalse, snapshot.OpFail, snapshot.OpBefore, snapshot.OpAfter:
		return true
	case snapshot.OpMember:
		return p.setOK(in.Operand, int(nodes), func(v uint64) bool { return v != 0 && v <= uint64(nodes) })
	case snapshot.OpForeign:
		return p.foreignOK(in.Operand)
	case OpSame, OpDiffer:
		from, attr := in.Other()
		return attrOK(in.From, in.Arg, snapshot.TypeString) && attrOK(from, attr, snapshot.TypeString)
	case snapshot.OpHas, snapshot.OpEq, snapshot.OpNe, snapshot.OpLt, snapshot.OpLe, snapshot.OpGt, snapshot.OpGe,
		snapshot.OpIn, snapshot.OpInRange:
		return operandOK(p, in, zones) && constantOK(p, in)
	default:
		return false
	}
}

// operandOK checks what is compared.
func operandOK(p *Program, in Instr, zones int) bool {
	switch in.From {
	case snapshot.FromArgs:
		return in.Arg < len(p.args)/layout.ArgSize && in.Type != snapshot.TypeIP
	case snapshot.FromClock:
		return in.Op != snapshot.OpHas && in.Zone < zones && in.Arg <= clock.Year && in.Type == snapshot.TypeNumber
	case snapshot.FromContext, snapshot.FromPrincipal:
		if in.Op == snapshot.OpHas {
			return attrOK(in.From, in.Arg, snapshot.TypeInvalid)
		}
		return attrOK(in.From, in.Arg, in.Type)
	default:
		return false
	}
}

// attrOK reports whether there is an attribute of that number and, unless that is TypeInvalid, type.
func attrOK(from snapshot.Source, n int, t snapshot.Type) bool {
	var types []snapshot.Type
	switch from {
	case snapshot.FromContext:
		types = []snapshot.Type{AttrIP: snapshot.TypeIP, AttrRegion: snapshot.TypeString, AttrActor: snapshot.TypeString}
	case snapshot.FromPrincipal:
		types = []snapshot.Type{
			AttrName: snapshot.TypeString, AttrKind: snapshot.TypeString,
			AttrClearance: snapshot.TypeNumber, AttrHome: snapshot.TypeString,
		}
	default: // the others have no attributes
	}
	return n < len(types) && (t == snapshot.TypeInvalid || types[n] == t)
}

// constantOK checks what it is compared with.
func constantOK(p *Program, in Instr) bool {
	switch in.Op {
	case snapshot.OpHas:
		return true
	case snapshot.OpInRange:
		return in.Type == snapshot.TypeIP && in.From == snapshot.FromContext && p.setOK(in.Operand, 3, func(uint64) bool { return true }) &&
			p.Set(in.Operand) == 3 && p.Member(in.Operand, 2)&^layout.V4Network <= 128
	case snapshot.OpIn:
		return p.setOK(in.Operand, snapshot.MaxCondValues, func(v uint64) bool { return p.operandOK(in.Type, v) })
	case snapshot.OpLt, snapshot.OpLe, snapshot.OpGt, snapshot.OpGe:
		return in.Type == snapshot.TypeNumber
	default:
		return p.operandOK(in.Type, in.Operand)
	}
}

func (p *Program) setOK(ref uint64, limit int, member func(uint64) bool) bool {
	first, count := uint64(uint32(ref)), ref>>32
	if count > uint64(limit) || first+count > uint64(len(p.pool.values)/layout.ValueSize) {
		return false
	}
	for i := range int(count) {
		if !member(p.Member(ref, i)) {
			return false
		}
	}
	return true
}

func (p *Program) operandOK(t snapshot.Type, v uint64) bool {
	switch t {
	case snapshot.TypeNumber:
		return true
	case snapshot.TypeBool:
		return v <= 1
	case snapshot.TypeString:
		return uint64(uint32(v))+v>>32 <= uint64(len(p.pool.heap))
	default:
		return false
	}
}

// foreignOK parses a Cedar expression, once.
func (p *Program) foreignOK(ref uint64) bool {
	if !p.operandOK(snapshot.TypeString, ref) {
		return false
	}
	if p.pool.foreign[ref] != nil {
		return true
	}
	expr, err := residual.Parse(string(p.Text(ref)))
	if err != nil {
		return false
	}
	if p.pool.foreign == nil {
		p.pool.foreign = map[uint64]*residual.Expr{}
	}
	p.pool.foreign[ref] = expr
	return true
}

func (x *Index) checkConds() error {
	for i := range x.nConds {
		if _, prog := x.Cond(i); prog >= x.nPrograms {
			return bad("condition", int(i))
		}
	}
	return nil
}

// checkCells checks that every cell is found where it lies, that a search for one that is not there ends, and that the
// cells refer to nodes, pages and conditions that exist.
func (x *Index) checkCells() error {
	slots := len(x.cells) / layout.CellSize
	x.cellSlots = uint64(slots)
	x.anyNode, x.ownNode = make([]uint64, x.nNodes/64+1), make([]uint64, x.nNodes/64+1)
	// A run of full slots may go round the end of the table: it begins where the last free slot is.
	run := 0
	for run < slots && le.Uint64(x.cells[(slots-1-run)*layout.CellSize:]) != 0 {
		run++
	}
	if run == slots {
		return bad("cells", slots)
	}
	for i := range slots {
		c := x.cells[i*layout.CellSize:][:layout.CellSize]
		key := le.Uint64(c)
		if key == 0 {
			if le.Uint64(c[8:])|le.Uint64(c[16:])|le.Uint64(c[24:]) != 0 {
				return bad("cell", i)
			}
			run = 0
			continue
		}
		run++
		x.nCells++
		node, page := uint32(key>>32), uint32(key)
		conds := uint64(le.Uint32(c[24:])) + uint64(le.Uint16(c[28:])) + uint64(le.Uint16(c[30:]))
		away := i - int(layout.CellHome(key, x.cellSlots))
		if away < 0 {
			away += slots
		}
		if node == 0 || node > x.nNodes || page != layout.AnyPage && page >= x.nPages || conds > uint64(x.nConds) ||
			away >= run || away > layout.MaxProbe {
			return bad("cell", i)
		}
		if page == layout.AnyPage {
			x.anyNode[node/64] |= 1 << (node % 64)
		} else {
			x.ownNode[node/64] |= 1 << (node % 64)
		}
	}
	return nil
}

// checkGraph checks nodes, edges and grants. That edges lead in no circle need not be checked: whoever climbs them keeps
// what they have seen.
func (x *Index) checkGraph() error {
	for i := 0; i < len(x.edges); i += layout.EdgeSize {
		if n := le.Uint32(x.edges[i:]); n == 0 || n > x.nNodes {
			return bad("edge", i/layout.EdgeSize)
		}
	}
	for i := 0; i < len(x.nodeGrants); i += layout.EdgeSize {
		if le.Uint32(x.nodeGrants[i:]) >= x.nGrants {
			return bad("grant of a node", i/layout.EdgeSize)
		}
	}
	for i := 0; i < len(x.nodes); i += layout.NodeSize {
		r := x.nodes[i:]
		if uint64(le.Uint32(r[8:]))+uint64(le.Uint32(r[12:])) > uint64(len(x.edges)/layout.EdgeSize) ||
			uint64(le.Uint32(r[16:]))+uint64(le.Uint32(r[20:])) > uint64(len(x.nodeGrants)/layout.EdgeSize) {
			return bad("node", i/layout.NodeSize)
		}
	}
	for i := range x.nGrants {
		r := x.grants[i*layout.GrantSize:]
		if node := le.Uint32(r[8:]); node == 0 || node > x.nNodes ||
			uint64(le.Uint32(r[12:]))+uint64(le.Uint32(r[16:])) > uint64(len(x.reaches)/layout.ReachSize) ||
			i > 0 && bytes.Compare(x.name(x.grants[(i-1)*layout.GrantSize:]), x.name(r)) >= 0 {
			return bad("grant", int(i))
		}
	}
	for i := 0; i < len(x.reaches); i += layout.ReachSize {
		r := x.reaches[i:]
		if page := le.Uint32(r[8:]); page != layout.AnyPage && page >= x.nPages || le.Uint32(r[12:]) > x.nPrograms {
			return bad("reach", i/layout.ReachSize)
		}
	}
	return nil
}

// checkTables checks that the ids in the name tables exist and that every search ends.
func (x *Index) checkTables() error {
	for _, t := range []struct {
		what  string
		table []byte
		n     uint32
	}{
		{"principal names", x.principalNames, x.nPrincipals},
		{"server names", x.serverNames, x.nServers},
		{"item names", x.itemNames, uint32(len(x.items) / layout.ItemSize)},
	} {
		if err := checkTable(t.table, t.n); err != nil {
			return fmt.Errorf("%s: %w", t.what, err)
		}
	}
	return nil
}

func checkTable(table []byte, n uint32) error {
	slots := len(table) / layout.NameSlotSize
	used, run := uint32(0), 0
	for i := range slots {
		slot := le.Uint32(table[i*layout.NameSlotSize:])
		if slot == 0 {
			run = 0
			continue
		}
		used++
		if run++; slot&layout.MaxID == 0 || slot&layout.MaxID > n || run > layout.MaxProbe {
			return bad("slot", i)
		}
	}
	if used != n || used >= uint32(slots) {
		return bad("table of", slots)
	}
	return nil
}
