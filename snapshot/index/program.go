package index

import (
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
	"github.com/mcpvault/mcpvault/snapshot/residual"
)

// Instruction codes: the leaf operators of snapshot.Op, jumps, and comparisons of two strings that are no constants. A
// program keeps one truth value; it ends after its last instruction.
const (
	OpJumpFalse snapshot.Op = 0x40 + iota // skip to Target when the value is false
	OpJumpTrue
	OpSame   // the operand is the same text as Other
	OpDiffer // it is another
)

// What a program can come to when arguments may be anything.
const (
	MayTrue  uint16 = 1 << iota
	MayFalse        // without it a program as a deny always fires
	// ReadsKnown: it reads something that lists know as well, so that what it may come to is for Paths to say.
	ReadsKnown
	// ReadsArgs: it reads arguments.
	ReadsArgs
)

// Program is one residual condition.
type Program struct {
	x          *Index
	pool       *pool
	code, args []byte
	Flags      uint16
}

// pool is what the operands of programs refer to.
type pool struct {
	values, heap []byte
	// foreign are the Cedar expressions by operand.
	foreign map[uint64]*residual.Expr
}

// Instr is one instruction. Operand is a number, 0 or 1, or a reference for Text or Set.
type Instr struct {
	Op     snapshot.Op
	Type   snapshot.Type
	Target int
	From   snapshot.Source
	// Arg is the number of an argument (ArgName), of an attribute or, for a clock, of its field.
	Arg int
	// Zone is the number of a clock.
	Zone    int
	Operand uint64
}

// The attributes by number, in the order of their sources.
const (
	AttrIP = iota
	AttrRegion
	AttrActor

	AttrName = iota - 3
	AttrKind
	AttrClearance
	AttrHome // the principal's region
)

// operandOf unpacks the operand of OpSame and OpDiffer.
func operandOf(word uint64) (snapshot.Source, int) {
	return snapshot.Source(word >> 24 & 0xFF), int(word & 0xFFFFFF)
}

// Other is the second operand of OpSame and OpDiffer.
func (in Instr) Other() (from snapshot.Source, attr int) { return operandOf(in.Operand) }

// IsV4Network reports whether the third operand of a network is that of one of IPv4 addresses.
func IsV4Network(size uint64) bool { return size&layout.V4Network != 0 }

// Cond returns the i-th condition entry: which items of its page it is about, and its program.
func (x *Index) Cond(i uint32) (mask uint64, program uint32) {
	if i >= x.nConds {
		c := x.ov.conds[i-x.nConds]
		return c.mask, c.prog
	}
	r := x.conds[int(i)*layout.CondSize : (int(i)+1)*layout.CondSize]
	return le.Uint64(r), le.Uint32(r[8:])
}

// Programs counts the programs.
func (x *Index) Programs() int {
	if x.ov != nil {
		return int(x.nPrograms) + len(x.ov.programs)
	}
	return int(x.nPrograms)
}

// Program returns the i-th program.
func (x *Index) Program(i uint32) Program {
	if i >= x.nPrograms {
		p := x.ov.programs[i-x.nPrograms]
		p.x = x
		return p
	}
	r := x.programs[int(i)*layout.ProgramSize : (int(i)+1)*layout.ProgramSize]
	code, args := int(le.Uint32(r)), int(le.Uint32(r[8:]))
	return Program{
		x:     x,
		code:  x.code[code*layout.CodeSize : (code+int(le.Uint16(r[4:])))*layout.CodeSize],
		args:  x.args[args*layout.ArgSize : (args+int(le.Uint16(r[6:])))*layout.ArgSize],
		pool:  &x.pool,
		Flags: le.Uint16(r[12:]),
	}
}

// Len counts the instructions.
func (p *Program) Len() int { return len(p.code) / layout.CodeSize }

// Op is the operator of one instruction, and Target where it jumps to if it is a jump: Instr for those who need no more.
func (p *Program) Op(pc int) snapshot.Op { return snapshot.Op(p.code[pc*layout.CodeSize]) }

// Target is where a jump leads.
func (p *Program) Target(pc int) int { return int(le.Uint16(p.code[pc*layout.CodeSize+2:])) }

// Instr returns one instruction.
func (p *Program) Instr(pc int) Instr {
	r := p.code[pc*layout.CodeSize : (pc+1)*layout.CodeSize]
	word := le.Uint32(r[4:])
	in := Instr{
		Op: snapshot.Op(r[0]), Type: snapshot.Type(r[1]), Target: int(le.Uint16(r[2:])),
		From: snapshot.Source(word >> 24), Arg: int(word & 0xFFFFFF), Operand: le.Uint64(r[8:]),
	}
	if in.From == snapshot.FromClock {
		in.Zone, in.Arg = in.Arg&0xFFFF, in.Arg>>16
	}
	return in
}

// ArgName returns the name of an argument that the program reads, and its folded hash.
func (p *Program) ArgName(i int) (name []byte, fold uint64) {
	r := p.args[i*layout.ArgSize : (i+1)*layout.ArgSize]
	off, n := le.Uint32(r), le.Uint16(r[4:])
	return p.pool.heap[off : int(off)+int(n)], le.Uint64(r[8:])
}

// Text returns the string constant behind an operand.
func (p *Program) Text(operand uint64) []byte {
	off, n := uint32(operand), uint32(operand>>32)
	return p.pool.heap[off : int(off)+int(n)]
}

// Set returns how many members the set behind an operand has.
func (p *Program) Set(operand uint64) int { return int(operand >> 32) }

// Member returns the operand of the i-th member of a set.
func (p *Program) Member(operand uint64, i int) uint64 {
	return le.Uint64(p.pool.values[(int(uint32(operand))+i)*layout.ValueSize:])
}

// Clock returns the field of a zone's clock at a time.
func (p *Program) Clock(zone, field int, nowMS int64) int64 {
	return p.x.zone(zone).Read(field, nowMS)
}

// Belongs reports whether a principal belongs to one of the nodes of a set, which are in ascending order.
func (p *Program) Belongs(operand uint64, who PrincipalID) bool {
	x := p.x
	if e := x.everyoneNode(); e != 0 && p.has(operand, e) {
		return true
	}
	r := x.principal(who)
	for i := range x.memberCount(r) {
		if p.has(operand, x.memberAt(r, i)) {
			return true
		}
	}
	return false
}

func (p *Program) has(operand uint64, node uint32) bool {
	lo, hi := 0, p.Set(operand)
	for lo < hi {
		mid := lo + (hi-lo)/2
		switch got := uint32(p.Member(operand, mid)); {
		case got == node:
			return true
		case got < node:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return false
}

// Foreign is the Cedar expression behind an operand.
func (p *Program) Foreign(operand uint64) *residual.Expr { return p.pool.foreign[operand] }

// ReadsArg reports whether any program of the index reads an argument with this folded hash.
func (x *Index) ReadsArg(fold uint64) bool {
	mask := len(x.argNames) - 1
	for i := int(fold) & mask; ; i = (i + 1) & mask {
		switch x.argNames[i] {
		case fold:
			return true
		case 0:
			return x.ov != nil && x.ov.readsArg(fold)
		}
	}
}

// addArg notes an argument that some program reads; the table has room.
func (b *block) addArg(fold uint64) {
	mask := len(b.argNames) - 1
	i := int(fold) & mask
	for b.argNames[i] != 0 && b.argNames[i] != fold {
		i = (i + 1) & mask
	}
	b.argNames[i] = fold
}

// What a leaf may come to, for Paths. Neither means that it is an error, which ends the program.
const (
	CanFalse uint8 = 1 << iota
	CanTrue
)

// Paths follows all paths of a program: what it may come to when each leaf may come to what leaf says. Jumps only go
// forward, so one pass is exact.
func (p *Program) Paths(leaf func(Instr) uint8) (mayTrue, mayFalse bool) {
	var room [64]uint8
	n := p.Len()
	at := room[:]
	if n >= len(room) {
		at = make([]uint8, n+1)
	}
	cur := CanTrue
	for pc := range n {
		cur |= at[pc]
		if cur == 0 {
			continue
		}
		in := p.Instr(pc)
		switch in.Op {
		case OpJumpFalse:
			at[in.Target] |= cur & CanFalse
			cur &= CanTrue
		case OpJumpTrue:
			at[in.Target] |= cur & CanTrue
			cur &= CanFalse
		case snapshot.OpNot:
			cur = cur>>1 | cur<<1&CanTrue
		case snapshot.OpTrue:
			cur = CanTrue
		case snapshot.OpFalse:
			cur = CanFalse
		case snapshot.OpFail:
			cur = 0
		default:
			cur = leaf(in)
		}
	}
	cur |= at[n]
	return cur&CanTrue != 0, cur&CanFalse != 0
}

// Flags derives a program's flags from its code.
func Flags(code []byte) uint16 {
	p := Program{code: code}
	return p.flags()
}

func (p *Program) flags() uint16 {
	var f uint16
	mayTrue, mayFalse := p.Paths(func(Instr) uint8 { return CanTrue | CanFalse })
	if mayTrue {
		f |= MayTrue
	}
	if mayFalse {
		f |= MayFalse
	}
	for pc := range p.Len() {
		switch in := p.Instr(pc); in.Op {
		case snapshot.OpBefore, snapshot.OpAfter, snapshot.OpMember:
			f |= ReadsKnown
		case snapshot.OpForeign:
			f |= ReadsKnown | ReadsArgs
		case OpJumpFalse, OpJumpTrue, snapshot.OpNot, snapshot.OpTrue, snapshot.OpFalse, snapshot.OpFail:
		default:
			if in.From == snapshot.FromArgs {
				f |= ReadsArgs
			} else {
				f |= ReadsKnown
			}
		}
	}
	return f
}
