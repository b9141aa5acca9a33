package layout

import (
	"math/bits"

	"github.com/mcpvault/mcpvault/snapshot"
)

// MaxID masks the number of a name out of its slot.
const MaxID = 1<<24 - 1

// NameHome is where the search for a name begins.
func NameHome(h uint64, slots uint32) uint32 {
	hi, _ := bits.Mul64(h, uint64(slots))
	return uint32(hi)
}

// HashName is FNV-1a with a finish that spreads the high bits; seed keeps the items of servers apart.
func HashName(seed uint64, name string) uint64 {
	h := 14695981039346656037 ^ Mix(seed)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return Mix(h)
}

// Mix spreads the bits of a number.
func Mix(h uint64) uint64 {
	h *= 0x9E3779B97F4A7C15
	h ^= h >> 32
	h *= 0xD6E8FEB86659FD93
	return h ^ h>>29
}

// CellKey names the cell of a node and a page.
func CellKey(node, page uint32) uint64 { return uint64(node)<<32 | uint64(page) }

// CellHome is where the search for a cell begins.
func CellHome(key, slots uint64) uint64 {
	hi, _ := bits.Mul64(Mix(key), slots)
	return hi
}

// AttrNumber is the number of an attribute of context, clock or principal.
func AttrNumber(from snapshot.Source, name string) uint32 {
	list := []string{"name", "kind", "clearance", "region"}
	switch from {
	case snapshot.FromContext:
		list = []string{"ip", "region", "actor"}
	case snapshot.FromClock:
		list = snapshot.ClockFields()
	default: // the principal's
	}
	for i, n := range list {
		if n == name {
			return uint32(i)
		}
	}
	return 1<<16 - 1
}

// ArgWord packs a source and what it needs into the arg of an instruction; zone is below 1<<16.
func ArgWord(from snapshot.Source, n, zone uint32) uint32 {
	if from == snapshot.FromClock {
		return uint32(from)<<24 | n<<16 | zone
	}
	return uint32(from)<<24 | n
}

// V4Network marks a network of IPv4 addresses: no IPv6 address lies in it, nor the other way round.
const V4Network = 1 << 32

// AlignUp is the next boundary on which a section may begin.
func AlignUp(n uint64) uint64 { return (n + Align - 1) &^ (Align - 1) }
