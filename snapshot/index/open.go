package index

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/mcpvault/mcpvault/snapshot"
)

// What Open refuses.
var (
	ErrFormat  = errors.New("not an index")
	ErrVersion = errors.New("index of another major version")
	ErrDigest  = errors.New("index digest does not match")
	ErrSize    = errors.New("index too large")
)

// Open checks a block and returns a reader on it. It keeps b. Errors wrap ErrFormat, ErrVersion, ErrDigest or ErrSize.
func Open(b []byte) (*Index, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("open index: %d bytes: %w", len(b), ErrSize)
	}
	x := &Index{size: len(b)}
	sections, err := readHeader(b)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	for sec, dst := range map[int]*[]byte{
		secPrincipals: &x.principals, secMembers: &x.members, secServers: &x.servers, secItems: &x.items,
		secCells: &x.cells, secConds: &x.conds, secPrograms: &x.programs, secCode: &x.code, secArgs: &x.args,
		secValues: &x.values, secPrincipalNames: &x.principalNames, secServerNames: &x.serverNames,
		secItemNames: &x.itemNames, secNodes: &x.nodes, secGrants: &x.grants, secProvOffsets: &x.provOffsets,
		secProvenance: &x.provenance, secHeap: &x.heap,
	} {
		data, ok := sections[sec]
		if !ok {
			return nil, fmt.Errorf("open index: section %d missing: %w", sec, ErrFormat)
		}
		*dst = data[:len(data):len(data)]
	}
	x.nPrincipals = uint32(len(x.principals) / principalSize)
	x.nServers = uint32(len(x.servers) / serverSize)
	x.nNodes = uint32(len(x.nodes) / nodeSize)
	x.nPrograms = uint32(len(x.programs) / programSize)
	x.everyone, x.nPages = le.Uint32(b[32:]), le.Uint32(b[36:])
	if err := x.check(le.Uint32(b[24:]), le.Uint32(b[28:])); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return x, nil
}

// readHeader returns the sections by id, their digests checked.
func readHeader(b []byte) (map[int][]byte, error) {
	if len(b) < pageSize || string(b[:8]) != magic {
		return nil, ErrFormat
	}
	if v := le.Uint16(b[8:]); v != major {
		return nil, fmt.Errorf("version %d.%d: %w", v, le.Uint16(b[10:]), ErrVersion)
	}
	if sha256.Sum256(b[:headerSum]) != [32]byte(b[headerSum:pageSize]) {
		return nil, fmt.Errorf("header: %w", ErrDigest)
	}
	n := le.Uint32(b[12:])
	if n > maxSections || le.Uint64(b[16:]) != uint64(len(b)) {
		return nil, fmt.Errorf("length: %w", ErrFormat)
	}
	sections := make(map[int][]byte, n)
	at := uint64(pageSize)
	for i := range n {
		e := b[headerFixed+i*sectionEntry:][:sectionEntry]
		id, width := le.Uint32(e), uint64(le.Uint32(e[4:]))
		off, count := le.Uint64(e[8:]), le.Uint64(e[16:])
		if off != at || width == 0 || count > uint64(len(b))/width || off+alignUp(width*count) > uint64(len(b)) {
			return nil, fmt.Errorf("section %d lies outside: %w", id, ErrFormat)
		}
		data := b[off : off+width*count]
		at = off + alignUp(width*count)
		if sha256.Sum256(data) != [32]byte(e[32:]) {
			return nil, fmt.Errorf("section %d: %w", id, ErrDigest)
		}
		if !zero(b[off+width*count : at]) {
			return nil, fmt.Errorf("after section %d: %w", id, ErrFormat)
		}
		if _, twice := sections[int(id)]; twice || id == 0 || id < secEnd && width != uint64(recordSize(int(id))) {
			return nil, fmt.Errorf("section %d: %w", id, ErrFormat)
		}
		sections[int(id)] = data
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
	if x.everyone > x.nNodes {
		return bad("everyone", 0)
	}
	for _, step := range []func() error{
		x.checkNames, x.checkServers, x.checkPrincipals, x.checkPrograms, x.checkConds, x.checkCells, x.checkProvenance,
		x.checkTables,
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
		{"principal", x.principals, principalSize},
		{"server", x.servers, serverSize},
		{"item", x.items, itemSize},
		{"node", x.nodes, nodeSize},
		{"grant", x.grants, grantSize},
		{"arg", x.args, argSize},
	} {
		for i := 0; i < len(s.recs); i += s.width {
			off, n := le.Uint32(s.recs[i:]), le.Uint16(s.recs[i+4:])
			if n == 0 || n > snapshot.MaxName || uint64(off)+uint64(n) > uint64(len(x.heap)) ||
				!utf8.Valid(x.heap[off:off+uint32(n)]) {
				return bad(s.what, i/s.width)
			}
		}
	}
	x.argNames = make([]uint64, tableSize(len(x.args)/argSize))
	for i := 0; i < len(x.args); i += argSize {
		fold := le.Uint64(x.args[i+8:])
		if fold == 0 || fold != FoldHash(x.name(x.args[i:])) {
			return bad("arg", i/argSize)
		}
		x.addArg(fold)
	}
	return nil
}

// checkServers checks that servers tile the pages and the items, and that names rise.
func (x *Index) checkServers() error {
	var page, item uint64
	for s := range x.nServers {
		r := x.servers[s*serverSize:]
		n := le.Uint32(r[16:])
		if uint64(le.Uint32(r[8:])) != page || uint64(le.Uint32(r[12:])) != item || n > snapshot.MaxServerItems+1 ||
			item+uint64(n) > uint64(len(x.items)/itemSize) ||
			s > 0 && bytes.Compare(x.serverName(s-1), x.serverName(s)) >= 0 {
			return bad("server", int(s))
		}
		for i := uint32(1); i < n; i++ {
			if bytes.Compare(x.itemName(uint32(item)+i-1), x.itemName(uint32(item)+i)) >= 0 {
				return bad("item", int(uint32(item)+i))
			}
		}
		page += (uint64(n) + itemsPerPage - 1) / itemsPerPage
		item += uint64(n)
	}
	if page != uint64(x.nPages) || item != uint64(len(x.items)/itemSize) {
		return bad("servers", int(x.nServers))
	}
	return nil
}

func (x *Index) checkPrincipals() error {
	for i := 0; i < len(x.members); i += memberSize {
		if n := le.Uint32(x.members[i:]); n == 0 || n > x.nNodes {
			return bad("member", i/memberSize)
		}
	}
	for p := range x.nPrincipals {
		r := x.principals[p*principalSize:]
		n, first := le.Uint32(r[8:]), le.Uint32(r[12:])
		if n > inlineNodes {
			if uint64(first)+uint64(n) > uint64(len(x.members)/memberSize) {
				return bad("principal", int(p))
			}
			continue
		}
		for i := range n {
			if node := le.Uint32(r[12+4*i:]); node == 0 || node > x.nNodes {
				return bad("principal", int(p))
			}
		}
	}
	return nil
}

func (x *Index) checkPrograms() error {
	for i := range x.nPrograms {
		r := x.programs[i*programSize:]
		code, nCode := le.Uint32(r), le.Uint16(r[4:])
		args, nArgs := le.Uint32(r[8:]), le.Uint16(r[6:])
		if nCode == 0 || nCode > maxCode || uint64(code)+uint64(nCode) > uint64(len(x.code)/codeSize) ||
			uint64(args)+uint64(nArgs) > uint64(len(x.args)/argSize) {
			return bad("program", int(i))
		}
		p := x.Program(i)
		for pc := range p.Len() {
			if !x.instrOK(p.Instr(pc), pc, p.Len(), int(nArgs)) {
				return bad("program", int(i))
			}
		}
		if p.Flags != p.flags() {
			return bad("program", int(i))
		}
	}
	return nil
}

func (x *Index) instrOK(in Instr, pc, n, args int) bool {
	switch in.Op {
	case OpJumpFalse, OpJumpTrue:
		return in.Target > pc && in.Target <= n
	case snapshot.OpNot, snapshot.OpTrue, snapshot.OpFalse, snapshot.OpBefore, snapshot.OpAfter:
		return true
	case snapshot.OpHas:
		return in.Arg < args
	case snapshot.OpLt, snapshot.OpLe, snapshot.OpGt, snapshot.OpGe:
		return in.Arg < args && in.Type == snapshot.TypeNumber
	case snapshot.OpEq, snapshot.OpNe:
		return in.Arg < args && x.operandOK(in.Type, in.Operand)
	case snapshot.OpIn:
		first, count := uint64(uint32(in.Operand)), in.Operand>>32
		if in.Arg >= args || count > snapshot.MaxCondValues || first+count > uint64(len(x.values)/valueSize) {
			return false
		}
		for i := range count {
			if !x.operandOK(in.Type, le.Uint64(x.values[(first+i)*valueSize:])) {
				return false
			}
		}
		return true
	default:
		return false
	}
}

func (x *Index) operandOK(t snapshot.Type, v uint64) bool {
	switch t {
	case snapshot.TypeNumber:
		return true
	case snapshot.TypeBool:
		return v <= 1
	case snapshot.TypeString:
		return uint64(uint32(v))+v>>32 <= uint64(len(x.heap))
	default:
		return false
	}
}

func (x *Index) checkConds() error {
	for i := range uint32(len(x.conds) / condSize) {
		if _, prog := x.Cond(i); prog >= x.nPrograms {
			return bad("condition", int(i))
		}
	}
	return nil
}

// checkCells checks that every cell is found where it lies, that a search for one that is not there ends, and that the
// cells refer to nodes, pages and conditions that exist.
func (x *Index) checkCells() error {
	slots := len(x.cells) / cellSize
	if !powerOfTwo(slots) {
		return bad("cells", slots)
	}
	x.cellShift = shiftFor(slots)
	x.anyNode = make([]uint64, x.nNodes/64+1)
	used := 0
	for i := range slots {
		c := x.cells[i*cellSize:][:cellSize]
		key := le.Uint64(c)
		if key == 0 {
			if !zero(c) {
				return bad("cell", i)
			}
			continue
		}
		used++
		node, page := uint32(key>>32), uint32(key)
		conds := uint64(le.Uint32(c[24:])) + uint64(le.Uint16(c[28:])) + uint64(le.Uint16(c[30:]))
		if node == 0 || node > x.nNodes || page != anyPage && page >= x.nPages || conds > uint64(len(x.conds)/condSize) ||
			(uint32(i)-cellHome(key, x.cellShift))&uint32(slots-1) > maxProbe {
			return bad("cell", i)
		}
		if page == anyPage {
			x.anyNode[node/64] |= 1 << (node % 64)
		}
	}
	if used > slots/2 {
		return bad("cells", slots)
	}
	for i := range slots {
		if key := le.Uint64(x.cells[i*cellSize:]); key != 0 && x.cell(uint32(key>>32), uint32(key)) != i*cellSize {
			return bad("cell", i)
		}
	}
	return nil
}

func (x *Index) checkProvenance() error {
	n := uint32(len(x.provenance) / provenanceSize)
	if len(x.provOffsets)/provOffSize != len(x.cells)/cellSize+1 {
		return bad("provenance", 0)
	}
	var last uint32
	for i := 0; i < len(x.provOffsets); i += provOffSize {
		off := le.Uint32(x.provOffsets[i:])
		if off < last || off > n {
			return bad("provenance", i/provOffSize)
		}
		last = off
	}
	for i := range n {
		r := x.provenance[i*provenanceSize:]
		if le.Uint32(r[8:])>>1 >= uint32(len(x.grants)/grantSize) || le.Uint32(r[12:]) > uint32(len(x.conds)/condSize) {
			return bad("provenance", int(i))
		}
	}
	return nil
}

// checkTables checks the name tables: complete, and a search for a name that is not there ends.
func (x *Index) checkTables() error {
	if err := checkTable(x.principalNames, x.nPrincipals, func(i uint32) bool {
		id, ok := x.Principal(string(x.principalName(i)))
		return ok && uint32(id) == i
	}); err != nil {
		return fmt.Errorf("principal names: %w", err)
	}
	if err := checkTable(x.serverNames, x.nServers, func(i uint32) bool {
		id, ok := x.Server(string(x.serverName(i)))
		return ok && uint32(id) == i
	}); err != nil {
		return fmt.Errorf("server names: %w", err)
	}
	var server ServerID
	return checkTable(x.itemNames, uint32(len(x.items)/itemSize), func(i uint32) bool {
		base, n := x.itemRange(server)
		for i-base >= n && uint32(server)+1 < x.nServers {
			server++
			base, n = x.itemRange(server)
		}
		id, ok := x.Item(server, string(x.itemName(i)))
		return ok && uint32(id) == i-base
	})
}

func checkTable(table []byte, n uint32, found func(i uint32) bool) error {
	slots := len(table) / nameSlotSize
	if !powerOfTwo(slots) || uint64(n) > uint64(slots)/2 {
		return bad("table of", slots)
	}
	used := uint32(0)
	run := 0
	for i := range slots {
		id := le.Uint32(table[i*nameSlotSize+4:])
		if id == 0 {
			run = 0
			continue
		}
		used++
		if run++; id > n || run > maxProbe {
			return bad("slot", i)
		}
	}
	if used != n {
		return bad("table of", slots)
	}
	for i := range n {
		if !found(i) {
			return bad("name", int(i))
		}
	}
	return nil
}

func powerOfTwo(n int) bool { return n > 0 && n&(n-1) == 0 }
