// Package index is the flat decision index: one tenant's whole policy in one block of bytes that a cell can check once
// and then read without decoding, copying or allocating.
//
// Build does the work of a decision ahead of time. Names become dense ids, the graph is closed (what a node inherits is
// folded into it), and every (node, page of 64 items) that any grant reaches becomes one 32-byte cell with an allow and
// a deny mask. What cannot be settled ahead, conditions on arguments and time, stays as small programs. Build promises
// the same bytes for the same policy, in whatever order its parts come.
//
// Open checks every offset, index and digest once and never panics, so that reading needs no further checks. An Index
// is read-only and safe for any number of readers. It keeps the bytes it was opened on; nobody may write to them.
//
// Deciding is package authz; layout.go is the format.
package index

import (
	"encoding/binary"
	"iter"
	"math/bits"

	"github.com/mcpvault/mcpvault/snapshot"
)

// Dense numbers of one index. They mean nothing in another.
type (
	// PrincipalID is the number of a principal.
	PrincipalID uint32
	// ServerID is the number of a server.
	ServerID uint32
	// ItemID is the number of an item.
	ItemID uint32
)

// Index reads one opened block.
type Index struct {
	tenant                                           string
	principals, members, servers, items              []byte
	cells, conds, programs, code, args, values       []byte
	principalNames, serverNames, itemNames           []byte
	nodes, grants, provOffsets, provenance           []byte
	heap                                             []byte
	nPrincipals, nServers, nNodes, nPages, nPrograms uint32
	everyone                                         uint32
	cellShift                                        uint
	// anyNode has a bit for each node that owns a wildcard cell: the second probe is rare.
	anyNode []uint64
	// argNames are the folded hashes of all names that programs read: open addressing, at most half full, 0 is free.
	argNames []uint64
	size     int
}

var le = binary.LittleEndian

// Tenant is the tenant that the index was built for.
func (x *Index) Tenant() snapshot.TenantID { return snapshot.TenantID(x.tenant) }

// Size is the length of the block in bytes.
func (x *Index) Size() int { return x.size }

// Principals counts the principals; their ids run from 0.
func (x *Index) Principals() int { return int(x.nPrincipals) }

// Servers counts the servers; their ids run from 0 in the order of names.
func (x *Index) Servers() int { return int(x.nServers) }

// Principal finds a principal by name.
func (x *Index) Principal(name string) (PrincipalID, bool) {
	id, ok := x.lookup(x.principalNames, hashName(0, name), name, x.principalName)
	return PrincipalID(id), ok
}

// PrincipalName is the name behind an id; "" when there is none.
func (x *Index) PrincipalName(p PrincipalID) string {
	if uint32(p) >= x.nPrincipals {
		return ""
	}
	return string(x.principalName(uint32(p)))
}

// Disabled reports whether the principal is switched off; one that does not exist is.
func (x *Index) Disabled(p PrincipalID) bool {
	return uint32(p) >= x.nPrincipals || x.principals[int(p)*principalSize+6]&flagDisabled != 0
}

// Server finds a server by name.
func (x *Index) Server(name string) (ServerID, bool) {
	id, ok := x.lookup(x.serverNames, hashName(0, name), name, x.serverName)
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
	id, ok := x.lookup(x.itemNames, hashName(uint64(s)+1, name), name, x.itemName)
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

// itemSlow is a binary search, for the case of two servers' items falling on one hash and name.
func (x *Index) itemSlow(s ServerID, name string) (ItemID, bool) {
	base, n := x.itemRange(s)
	lo, hi := uint32(0), n
	for lo < hi {
		mid := lo + (hi-lo)/2
		switch got := x.itemName(base + mid); {
		case string(got) == name:
			return ItemID(mid), true
		case string(got) < name:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, false
}

func (x *Index) itemRange(s ServerID) (base, n uint32) {
	if uint32(s) >= x.nServers {
		return 0, 0
	}
	r := x.servers[int(s)*serverSize:]
	return le.Uint32(r[12:]), le.Uint32(r[16:])
}

func (x *Index) pageBase(s ServerID) uint32 { return le.Uint32(x.servers[int(s)*serverSize+8:]) }

func (x *Index) principalName(i uint32) []byte { return x.name(x.principals[int(i)*principalSize:]) }
func (x *Index) serverName(i uint32) []byte    { return x.name(x.servers[int(i)*serverSize:]) }
func (x *Index) itemName(i uint32) []byte      { return x.name(x.items[int(i)*itemSize:]) }
func (x *Index) grantName(i uint32) []byte     { return x.name(x.grants[int(i)*grantSize:]) }

// nodeName is for ids from 1: node 0 is nobody.
func (x *Index) nodeName(i uint32) []byte { return x.name(x.nodes[int(i-1)*nodeSize:]) }

// name reads a name reference: offset in the heap and length.
func (x *Index) name(ref []byte) []byte {
	off, n := le.Uint32(ref), le.Uint16(ref[4:])
	return x.heap[off : int(off)+int(n)]
}

// lookup probes one of the name tables and compares the whole name.
func (x *Index) lookup(table []byte, h uint64, name string, nameOf func(uint32) []byte) (uint32, bool) {
	mask := len(table)/nameSlotSize - 1
	for i := int(h) & mask; ; i = (i + 1) & mask {
		slot := table[i*nameSlotSize:]
		id := le.Uint32(slot[4:])
		if id == 0 {
			return 0, false
		}
		if le.Uint32(slot) == uint32(h>>32) && string(nameOf(id-1)) == name {
			return id - 1, true
		}
	}
}

// hashName is FNV-1a with a finish that spreads the high bits; seed keeps the items of servers apart.
func hashName(seed uint64, name string) uint64 {
	h := 14695981039346656037 ^ mix(seed)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return mix(h)
}

func mix(h uint64) uint64 {
	h *= 0x9E3779B97F4A7C15
	h ^= h >> 32
	h *= 0xD6E8FEB86659FD93
	return h ^ h>>29
}

// cell returns the offset of the cell of a node and a page, or -1.
func (x *Index) cell(node, page uint32) int {
	key := cellKey(node, page)
	mask := uint32(len(x.cells)/cellSize - 1)
	for i := cellHome(key, x.cellShift); ; i = (i + 1) & mask {
		switch le.Uint64(x.cells[int(i)*cellSize:]) {
		case key:
			return int(i) * cellSize
		case 0:
			return -1
		}
	}
}

func cellKey(node, page uint32) uint64 { return uint64(node)<<32 | uint64(page) }

func cellHome(key uint64, shift uint) uint32 { return uint32(mix(key) >> shift) }

func shiftFor(slots int) uint { return uint(64 - bits.TrailingZeros(uint(slots))) }
