// Package layout is the format of an index block: what its writer, package builder, and its reader, package index, agree on.
//
// All numbers are little endian. The header:
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
// the heap, of a set in values). The arg of an instruction is u8 source << 24 and what the source needs; see ArgWord.
package layout

// The header.
const (
	Magic = "MCPVIDX\x00"
	Major = 2
	Minor = 0
	Align = 64

	HeaderFixed  = 128
	SectionEntry = 24
	StateAt      = 40
	MaxSections  = 256
)

// The sections by their ids, in the order in which they lie.
const (
	SecPrincipals = iota + 1
	SecMembers
	SecRegions
	SecServers
	SecItems
	SecCells
	SecConds
	SecPrograms
	SecCode
	SecArgs
	SecValues
	SecZones
	SecTransitions
	SecPrincipalNames
	SecServerNames
	SecItemNames
	SecNodes
	SecEdges
	SecNodeGrants
	SecGrants
	SecReaches
	SecHeap
	SecEnd
)

// How wide the records of each section are, in bytes.
const (
	PrincipalSize  = 32
	MemberSize     = 4
	RegionSize     = 8
	ServerSize     = 32
	ItemSize       = 8
	CellSize       = 32
	CondSize       = 16
	ProgramSize    = 16
	CodeSize       = 16
	ArgSize        = 16
	ValueSize      = 8
	ZoneSize       = 16
	TransitionSize = 12
	NameSlotSize   = 4
	NodeSize       = 24
	EdgeSize       = 4
	GrantSize      = 20
	ReachSize      = 16
)

// RecordSize says how wide the records of each known section are.
func RecordSize(sec int) uint32 {
	return [SecEnd]uint32{
		SecPrincipals: PrincipalSize, SecMembers: MemberSize, SecRegions: RegionSize, SecServers: ServerSize,
		SecItems: ItemSize, SecCells: CellSize, SecConds: CondSize, SecPrograms: ProgramSize, SecCode: CodeSize,
		SecArgs: ArgSize, SecValues: ValueSize, SecZones: ZoneSize, SecTransitions: TransitionSize,
		SecPrincipalNames: NameSlotSize, SecServerNames: NameSlotSize, SecItemNames: NameSlotSize,
		SecNodes: NodeSize, SecEdges: EdgeSize, SecNodeGrants: EdgeSize, SecGrants: GrantSize, SecReaches: ReachSize,
		SecHeap: 1,
	}[sec]
}

// Flags, the places of what a principal's record holds, and bounds.
const (
	FlagDisabled = 1 // principals
	FlagRemoved  = 2 // principals, in an overlay only
	GrantDenies  = 1 // grants

	InlineNodes  = 5
	ManyNodes    = 255
	AtFlags      = 6
	AtCount      = 7
	AtKind       = 8
	AtClearance  = 9
	AtRegion     = 10
	AtNodes      = 12
	MaxNameSlots = 1<<24 - 2
	// AnyPage is the page of a grant on every server.
	AnyPage      = 1<<32 - 1
	ItemsPerPage = 64
	// MaxProbe bounds how far a record may lie from its home slot; an honest table stays far below.
	MaxProbe = 4096
	// MaxCode bounds a program: two instructions a node at most.
	MaxCode = 1024
)
