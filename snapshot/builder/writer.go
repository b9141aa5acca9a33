package builder

import (
	"fmt"

	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// writer collects sections. Texts are stored once.
type writer struct {
	sections [layout.SecEnd][]byte
	texts    map[string]uint32
	sets     map[string]uint64
}

func newWriter() *writer { return &writer{texts: map[string]uint32{}, sets: map[string]uint64{}} }

var blank [64]byte

// record appends a zero record and returns it; it is valid until the next one.
func (w *writer) record(sec int) []byte {
	n := len(w.sections[sec])
	size := int(layout.RecordSize(sec))
	w.sections[sec] = append(w.sections[sec], blank[:size]...)
	return w.sections[sec][n : n+size]
}

func (w *writer) append(sec int, b []byte) { w.sections[sec] = append(w.sections[sec], b...) }

func (w *writer) count(sec int) uint32 {
	return uint32(len(w.sections[sec]) / int(layout.RecordSize(sec)))
}

// table makes a section of empty slots.
func (w *writer) table(sec, slots int) []byte {
	w.sections[sec] = make([]byte, slots*int(layout.RecordSize(sec)))
	return w.sections[sec]
}

// text stores a string and returns its reference as an operand.
func (w *writer) text(s string) uint64 {
	off, ok := w.texts[s]
	if !ok {
		off = uint32(len(w.sections[layout.SecHeap]))
		w.texts[s] = off
		w.append(layout.SecHeap, []byte(s))
	}
	return uint64(off) | uint64(len(s))<<32
}

// set stores the operands of a set and returns its reference.
func (w *writer) set(members []uint64) uint64 {
	b := make([]byte, 0, len(members)*layout.ValueSize)
	for _, m := range members {
		b = le.AppendUint64(b, m)
	}
	ref, ok := w.sets[string(b)]
	if !ok {
		ref = uint64(w.count(layout.SecValues)) | uint64(len(members))<<32
		w.sets[string(b)] = ref
		w.append(layout.SecValues, b)
	}
	return ref
}

// name appends a record that starts with a name.
func (w *writer) name(sec int, name string) []byte { return w.named(sec, name, w.text(name)) }

// unique is name for names that nothing else bears: it is not worth looking for them.
func (w *writer) unique(sec int, name string) []byte {
	off := len(w.sections[layout.SecHeap])
	w.sections[layout.SecHeap] = append(w.sections[layout.SecHeap], name...)
	return w.named(sec, name, uint64(off))
}

func (w *writer) named(sec int, name string, ref uint64) []byte {
	r := w.record(sec)
	le.PutUint32(r, uint32(ref))
	le.PutUint16(r[4:], uint16(len(name)))
	return r
}

// names makes the hash table over the names of a section.
func (w *writer) names(table, sec int, seeds []uint64) {
	n := int(w.count(sec))
	slots := uint32(tableSize(n))
	t := w.table(table, int(slots))
	size := int(layout.RecordSize(sec))
	for i := range n {
		r := w.sections[sec][i*size:]
		off := le.Uint32(r)
		var seed uint64
		if seeds != nil {
			seed = seeds[i]
		}
		h := layout.HashName(seed, string(w.sections[layout.SecHeap][off:off+uint32(le.Uint16(r[4:]))]))
		at := layout.NameHome(h, slots)
		for le.Uint32(t[at*layout.NameSlotSize:]) != 0 {
			if at++; at == slots {
				at = 0
			}
		}
		le.PutUint32(t[at*layout.NameSlotSize:], uint32(h)<<24|uint32(i+1))
	}
}

// tableSize is how many slots n entries are spread over: they fill three quarters of them, and one is always free.
func tableSize(n int) int { return n + n/3 + 1 }

// cellSlots is tableSize for cells, which fill two fifths: most nodes of a principal have no cell for a server, and to find
// that out takes eight slots of a table that is three quarters full, all of them cold for a principal that was not seen
// before, and two of this one.
func cellSlots(n int) int { return 2*n + n/2 + 1 }

// finish lays the sections out behind the header. The state hash is left to the caller.
func (w *writer) finish(tenant string, everyone, pages uint32) ([]byte, error) {
	tenantRef := w.text(tenant)
	start := layout.AlignUp(layout.HeaderFixed + layout.SectionEntry*(layout.SecEnd-1))
	size := start
	for sec := 1; sec < layout.SecEnd; sec++ {
		size += layout.AlignUp(uint64(len(w.sections[sec])))
	}
	if size > index.MaxSize {
		return nil, fmt.Errorf("build index: %d bytes: at most %d", size, index.MaxSize)
	}
	b := make([]byte, size)
	copy(b, layout.Magic)
	le.PutUint16(b[8:], layout.Major)
	le.PutUint16(b[10:], layout.Minor)
	le.PutUint32(b[12:], layout.SecEnd-1)
	le.PutUint64(b[16:], size)
	le.PutUint32(b[24:], uint32(tenantRef))
	le.PutUint32(b[28:], uint32(tenantRef>>32))
	le.PutUint32(b[32:], everyone)
	le.PutUint32(b[36:], pages)
	off := start
	for sec := 1; sec < layout.SecEnd; sec++ {
		data := w.sections[sec]
		copy(b[off:], data)
		e := b[layout.HeaderFixed+(sec-1)*layout.SectionEntry:]
		le.PutUint32(e, uint32(sec))
		le.PutUint32(e[4:], layout.RecordSize(sec))
		le.PutUint64(e[8:], off)
		le.PutUint64(e[16:], uint64(w.count(sec)))
		off += layout.AlignUp(uint64(len(data)))
	}
	return b, nil
}
