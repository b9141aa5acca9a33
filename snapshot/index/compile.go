package index

import (
	"fmt"
	"maps"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
)

// program compiles a condition and returns its number; equal conditions share one.
func (b *builder) program(c *snapshot.Cond) (uint32, error) {
	pc := &compiler{w: b.w, args: map[string]uint32{}}
	pc.collect(c)
	names := slices.Sorted(maps.Keys(pc.args))
	for i, n := range names {
		pc.args[n] = uint32(i)
	}
	pc.emit(c)
	if len(pc.code) > maxCode*codeSize {
		return 0, fmt.Errorf("condition needs more than %d instructions", maxCode)
	}
	key := fmt.Sprintf("%q%s", names, pc.code)
	if id, ok := b.progID[key]; ok {
		return id, nil
	}
	id := b.w.count(secPrograms)
	b.progID[key] = id
	firstCode, firstArg := b.w.count(secCode), b.w.count(secArgs)
	b.w.append(secCode, pc.code)
	for _, n := range names {
		le.PutUint64(b.w.name(secArgs, n, 0)[8:], FoldHash([]byte(n)))
	}
	r := b.w.record(secPrograms)
	le.PutUint32(r, firstCode)
	le.PutUint16(r[4:], uint16(len(pc.code)/codeSize))
	le.PutUint16(r[6:], uint16(len(names)))
	le.PutUint32(r[8:], firstArg)
	prog := Program{code: pc.code}
	le.PutUint16(r[12:], prog.flags())
	return id, nil
}

// flags derives a program's flags from its code.
func (p *Program) flags() uint16 {
	var f uint16
	for pc := range p.Len() {
		if op := p.Instr(pc).Op; op == snapshot.OpBefore || op == snapshot.OpAfter {
			f = ReadsTime
		}
	}
	mayTrue, mayFalse := p.paths(func(Instr) uint8 { return canTrue | canFalse })
	if mayTrue {
		f |= MayTrue
	}
	if mayFalse {
		f |= MayFalse
	}
	return f
}

type compiler struct {
	w    *writer
	args map[string]uint32
	code []byte
}

func (c *compiler) collect(n *snapshot.Cond) {
	for _, k := range n.Kids {
		c.collect(k)
	}
	switch n.Op {
	case snapshot.OpHas, snapshot.OpEq, snapshot.OpNe, snapshot.OpLt, snapshot.OpLe, snapshot.OpGt, snapshot.OpGe, snapshot.OpIn:
		c.args[n.Arg] = 0
	default: // the others read no argument
	}
}

// emit writes the instructions that leave the node's truth in the program's one value.
func (c *compiler) emit(n *snapshot.Cond) {
	switch n.Op {
	case snapshot.OpAnd:
		c.chain(n.Kids, OpJumpFalse)
	case snapshot.OpOr:
		c.chain(n.Kids, OpJumpTrue)
	case snapshot.OpNot:
		c.emit(n.Kids[0])
		c.instr(snapshot.OpNot, 0, 0, 0)
	case snapshot.OpTrue, snapshot.OpFalse:
		c.instr(n.Op, 0, 0, 0)
	case snapshot.OpBefore, snapshot.OpAfter:
		c.instr(n.Op, 0, 0, uint64(n.Value.Int))
	case snapshot.OpHas:
		c.instr(n.Op, 0, c.args[n.Arg], 0)
	case snapshot.OpIn:
		set := make([]uint64, 0, len(n.Values))
		for _, v := range n.Values {
			set = append(set, c.operand(v))
		}
		c.instr(n.Op, n.Values[0].Type, c.args[n.Arg], c.w.set(set))
	default:
		c.instr(n.Op, n.Value.Type, c.args[n.Arg], c.operand(n.Value))
	}
}

// chain evaluates kids from the left until one settles it.
func (c *compiler) chain(kids []*snapshot.Cond, jump snapshot.Op) {
	var holes []int
	for i, k := range kids {
		c.emit(k)
		if i < len(kids)-1 {
			holes = append(holes, len(c.code))
			c.instr(jump, 0, 0, 0)
		}
	}
	for _, at := range holes {
		le.PutUint16(c.code[at+2:], uint16(len(c.code)/codeSize))
	}
}

func (c *compiler) operand(v snapshot.Value) uint64 {
	switch v.Type {
	case snapshot.TypeString:
		return c.w.text(v.Str)
	case snapshot.TypeBool:
		if v.Bool {
			return 1
		}
		return 0
	default:
		return uint64(v.Int)
	}
}

func (c *compiler) instr(op snapshot.Op, t snapshot.Type, arg uint32, operand uint64) {
	var r [codeSize]byte
	r[0], r[1] = byte(op), byte(t)
	le.PutUint32(r[4:], arg)
	le.PutUint64(r[8:], operand)
	c.code = append(c.code, r[:]...)
}
