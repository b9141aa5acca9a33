package index

import (
	"unicode"
	"unicode/utf8"

	"github.com/mcpvault/mcpvault/snapshot"
)

// Instruction codes: the leaf operators of snapshot.Op, and jumps. A program keeps one truth value; it ends after its
// last instruction.
const (
	OpJumpFalse snapshot.Op = 0x40 + iota // skip to Target when the value is false
	OpJumpTrue
)

// What a program can come to when arguments (and, if it asks for it, the time) may be anything.
const (
	MayTrue  uint16 = 1 << iota
	MayFalse        // without it a program as a deny always fires
	ReadsTime
)

// Program is one residual condition.
type Program struct {
	x     *Index
	code  []byte
	args  []byte
	Flags uint16
}

// Instr is one instruction. Operand is a number, 0 or 1, or a reference for Text or Set.
type Instr struct {
	Op      snapshot.Op
	Type    snapshot.Type
	Target  int
	Arg     int
	Operand uint64
}

// Cond returns the i-th condition entry: which items of its page it is about, and its program.
func (x *Index) Cond(i uint32) (mask uint64, program uint32) {
	r := x.conds[int(i)*condSize : (int(i)+1)*condSize]
	return le.Uint64(r), le.Uint32(r[8:])
}

// Program returns the i-th program.
func (x *Index) Program(i uint32) Program {
	r := x.programs[int(i)*programSize : (int(i)+1)*programSize]
	code, args := int(le.Uint32(r)), int(le.Uint32(r[8:]))
	return Program{
		x:     x,
		code:  x.code[code*codeSize : (code+int(le.Uint16(r[4:])))*codeSize],
		args:  x.args[args*argSize : (args+int(le.Uint16(r[6:])))*argSize],
		Flags: le.Uint16(r[12:]),
	}
}

// Len counts the instructions.
func (p *Program) Len() int { return len(p.code) / codeSize }

// Instr returns one instruction.
func (p *Program) Instr(pc int) Instr {
	r := p.code[pc*codeSize : (pc+1)*codeSize]
	return Instr{
		Op: snapshot.Op(r[0]), Type: snapshot.Type(r[1]), Target: int(le.Uint16(r[2:])),
		Arg: int(le.Uint32(r[4:])), Operand: le.Uint64(r[8:]),
	}
}

// ArgName returns the name of an argument that the program reads, and its folded hash.
func (p *Program) ArgName(i int) (name []byte, fold uint64) {
	r := p.args[i*argSize : (i+1)*argSize]
	return p.x.name(r), le.Uint64(r[8:])
}

// Text returns the string constant behind an operand.
func (p *Program) Text(operand uint64) []byte {
	off, n := uint32(operand), uint32(operand>>32)
	return p.x.heap[off : int(off)+int(n)]
}

// Set returns how many members the set behind an operand has.
func (p *Program) Set(operand uint64) int { return int(operand >> 32) }

// Member returns the operand of the i-th member of a set.
func (p *Program) Member(operand uint64, i int) uint64 {
	return le.Uint64(p.x.values[(int(uint32(operand))+i)*valueSize:])
}

// ReadsArg reports whether any program of the index reads an argument with this folded hash.
func (x *Index) ReadsArg(fold uint64) bool {
	mask := len(x.argNames) - 1
	for i := int(fold) & mask; ; i = (i + 1) & mask {
		switch x.argNames[i] {
		case fold:
			return true
		case 0:
			return false
		}
	}
}

// addArg notes an argument that some program reads; the table has room.
func (x *Index) addArg(fold uint64) {
	mask := len(x.argNames) - 1
	i := int(fold) & mask
	for x.argNames[i] != 0 && x.argNames[i] != fold {
		i = (i + 1) & mask
	}
	x.argNames[i] = fold
}

// Possible follows all paths of a program whose argument leaves may come out either way: what it may come to at nowMS.
func (p *Program) Possible(nowMS int64) (mayTrue, mayFalse bool) {
	if p.Flags&ReadsTime == 0 {
		return p.Flags&MayTrue != 0, p.Flags&MayFalse != 0
	}
	var leaf [2]uint8
	leaf[0], leaf[1] = canFalse, canTrue
	return p.paths(func(in Instr) uint8 {
		before := nowMS < int64(in.Operand)
		if before == (in.Op == snapshot.OpBefore) {
			return leaf[1]
		}
		return leaf[0]
	})
}

const (
	canFalse uint8 = 1 << iota
	canTrue
)

// paths runs the program on sets of values. Jumps only go forward, so one pass is exact.
func (p *Program) paths(timeLeaf func(Instr) uint8) (mayTrue, mayFalse bool) {
	var at [maxCode + 1]uint8
	n := p.Len()
	cur := canTrue
	for pc := range n {
		cur |= at[pc]
		in := p.Instr(pc)
		if cur == 0 {
			continue
		}
		switch in.Op {
		case OpJumpFalse:
			at[in.Target] |= cur & canFalse
			cur &= canTrue
		case OpJumpTrue:
			at[in.Target] |= cur & canTrue
			cur &= canFalse
		case snapshot.OpNot:
			cur = cur>>1 | cur<<1&canTrue
		case snapshot.OpTrue:
			cur = canTrue
		case snapshot.OpFalse:
			cur = canFalse
		case snapshot.OpBefore, snapshot.OpAfter:
			cur = timeLeaf(in)
		default:
			cur = canTrue | canFalse
		}
	}
	cur |= at[n]
	return cur&canTrue != 0, cur&canFalse != 0
}

// FoldHash hashes a name so that names which differ in case only are one: JSON decoders that ignore case would take one
// for the other. It is the same for whole runes and for a name decoded rune by rune with FoldRune.
func FoldHash(name []byte) uint64 {
	h := FoldStart
	for i := 0; i < len(name); {
		if c := name[i]; c < utf8.RuneSelf {
			h = FoldByte(h, c)
			i++
			continue
		}
		r, n := utf8.DecodeRune(name[i:])
		h = FoldRune(h, r)
		i += n
	}
	return h
}

// FoldStart is the hash of the empty name.
const FoldStart uint64 = 14695981039346656037

const foldPrime = 1099511628211

// FoldByte adds one ASCII character to a folded hash.
func FoldByte(h uint64, c byte) uint64 {
	if c-'a' < 26 {
		c -= 'a' - 'A'
	}
	return (h ^ uint64(c)) * foldPrime
}

// FoldRune adds one character to a folded hash, as the smallest of those that fold together: 'ſ' is 'S', the Kelvin sign
// is 'K'.
func FoldRune(h uint64, r rune) uint64 {
	if r < utf8.RuneSelf {
		return FoldByte(h, byte(r))
	}
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		if f < r {
			r = f
			break
		}
	}
	return (h ^ uint64(r)) * foldPrime
}
