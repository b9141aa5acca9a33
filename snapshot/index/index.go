// Package index is the flat decision index: one tenant's whole policy in one block of bytes that a cell can check once
// and then read without decoding, copying or allocating. Package builder makes the block.
//
// Open checks every offset and index once and never panics, so that reading needs no further checks. Apply makes a new
// Index of an old one and a delta, and Diff the delta of two. An Index is read-only and safe for any number of readers. It
// keeps the bytes it was opened on; nobody may write to them.
//
// Deciding is package authz; ../internal/layout is the format; ../DESIGN.md tells how blocks and deltas travel.
package index

import (
	"encoding/binary"
	"iter"
	"unsafe"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/clock"
	"github.com/mcpvault/mcpvault/snapshot/internal/layout"
)

// MaxSize bounds a block: a million principals take a fifth of it.
const MaxSize = 1 << 30

// Dense numbers of one index. They mean nothing in another.
type (
	// PrincipalID is the number of a principal.
	PrincipalID uint32
	// ServerID is the number of a server.
	ServerID uint32
	// ItemID is the number of an item.
	ItemID uint32
)

// Index reads one opened block, and the changes that deltas have made to it.
type Index struct {
	*block
	// ov is nil while no delta was applied.
	ov    *overlay
	state snapshot.Digest
}

// block is what lies in the bytes.
type block struct {
	tenant                                       string
	principals, members, regions, servers, items []byte
	cells, conds, programs, code, args           []byte
	principalNames, serverNames, itemNames       []byte
	nodes, edges, nodeGrants, grants, reaches    []byte
	zoneRecs, transitions                        []byte
	pool
	nPrincipals, nServers, nNodes, nPages, nPrograms uint32
	nCells, nConds, nGrants                          uint32
	everyone                                         uint32
	cellSlots                                        uint64
	// anyNode and ownNode have a bit for each node that owns a wildcard cell, or any other: most probes need not be made.
	anyNode, ownNode []uint64
	// argNames are the folded hashes of all names that programs read: open addressing, at most half full, 0 is free.
	argNames []uint64
	clocks   []clock.Table
	size     int
	// keep owns the bytes, when they are not the garbage collector's.
	keep any
}

var le = binary.LittleEndian

// Tenant is the tenant that the index was built for.
func (x *Index) Tenant() snapshot.TenantID { return snapshot.TenantID(x.tenant) }

// Size is the length of the block in bytes.
func (x *Index) Size() int { return x.size }

// StateHash names the policy by its contents: two indexes that decide and explain alike have the same one, whether they
// were built afresh or changed by deltas.
func (x *Index) StateHash() snapshot.Digest { return x.state }

// Principals counts the numbers given to principals; they run from 0. Some may be those of principals that are gone.
func (x *Index) Principals() int {
	if x.ov != nil {
		return int(x.nPrincipals) + len(x.ov.newUsers)
	}
	return int(x.nPrincipals)
}

// Servers counts the servers; their ids run from 0 in the order of names.
func (x *Index) Servers() int { return int(x.nServers) }

// Principal finds a principal by name.
func (x *Index) Principal(name string) (PrincipalID, bool) {
	if x.ov != nil {
		if id, known := x.ov.principal(x.nPrincipals, name); known {
			return id, true
		}
	}
	id, ok := lookup(x.principalNames, layout.HashName(0, name), name, x.principalName)
	if ok && x.ov != nil && x.gone(PrincipalID(id)) {
		return 0, false
	}
	return PrincipalID(id), ok
}

// PrincipalName is the name behind an id; "" when there is none.
func (x *Index) PrincipalName(p PrincipalID) string {
	if uint32(p) < x.nPrincipals {
		if x.ov != nil && x.gone(p) {
			return ""
		}
		return string(x.principalName(uint32(p)))
	}
	if i := int(p) - int(x.nPrincipals); x.ov != nil && i < len(x.ov.newUsers) && !x.gone(p) {
		return x.ov.newUsers[i]
	}
	return ""
}

// Person is what conditions may ask about a principal.
type Person struct {
	Kind      snapshot.PrincipalKind
	Clearance uint8
	Region    string
}

// Person reads what conditions may ask about a principal that exists.
func (x *Index) Person(p PrincipalID) Person {
	r := x.principal(p)
	return Person{Kind: snapshot.PrincipalKind(r[layout.AtKind]), Clearance: r[layout.AtClearance], Region: string(x.Region(p))}
}

// Region is where a principal belongs, nil when that is nowhere. It must not be written to.
func (x *Index) Region(p PrincipalID) []byte {
	r := x.principal(p)
	n := uint32(le.Uint16(r[layout.AtRegion:]))
	if n == 0 {
		return nil
	}
	if base := uint32(len(x.regions) / layout.RegionSize); n > base {
		return []byte(x.ov.regions[n-1-base])
	}
	return x.name(x.regions[(n-1)*layout.RegionSize:])
}

// NameOf is PrincipalName without a copy: it must not outlive the index.
func (x *Index) NameOf(p PrincipalID) string {
	if uint32(p) < x.nPrincipals {
		return text(x.principalName(uint32(p)))
	}
	return x.PrincipalName(p)
}

// RegionOf is Region as a string that must not outlive the index.
func (x *Index) RegionOf(p PrincipalID) string { return text(x.Region(p)) }

// text looks at bytes as a string.
func text(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // b is read-only, and the string goes no further than a comparison
}

// Clearance is the highest class of data that a principal may touch.
func (x *Index) Clearance(p PrincipalID) uint8 { return x.principal(p)[layout.AtClearance] }

// Kind says what a principal is.
func (x *Index) Kind(p PrincipalID) snapshot.PrincipalKind {
	return snapshot.PrincipalKind(x.principal(p)[layout.AtKind])
}

// principal is the record of a principal; of one that does not exist, that of one who is gone.
func (x *Index) principal(p PrincipalID) []byte {
	if x.ov != nil {
		if r := x.ov.user(p); r != nil {
			return r
		}
	}
	if uint32(p) < x.nPrincipals {
		return x.principals[int(p)*layout.PrincipalSize : (int(p)+1)*layout.PrincipalSize : (int(p)+1)*layout.PrincipalSize]
	}
	return nobody[:]
}

var nobody = [layout.PrincipalSize]byte{layout.AtFlags: layout.FlagDisabled | layout.FlagRemoved}

func (x *Index) gone(p PrincipalID) bool {
	return x.principal(p)[layout.AtFlags]&layout.FlagRemoved != 0
}

// Disabled reports whether the principal is switched off; one that does not exist is.
func (x *Index) Disabled(p PrincipalID) bool { return x.principal(p)[layout.AtFlags] != 0 }

// Server finds a server by name.
func (x *Index) Server(name string) (ServerID, bool) {
	id, ok := lookup(x.serverNames, layout.HashName(0, name), name, x.serverName)
	return ServerID(id), ok
}

// ServerName is the name behind an id; "" when there is none.
func (x *Index) ServerName(s ServerID) string {
	if uint32(s) >= x.nServers {
		return ""
	}
	return string(x.serverName(uint32(s)))
}

// Item finds a tool, or a surface such as snapshot.ItemOther, of a server.
func (x *Index) Item(s ServerID, name string) (ItemID, bool) {
	if uint32(s) >= x.nServers {
		return 0, false
	}
	id, ok := lookup(x.itemNames, layout.HashName(uint64(s)+1, name), name, x.itemName)
	base, n := x.itemRange(s)
	if !ok || id-base < n {
		return ItemID(id - base), ok
	}
	// The table is shared by all servers: half a hash and the name may be those of another server's item.
	return x.itemSlow(s, name)
}

// ItemName is the name behind an id; "" when there is none.
func (x *Index) ItemName(s ServerID, i ItemID) string {
	base, n := x.itemRange(s)
	if uint32(i) >= n {
		return ""
	}
	return string(x.itemName(base + uint32(i)))
}

// ItemCount is the number of items of a server, surfaces included; their ids run from 0 in the order of names.
func (x *Index) ItemCount(s ServerID) int {
	_, n := x.itemRange(s)
	return int(n)
}

// Items yields the items of a server in the order of names.
func (x *Index) Items(s ServerID) iter.Seq2[ItemID, string] {
	return func(yield func(ItemID, string) bool) {
		base, n := x.itemRange(s)
		for i := range n {
			if !yield(ItemID(i), string(x.itemName(base+i))) {
				return
			}
		}
	}
}

// Resources yields the resource patterns of a server that match a URI, and ItemOther.
func (x *Index) Resources(s ServerID, uri string) iter.Seq[ItemID] {
	return func(yield func(ItemID) bool) {
		base, n := x.itemRange(s)
		// Surfaces sort together: a star is followed by nothing that a tool's name has.
		for i := x.search(base, n, "*"); i < n; i++ {
			name := x.itemName(base + i)
			if name[0] != '*' {
				return
			}
			kind, pattern := snapshot.KindOf(string(name))
			if kind == snapshot.ItemRest || kind == snapshot.ItemResource && Match(pattern, uri) {
				if !yield(ItemID(i)) {
					return
				}
			}
		}
	}
}

// Match reports whether a pattern, in which * is any run of characters, matches the whole of a text.
func Match(pattern, text string) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(text) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, mark = i, j
			i++
		case i < len(pattern) && pattern[i] == text[j]:
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(pattern) && pattern[i] == '*' {
		i++
	}
	return i == len(pattern)
}

// itemSlow is a binary search, for the case of two servers' items falling on one hash and name.
func (x *Index) itemSlow(s ServerID, name string) (ItemID, bool) {
	base, n := x.itemRange(s)
	i := x.search(base, n, name)
	return ItemID(i), i < n && string(x.itemName(base+i)) == name
}

// search finds the first of n items that is not below a name.
func (x *Index) search(base, n uint32, name string) uint32 {
	lo, hi := uint32(0), n
	for lo < hi {
		if mid := lo + (hi-lo)/2; string(x.itemName(base+mid)) < name {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

func (x *Index) itemRange(s ServerID) (base, n uint32) {
	if uint32(s) >= x.nServers {
		return 0, 0
	}
	r := x.servers[int(s)*layout.ServerSize:]
	return le.Uint32(r[12:]), le.Uint32(r[16:])
}

func (x *Index) pageBase(s ServerID) uint32 { return le.Uint32(x.servers[int(s)*layout.ServerSize+8:]) }

func (b *block) principalName(i uint32) []byte {
	return b.name(b.principals[int(i)*layout.PrincipalSize:])
}

func (b *block) serverName(i uint32) []byte { return b.name(b.servers[int(i)*layout.ServerSize:]) }
func (b *block) itemName(i uint32) []byte   { return b.name(b.items[int(i)*layout.ItemSize:]) }

// name reads a name reference: offset in the heap and length.
func (b *block) name(ref []byte) []byte {
	off, n := le.Uint32(ref), le.Uint16(ref[4:])
	return b.heap[off : int(off)+int(n)]
}

// lookup probes one of the name tables and compares the whole name.
func lookup(table []byte, h uint64, name string, nameOf func(uint32) []byte) (uint32, bool) {
	slots := uint32(len(table) / layout.NameSlotSize)
	i, tag := layout.NameHome(h, slots), uint32(h)<<24
	for {
		slot := le.Uint32(table[i*layout.NameSlotSize:])
		if slot == 0 {
			return 0, false
		}
		if id := slot&layout.MaxID - 1; slot&^layout.MaxID == tag && string(nameOf(id)) == name {
			return id, true
		}
		if i++; i == slots {
			i = 0
		}
	}
}

// cell returns the offset of the cell of a node and a page in the block, or -1.
func (b *block) cell(node, page uint32) int {
	key := layout.CellKey(node, page)
	for i := layout.CellHome(key, b.cellSlots); ; {
		switch le.Uint64(b.cells[int(i)*layout.CellSize:]) {
		case key:
			return int(i) * layout.CellSize
		case 0:
			return -1
		}
		if i++; i == b.cellSlots {
			i = 0
		}
	}
}

func bit(set []uint64, i uint32) bool { return int(i/64) < len(set) && set[i/64]>>(i%64)&1 != 0 }
