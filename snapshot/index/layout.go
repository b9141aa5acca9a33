package index

// The format, all numbers little endian. The header page:
//
//	   0  magic "MCPVIDX\0"
//	   8  u16 major, u16 minor, u32 number of sections
//	  16  u64 length of the block
//	  24  u32 offset of the tenant id in the heap, u32 its length
//	  32  u32 node of everyone (0: no grant reaches it), u32 number of server pages
//	  64  section table, 64 bytes an entry: u32 id, u32 record size, u64 offset, u64 records, 8 reserved, SHA-256
//	4064  SHA-256 of the 4064 bytes before
//
// Sections follow in the order of the table, each on a 4 KiB boundary; what lies between is zero. A reader skips the
// sections it does not know and refuses a major version it does not know.
//
//	principals  32  name, u16 flags, u32 n, u32 node[5]; with more than five nodes node[0] is an offset in members
//	members      4  u32 node
//	servers     32  name, u16 flags, u32 first page, u32 first item, u32 items, 12 reserved
//	items        8  name, u16 flags; sorted by name within a server
//	cells       32  u64 key = node<<32 | page, u64 allow, u64 deny, u32 first condition, u16 denies, u16 allows;
//	                open addressing, a power of two, at most half full, key 0 is a free slot
//	conds       16  u64 mask, u32 program, 4 reserved; of a cell denies first
//	programs    16  u32 first instruction, u16 instructions, u16 args, u32 first arg, u16 flags, 2 reserved
//	code        16  u8 op, u8 type, u16 target, u32 arg, u64 operand
//	args        16  name, 2 reserved, u64 folded hash
//	values       8  members of sets, as operands
//	names        8  u32 high half of the hash, u32 id+1; open addressing, a power of two (one table a kind)
//	nodes        8  name, 2 reserved; node n is record n-1
//	grants       8  name, 2 reserved; sorted by id
//	provoff      4  u32 for each cell slot and one more: where its provenance starts
//	provenance  16  u64 mask, u32 grant<<1 | deny, u32 condition+1 or 0
//	heap         1  names and string constants
//
// A name is u32 offset in the heap and u16 length. An operand is a number, 0 or 1, or offset | length<<32 (of a string in
// the heap, of a set in values).
const (
	magic    = "MCPVIDX\x00"
	major    = 1
	minor    = 0
	pageSize = 4096

	headerFixed  = 64
	sectionEntry = 64
	headerSum    = pageSize - 32
	maxSections  = (headerSum - headerFixed) / sectionEntry
)

// MaxSize bounds a block: a million principals take a fifth of it.
const MaxSize = 1 << 30

const (
	secPrincipals = iota + 1
	secMembers
	secServers
	secItems
	secCells
	secConds
	secPrograms
	secCode
	secArgs
	secValues
	secPrincipalNames
	secServerNames
	secItemNames
	secNodes
	secGrants
	secProvOffsets
	secProvenance
	secHeap
	secEnd
)

const (
	principalSize  = 32
	memberSize     = 4
	serverSize     = 32
	itemSize       = 8
	cellSize       = 32
	condSize       = 16
	programSize    = 16
	codeSize       = 16
	argSize        = 16
	valueSize      = 8
	nameSlotSize   = 8
	nodeSize       = 8
	grantSize      = 8
	provOffSize    = 4
	provenanceSize = 16
)

// recordSize says how wide the records of each known section are.
func recordSize(sec int) uint32 {
	return [secEnd]uint32{
		secPrincipals: principalSize, secMembers: memberSize, secServers: serverSize, secItems: itemSize,
		secCells: cellSize, secConds: condSize, secPrograms: programSize, secCode: codeSize, secArgs: argSize,
		secValues: valueSize, secPrincipalNames: nameSlotSize, secServerNames: nameSlotSize, secItemNames: nameSlotSize,
		secNodes: nodeSize, secGrants: grantSize, secProvOffsets: provOffSize, secProvenance: provenanceSize, secHeap: 1,
	}[sec]
}

const (
	flagDisabled = 1 // principals

	inlineNodes = 5
	// anyPage is the page of a grant on every server.
	anyPage      = 1<<32 - 1
	itemsPerPage = 64
	// maxProbe bounds how far a record may lie from its home slot; an honest table stays far below.
	maxProbe = 4096
	// maxCode bounds a program: two instructions a node at most.
	maxCode = 1024
)
