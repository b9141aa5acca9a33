package builder

import (
	"encoding/binary"
	"slices"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/fold"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// folded is what is left of a grant's condition for an item.
type folded struct {
	verdict fold.Verdict
	prog    uint32 // number of its program + 1, when nothing is certain
}

// reach is what a grant reaches on one page.
type reach struct {
	mask uint64
	page uint32
	prog uint32 // number of its program + 1, 0 for none
}

// lookup finds the facts of an item by name; those that every item has are among them.
func (sp *serverPlan) lookup(item string) fold.Facts {
	facts := sp.facts[item]
	return func(name string) (snapshot.Fact, bool) {
		kind, shown := snapshot.KindOf(item)
		var text string
		switch name {
		case "name":
			text = shown
		case "server":
			text = sp.name
		case "kind":
			text = kind.String()
		default:
			f, ok := facts[name]
			return f, ok
		}
		return snapshot.Fact{Value: snapshot.Value{Type: snapshot.TypeString, Str: text}}, true
	}
}

// reachOf works out which items a grant reaches, and under which program.
func (b *builder) reachOf(g *snapshot.Grant) ([]reach, error) {
	attrs := fold.Names(nil, g.When)
	if g.Server == "*" && g.Tool == "" && len(attrs) == 0 {
		f, err := b.fold(g, nil, nil)
		if err != nil || !f.reaches() {
			return nil, err
		}
		return []reach{{mask: ^uint64(0), page: layout.AnyPage, prog: f.prog}}, nil
	}
	var out []reach
	for _, sp := range b.order {
		if g.Server != "*" && g.Server != sp.name {
			continue
		}
		var err error
		if out, err = b.reachOn(out, g, sp, attrs); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// reachOn adds what a grant reaches on one server.
func (b *builder) reachOn(out []reach, g *snapshot.Grant, sp *serverPlan, attrs []string) ([]reach, error) {
	from, to := uint32(0), uint32(len(sp.items))
	if g.Tool != "" {
		i, ok := sp.itemID[g.Tool]
		if !ok {
			return out, nil
		}
		from, to = i, i+1
	}
	if len(attrs) == 0 {
		f, err := b.fold(g, nil, nil)
		if err != nil || !f.reaches() {
			return out, err
		}
		for pg := from / layout.ItemsPerPage; pg*layout.ItemsPerPage < to; pg++ {
			out = append(out, reach{mask: pageMask(pg, from, to), page: sp.pageBase + pg, prog: f.prog})
		}
		return out, nil
	}
	start := len(out)
	for i := from; i < to; i++ {
		f, err := b.fold(g, attrs, sp.lookup(sp.items[i]))
		if err != nil {
			return out, err
		}
		if !f.reaches() {
			continue
		}
		page, bit := sp.pageBase+i/layout.ItemsPerPage, uint64(1)<<(i%layout.ItemsPerPage)
		at := slices.IndexFunc(out[start:], func(r reach) bool { return r.page == page && r.prog == f.prog })
		if at < 0 {
			out = append(out, reach{mask: bit, page: page, prog: f.prog})
			continue
		}
		out[start+at].mask |= bit
	}
	return out, nil
}

// pageMask has the bits of the items from..to that lie on a page.
func pageMask(page, from, to uint32) uint64 {
	mask := ^uint64(0)
	if lo := page * layout.ItemsPerPage; from > lo {
		mask &= ^uint64(0) << (from - lo)
	}
	if hi := (page + 1) * layout.ItemsPerPage; to < hi {
		mask &= ^uint64(0) >> (hi - to)
	}
	return mask
}

func (f folded) reaches() bool { return f.verdict != fold.Never }

// fold settles what can be settled of a grant's condition. Grants share what they fold alike.
func (b *builder) fold(g *snapshot.Grant, attrs []string, facts fold.Facts) (folded, error) {
	if g.When == nil {
		return folded{verdict: fold.Certain}, nil
	}
	if f, ok := b.folds[string(b.foldKey(g, attrs, facts))]; ok {
		return f, nil
	}
	key := string(b.key)
	left, err := fold.Settle(g.When, facts)
	if err != nil {
		return folded{}, err
	}
	f := folded{verdict: left.Verdict}
	switch {
	case f.verdict == fold.Broken && g.Deny:
		f.verdict = fold.Certain // an error in a deny denies
	case f.verdict == fold.Broken:
		f.verdict, left.Rest = fold.Undecided, &snapshot.Cond{Op: snapshot.OpFail}
	}
	if f.verdict == fold.Undecided {
		id, err := b.program(left.Rest)
		if err != nil {
			return f, err
		}
		f.prog = id + 1
	}
	b.folds[key] = f
	return f, nil
}

// foldKey names a condition and the facts that it reads. The bytes are good until the next call.
func (b *builder) foldKey(g *snapshot.Grant, attrs []string, facts fold.Facts) []byte {
	b.key = b.key[:0]
	effect := byte('+')
	if g.Deny {
		effect = '!'
	}
	k := appendCond(append(b.key, effect), g.When)
	for _, a := range attrs {
		f, ok := facts(a)
		k = appendText(append(k, '|'), a)
		if !ok {
			k = append(k, '-')
			continue
		}
		k = appendValue(k, f.Value)
		k = binary.AppendUvarint(k, uint64(len(f.Set)))
		for _, m := range f.Set {
			k = appendText(k, m)
		}
	}
	b.key = k
	return k
}

// appendCond writes a condition so that different ones differ.
func appendCond(k []byte, c *snapshot.Cond) []byte {
	k = append(k, '(', byte(c.Op), byte(c.From))
	k = appendText(appendText(k, c.Arg), c.Zone)
	if c.With != nil {
		k = appendText(append(k, '~', byte(c.With.From)), c.With.Arg)
	}
	k = appendValue(k, c.Value)
	k = binary.AppendUvarint(k, uint64(len(c.Values)))
	for _, v := range c.Values {
		k = appendValue(k, v)
	}
	for _, kid := range c.Kids {
		k = appendCond(k, kid)
	}
	return append(k, ')')
}

func appendValue(k []byte, v snapshot.Value) []byte {
	truth := byte('f')
	if v.Bool {
		truth = 't'
	}
	return appendText(binary.AppendVarint(append(k, byte(v.Type), truth), v.Int), v.Str)
}

// appendText writes a length before the bytes, so that no two lists of texts are the same bytes.
func appendText(k []byte, s string) []byte {
	return append(binary.AppendUvarint(k, uint64(len(s))), s...)
}
