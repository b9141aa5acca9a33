package builder

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/clock"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// program compiles a condition and returns its number; equal conditions share one.
func (b *builder) program(c *snapshot.Cond) (uint32, error) {
	pc := &compiler{b: b, w: b.w, args: map[string]uint32{}}
	pc.collect(c)
	names := slices.Sorted(maps.Keys(pc.args))
	for i, n := range names {
		pc.args[n] = uint32(i)
	}
	if err := pc.emit(c); err != nil {
		return 0, err
	}
	if len(pc.code) > layout.MaxCode*layout.CodeSize {
		return 0, fmt.Errorf("condition needs more than %d instructions", layout.MaxCode)
	}
	key := fmt.Sprintf("%q%s", names, pc.code)
	if id, ok := b.progID[key]; ok {
		return id, nil
	}
	id := b.w.count(layout.SecPrograms)
	b.progID[key] = id
	firstCode, firstArg := b.w.count(layout.SecCode), b.w.count(layout.SecArgs)
	b.w.append(layout.SecCode, pc.code)
	for _, n := range names {
		le.PutUint64(b.w.name(layout.SecArgs, n)[8:], index.FoldHash([]byte(n)))
	}
	r := b.w.record(layout.SecPrograms)
	le.PutUint32(r, firstCode)
	le.PutUint16(r[4:], uint16(len(pc.code)/layout.CodeSize))
	le.PutUint16(r[6:], uint16(len(names)))
	le.PutUint32(r[8:], firstArg)
	le.PutUint16(r[12:], index.Flags(pc.code))
	return id, nil
}

type compiler struct {
	b    *builder
	w    *writer
	args map[string]uint32
	code []byte
}

func (c *compiler) collect(n *snapshot.Cond) {
	for _, k := range n.Kids {
		c.collect(k)
	}
	if index.ReadsOperand(n.Op) && n.From == snapshot.FromArgs {
		c.args[n.Arg] = 0
	}
}

// emit writes the instructions that leave the node's truth in the program's one value.
func (c *compiler) emit(n *snapshot.Cond) error {
	switch n.Op {
	case snapshot.OpAnd:
		return c.chain(n.Kids, index.OpJumpFalse)
	case snapshot.OpOr:
		return c.chain(n.Kids, index.OpJumpTrue)
	case snapshot.OpNot:
		if err := c.emit(n.Kids[0]); err != nil {
			return err
		}
		c.instr(snapshot.OpNot, 0, 0, 0)
		return nil
	case snapshot.OpTrue, snapshot.OpFalse, snapshot.OpFail:
		c.instr(n.Op, 0, 0, 0)
		return nil
	case snapshot.OpBefore, snapshot.OpAfter:
		c.instr(n.Op, 0, 0, uint64(n.Value.Int))
		return nil
	case snapshot.OpForeign:
		c.instr(n.Op, 0, 0, c.w.text(n.Value.Str))
		return nil
	case snapshot.OpMember:
		c.instr(n.Op, 0, 0, c.b.belowOf(snapshot.Ref(n.Arg)))
		return nil
	default:
		return c.leaf(n)
	}
}

// leaf writes the comparison of an operand.
func (c *compiler) leaf(n *snapshot.Cond) error {
	arg, err := c.arg(n)
	if err != nil {
		return err
	}
	switch {
	case n.With != nil:
		op := index.OpSame
		if n.Op == snapshot.OpNe {
			op = index.OpDiffer
		}
		c.instr(op, snapshot.TypeString, arg, uint64(layout.ArgWord(n.With.From, layout.AttrNumber(n.With.From, n.With.Arg), 0)))
	case n.Op == snapshot.OpHas:
		c.instr(n.Op, 0, arg, 0)
	case n.Op == snapshot.OpInRange:
		net, err := snapshot.ParseNetwork(n.Value.Str)
		if err != nil {
			return err
		}
		c.instr(n.Op, snapshot.TypeIP, arg, c.w.set(networkWords(net)))
	case n.Op == snapshot.OpIn:
		set := make([]uint64, 0, len(n.Values))
		typ := snapshot.TypeString // an empty set comes from facts, which are strings
		for _, v := range n.Values {
			set, typ = append(set, c.operand(v)), v.Type
		}
		c.instr(n.Op, typ, arg, c.w.set(set))
	default:
		c.instr(n.Op, n.Value.Type, arg, c.operand(n.Value))
	}
	return nil
}

func (c *compiler) arg(n *snapshot.Cond) (uint32, error) {
	switch n.From {
	case snapshot.FromArgs:
		return c.args[n.Arg], nil
	case snapshot.FromClock:
		zone, err := c.b.zone(n.Zone)
		return layout.ArgWord(n.From, layout.AttrNumber(n.From, n.Arg), zone), err
	default:
		return layout.ArgWord(n.From, layout.AttrNumber(n.From, n.Arg), 0), nil
	}
}

// networkWords are a network as three operands: the address in IPv6 form, high and low half, and the bits that count; for
// IPv4 the bits of its prefix in that form.
func networkWords(p netip.Prefix) []uint64 {
	a := p.Addr().As16()
	bits := uint64(p.Bits())
	if p.Addr().Is4() {
		bits += 96 | layout.V4Network
	}
	return []uint64{binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(a[8:]), bits}
}

// zone numbers a time zone and writes its table.
func (b *builder) zone(name string) (uint32, error) {
	if id, ok := b.zoneID[name]; ok {
		return id, nil
	}
	c, err := clock.Load(name)
	if err != nil {
		return 0, err
	}
	id := b.w.count(layout.SecZones)
	if id > 1<<16-1 {
		return 0, fmt.Errorf("more than %d time zones", id)
	}
	b.zoneID[name] = id
	first := b.w.count(layout.SecTransitions)
	r := b.w.name(layout.SecZones, name)
	le.PutUint32(r[8:], first)
	le.PutUint32(r[12:], uint32(len(c.At)))
	for i := range c.At {
		t := b.w.record(layout.SecTransitions)
		le.PutUint64(t, uint64(c.At[i]))
		le.PutUint32(t[8:], uint32(c.Off[i]))
	}
	return id, nil
}

// belowOf is the set of a node and all nodes that belong to it.
func (b *builder) belowOf(ref snapshot.Ref) uint64 {
	top := b.nodeID[ref]
	if b.below == nil {
		b.below = map[uint32]uint64{}
	}
	if set, ok := b.below[top]; ok {
		return set
	}
	kids := make(map[uint32][]uint32)
	for i := range b.nodes {
		for _, up := range b.nodes[i].parents {
			kids[up] = append(kids[up], uint32(i+1))
		}
	}
	seen := map[uint32]bool{top: true}
	members := []uint64{uint64(top)}
	for i := 0; i < len(members); i++ {
		for _, k := range kids[uint32(members[i])] {
			if !seen[k] {
				seen[k] = true
				members = append(members, uint64(k))
			}
		}
	}
	slices.Sort(members)
	set := b.w.set(members)
	b.below[top] = set
	return set
}

// chain evaluates kids from the left until one settles it.
func (c *compiler) chain(kids []*snapshot.Cond, jump snapshot.Op) error {
	var holes []int
	for i, k := range kids {
		if err := c.emit(k); err != nil {
			return err
		}
		if i < len(kids)-1 {
			holes = append(holes, len(c.code))
			c.instr(jump, 0, 0, 0)
		}
	}
	for _, at := range holes {
		le.PutUint16(c.code[at+2:], uint16(len(c.code)/layout.CodeSize))
	}
	return nil
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
	var r [layout.CodeSize]byte
	r[0], r[1] = byte(op), byte(t)
	le.PutUint32(r[4:], arg)
	le.PutUint64(r[8:], operand)
	c.code = append(c.code, r[:]...)
}
