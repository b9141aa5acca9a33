package authz

import (
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

type outcome uint8

const (
	isFalse outcome = iota
	isTrue
	isError
)

// evaluator runs the conditions of one decision. The arguments are read once, when the first condition asks.
type evaluator struct {
	req   *Request
	x     *index.Index
	who   index.PrincipalID
	fault fault
	args  args
	// script, when there is one, is what conditions come to: see Replay.
	script *script
}

// run evaluates one program. The first error ends it, as in Cedar; fault then says what it was.
func (e *evaluator) run(id uint32) outcome {
	if e.script != nil {
		return e.script.run(e, id)
	}
	return e.evaluate(id)
}

func (e *evaluator) evaluate(id uint32) outcome {
	p := e.x.Program(id)
	val := isFalse
	n := p.Len()
	for pc := 0; pc < n; pc++ {
		switch p.Op(pc) {
		case index.OpJumpFalse:
			if val == isFalse {
				pc = p.Target(pc) - 1
			}
		case index.OpJumpTrue:
			if val == isTrue {
				pc = p.Target(pc) - 1
			}
		case snapshot.OpNot:
			val ^= isTrue
		case snapshot.OpTrue:
			val = isTrue
		case snapshot.OpFalse:
			val = isFalse
		default:
			if val = e.leaf(&p, p.Instr(pc)); val == isError {
				return isError
			}
		}
	}
	return val
}

func truth(b bool) outcome {
	if b {
		return isTrue
	}
	return isFalse
}

func (e *evaluator) fail(f fault) outcome {
	e.fault = f
	return isError
}

// leaf evaluates one instruction that reads something.
func (e *evaluator) leaf(p *index.Program, in index.Instr) outcome {
	switch in.Op {
	case snapshot.OpBefore:
		return truth(e.req.NowMS < int64(in.Operand))
	case snapshot.OpAfter:
		return truth(e.req.NowMS >= int64(in.Operand))
	case snapshot.OpMember:
		return truth(p.Belongs(in.Operand, e.who))
	case snapshot.OpForeign:
		return e.foreign(p, in)
	case snapshot.OpFail:
		return e.fail(faultFact)
	default: // the others compare an operand
	}
	if in.From != snapshot.FromArgs {
		return e.known(p, in)
	}
	name, fold := p.ArgName(in.Arg)
	val, f := e.args.find(e.x, e.req.Args, name, fold)
	if in.Op == snapshot.OpHas && f == faultAbsent {
		return isFalse
	}
	if f != faultNone {
		return e.fail(f)
	}
	if in.Op == snapshot.OpHas {
		return isTrue
	}
	if kindOf(val) != in.Type {
		return e.fail(faultType)
	}
	if in.Op == snapshot.OpIn {
		return e.in(p, in, val)
	}
	var cmp int
	switch in.Type {
	case snapshot.TypeNumber:
		cmp, f = compareNumber(val, int64(in.Operand))
	case snapshot.TypeString:
		cmp = equalString(val, p.Text(in.Operand))
	case snapshot.TypeBool:
		cmp = equalBool(val, in.Operand != 0)
	default: // Open lets no such program in.
		f = faultType
	}
	if f != faultNone {
		return e.fail(f)
	}
	return truth(holds(in.Op, cmp))
}

// in tries the members of a set; a value that cannot be read is an error whatever the members are.
func (e *evaluator) in(p *index.Program, in index.Instr, val []byte) outcome {
	for i := range p.Set(in.Operand) {
		m := p.Member(in.Operand, i)
		var cmp int
		var f fault
		switch in.Type {
		case snapshot.TypeNumber:
			cmp, f = compareNumber(val, int64(m))
		case snapshot.TypeString:
			cmp = equalString(val, p.Text(m))
		case snapshot.TypeBool:
			cmp = equalBool(val, m != 0)
		default: // Open lets no such program in.
			f = faultType
		}
		if f != faultNone {
			return e.fail(f)
		}
		if cmp == 0 {
			return isTrue
		}
	}
	return isFalse
}

func holds(op snapshot.Op, cmp int) bool {
	switch op {
	case snapshot.OpEq:
		return cmp == 0
	case snapshot.OpNe:
		return cmp != 0
	case snapshot.OpLt:
		return cmp < 0
	case snapshot.OpLe:
		return cmp <= 0
	case snapshot.OpGt:
		return cmp > 0
	case snapshot.OpGe:
		return cmp >= 0
	default:
		return false
	}
}

// kindOf tells the scalar type of a JSON value by its first byte; TypeInvalid for null, objects and arrays.
func kindOf(val []byte) snapshot.Type {
	switch c := val[0]; {
	case c == '"':
		return snapshot.TypeString
	case c == 't' || c == 'f':
		return snapshot.TypeBool
	case c == '-' || '0' <= c && c <= '9':
		return snapshot.TypeNumber
	}
	return snapshot.TypeInvalid
}
