package authz

import (
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Prospect is what a condition may come to from a time on, whoever asks how.
type Prospect struct {
	// True and False say that some call would find it so; Open that it may fail on one, because it reads what a call says or
	// a fact that is not there.
	True, False, Open bool
}

// Prospects judges a condition of a view for reports about access: what is known of the principal and the end of a validity
// are judged, while arguments, circumstances and the time of day may be anything.
func Prospects(v *index.View, program uint32, nowMS int64) Prospect {
	e := evaluator{req: &Request{NowMS: nowMS}, x: v.Index(), who: v.Principal()}
	p := e.x.Program(program)
	var out Prospect
	for pc := range p.Len() {
		out.Open = out.Open || p.Instr(pc).Op == snapshot.OpFail
	}
	out.True, out.False = p.Paths(func(in index.Instr) uint8 {
		const either = index.CanTrue | index.CanFalse
		switch {
		case in.Op == snapshot.OpBefore && nowMS >= int64(in.Operand):
			return index.CanFalse
		case in.Op == snapshot.OpAfter && nowMS >= int64(in.Operand):
			return index.CanTrue
		case in.Op == snapshot.OpBefore, in.Op == snapshot.OpAfter:
			return either
		case in.Op == snapshot.OpMember, in.From == snapshot.FromPrincipal && in.Op != snapshot.OpForeign && ofPrincipal(in):
			switch e.leaf(&p, in) {
			case isTrue:
				return index.CanTrue
			case isFalse:
				return index.CanFalse
			case isError:
			}
			out.Open = true
			return 0
		}
		out.Open = true
		return either
	})
	return out
}

// ofPrincipal reports whether the other side of a comparison, if there is one, is of the principal too.
func ofPrincipal(in index.Instr) bool {
	if in.Op != index.OpSame && in.Op != index.OpDiffer {
		return true
	}
	from, _ := in.Other()
	return from == snapshot.FromPrincipal
}
