package authz

import (
	"encoding/binary"
	"net/netip"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/residual"
)

// known evaluates a comparison of what lists know as well as calls: context, clocks, the principal.
func (e *evaluator) known(p *index.Program, in index.Instr) outcome {
	if in.Op == index.OpSame || in.Op == index.OpDiffer {
		from, attr := in.Other()
		a, okA := e.text(in.From, in.Arg)
		b, okB := e.text(from, attr)
		if !okA || !okB {
			return e.fail(faultAttribute)
		}
		return truth((a == b) == (in.Op == index.OpSame))
	}
	if in.Op == snapshot.OpHas {
		return truth(e.has(in))
	}
	switch in.Type {
	case snapshot.TypeIP:
		addr := e.req.IP.Unmap()
		if !addr.IsValid() {
			return e.fail(faultAttribute)
		}
		return truth(inNetwork(addr, p, in.Operand))
	case snapshot.TypeNumber:
		return e.number(p, in)
	case snapshot.TypeString:
		return e.string(p, in)
	default: // Open lets no such program in.
		return e.fail(faultType)
	}
}

func (e *evaluator) has(in index.Instr) bool {
	if in.From == snapshot.FromContext && in.Arg == index.AttrIP {
		return e.req.IP.IsValid()
	}
	if in.From == snapshot.FromPrincipal && in.Arg == index.AttrClearance {
		return true
	}
	_, ok := e.text(in.From, in.Arg)
	return ok
}

// text is an attribute that is a string; false when it is absent.
func (e *evaluator) text(from snapshot.Source, attr int) (string, bool) {
	var s string
	switch {
	case from == snapshot.FromContext && attr == index.AttrRegion:
		s = e.req.Region
	case from == snapshot.FromContext && attr == index.AttrActor:
		s = e.req.Actor
	case from == snapshot.FromPrincipal && attr == index.AttrName:
		s = e.x.NameOf(e.who)
	case from == snapshot.FromPrincipal && attr == index.AttrKind:
		s = e.x.Kind(e.who).String()
	case from == snapshot.FromPrincipal && attr == index.AttrHome:
		s = e.x.RegionOf(e.who)
	}
	return s, s != ""
}

func (e *evaluator) number(p *index.Program, in index.Instr) outcome {
	var got int64
	if in.From == snapshot.FromClock {
		got = p.Clock(in.Zone, in.Arg, e.req.NowMS)
	} else {
		got = int64(e.x.Clearance(e.who))
	}
	if in.Op == snapshot.OpIn {
		for i := range p.Set(in.Operand) {
			if int64(p.Member(in.Operand, i)) == got {
				return isTrue
			}
		}
		return isFalse
	}
	want, cmp := int64(in.Operand), 0
	switch {
	case got < want:
		cmp = -1
	case got > want:
		cmp = 1
	}
	return truth(holds(in.Op, cmp))
}

func (e *evaluator) string(p *index.Program, in index.Instr) outcome {
	got, ok := e.text(in.From, in.Arg)
	if !ok {
		return e.fail(faultAttribute)
	}
	if in.Op == snapshot.OpIn {
		for i := range p.Set(in.Operand) {
			if string(p.Text(p.Member(in.Operand, i))) == got {
				return isTrue
			}
		}
		return isFalse
	}
	cmp := 1
	if string(p.Text(in.Operand)) == got {
		cmp = 0
	}
	return truth(holds(in.Op, cmp))
}

// inNetwork compares the leading bits of an address, in IPv6 form, with those of a network of the same family.
func inNetwork(addr netip.Addr, p *index.Program, set uint64) bool {
	hi, lo, size := p.Member(set, 0), p.Member(set, 1), p.Member(set, 2)
	if addr.Is4() != index.IsV4Network(size) {
		return false
	}
	a := addr.As16()
	n := int(uint32(size))
	return samePrefix(binary.BigEndian.Uint64(a[:]), hi, n) && samePrefix(binary.BigEndian.Uint64(a[8:]), lo, n-64)
}

func samePrefix(a, b uint64, bits int) bool {
	switch {
	case bits <= 0:
		return true
	case bits >= 64:
		return a == b
	}
	return (a^b)>>(64-bits) == 0
}

// foreign evaluates a Cedar expression. Unlike everything else here it allocates.
func (e *evaluator) foreign(p *index.Program, in index.Instr) outcome {
	person := e.x.Person(e.who)
	ok, err := p.Foreign(in.Operand).Eval(&residual.Env{
		NowMS: e.req.NowMS, Args: e.req.Args, IP: e.req.IP.Unmap(), Region: e.req.Region, Actor: e.req.Actor,
		Principal: residual.Principal{
			Name: e.x.PrincipalName(e.who), Kind: person.Kind, Clearance: person.Clearance, Region: person.Region,
		},
	})
	if err != nil {
		return e.fail(faultForeign)
	}
	return truth(ok)
}
