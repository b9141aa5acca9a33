package index

// The format, all numbers little endian. The header:
//
//	  0  magic "MCPVIDX\0"
//	  8  u16 major, u16 minor, u32 number of sections
//	 16  u64 length of the block
//	 24  u32 offset of the tenant id in the heap, u32 its length
//	 32  u32 node of everyone (0: there is none), u32 number of server pages
//	 40  state hash, 32 bytes
//	128  section table, 24 bytes an entry: u32 id, u32 record size, u64 offset, u64 records
//
// Sections follow in the order of the table, each on a 64-byte boundary; what lies between is zero. A reader skips the
// sections it does not know and refuses a major version it does not know. The block has no checksum: it is named by its
// digest, and whoever opens it has compared that.
//
//	principals  32  name, u8 flags, u8 n, u8 kind, u8 clearance, u16 region (number + 1), u32 node[5]; n = 255: node[0] is
//	                the first of node[1] members
//	members      4  u32 node
//	regions      8  name
//	servers     32  name, 2 reserved, u32 first page, u32 first item, u32 items, 12 reserved
//	items        8  name, 2 reserved; sorted by name within a server
//	cells       32  u64 key = node<<32 | page, u64 allow, u64 deny, u32 first condition, u16 denies, u16 allows;
//	                open addressing, two fifths full, key 0 is a free slot
//	conds       16  u64 mask, u32 program, 4 reserved; of a cell denies first
//	programs    16  u32 first instruction, u16 instructions, u16 args, u32 first arg, u16 flags, 2 reserved
//	code        16  u8 op, u8 type, u16 target, u32 arg, u64 operand
//	args        16  name, 2 reserved, u64 folded hash
//	values       8  members of sets, as operands
//	zones       16  name, 2 reserved, u32 first transition, u32 transitions
//	transitions 12  u64 seconds since the epoch (two's complement), u32 offset in seconds from then on (two's complement)
//	names        4  u24 id + 1, u8 tag of the hash; open addressing, 0 is a free slot (one table a kind)
//	nodes       24  name, 2 reserved, u32 first edge, u32 edges, u32 first grant, u32 grants; node n is record n-1
//	edges        4  u32 node above
//	nodegrants   4  u32 grant given to the node
//	grants      20  name, u16 flags, u32 node, u32 first reach, u32 reaches; sorted by id
//	reaches     16  u64 mask, u32 page, u32 program + 1 or 0
//	heap         1  names and string constants
//
// A name is u32 offset in the heap and u16 length. An operand is a number, 0 or 1, or offset | length<<32 (of a string in
// the heap, of a set in values). The arg of an instruction is u8 source << 24 and what the source needs; see program.go.
const (
	magic = "MCPVIDX\x00"
	major = 2
	minor = 0
	align = 64

	headerFixed  = 128
	sectionEntry = 24
	stateAt      = 40
	maxSections  = 256
)

// MaxSize bounds a block: a million principals take a fifth of it.
const MaxSize = 1 << 30

const (
	secPrincipals = iota + 1
	secMembers
	secRegions
	secServers
	secItems
	secCells
	secConds
	secPrograms
	secCode
	secArgs
	secValues
	secZones
	secTransitions
	secPrincipalNames
	secServerNames
	secItemNames
	secNodes
	secEdges
	secNodeGrants
	secGrants
	secReaches
	secHeap
	secEnd
)

const (
	principalSize  = 32
	memberSize     = 4
	regionSize     = 8
	serverSize     = 32
	itemSize       = 8
	cellSize       = 32
	condSize       = 16
	programSize    = 16
	codeSize       = 16
	argSize        = 16
	valueSize      = 8
	zoneSize       = 16
	transitionSize = 12
	nameSlotSize   = 4
	nodeSize       = 24
	edgeSize       = 4
	grantSize      = 20
	reachSize      = 16
)

// recordSize says how wide the records of each known section are.
func recordSize(sec int) uint32 {
	return [secEnd]uint32{
		secPrincipals: principalSize, secMembers: memberSize, secRegions: regionSize, secServers: serverSize,
		secItems: itemSize, secCells: cellSize, secConds: condSize, secPrograms: programSize, secCode: codeSize,
		secArgs: argSize, secValues: valueSize, secZones: zoneSize, secTransitions: transitionSize,
		secPrincipalNames: nameSlotSize, secServerNames: nameSlotSize, secItemNames: nameSlotSize,
		secNodes: nodeSize, secEdges: edgeSize, secNodeGrants: edgeSize, secGrants: grantSize, secReaches: reachSize,
		secHeap: 1,
	}[sec]
}

const (
	flagDisabled = 1 // principals
	flagRemoved  = 2 // principals, in an overlay only

	inlineNodes  = 5
	manyNodes    = 255
	atFlags      = 6
	atCount      = 7
	atKind       = 8
	atClearance  = 9
	atRegion     = 10
	atNodes      = 12
	grantDenies  = 1 // grants
	maxNameSlots = 1<<24 - 2
	// anyPage is the page of a grant on every server.
	anyPage      = 1<<32 - 1
	itemsPerPage = 64
	// maxProbe bounds how far a record may lie from its home slot; an honest table stays far below.
	maxProbe = 4096
	// maxCode bounds a program: two instructions a node at most.
	maxCode = 1024
)
