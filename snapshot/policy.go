package snapshot

// Policy is everything about access in one tenant, in the one form that directory rows and authored Cedar both lower to.
// It is the input of index.Build and of the slow twin. Slices may come in any order; Build sorts.
type Policy struct {
	Tenant     TenantID
	Principals []Principal
	Nodes      []Node
	Servers    []Server
	Grants     []Grant
}

// Ref names a node of the graph: "user:alice", "team:analysts", "role:analyst" or Everyone. A principal's own node is
// "user:" plus its name, for service accounts too.
type Ref string

// Everyone is the node that every principal of the tenant belongs to.
const Everyone Ref = "everyone"

// Principal is a person or a service account.
type Principal struct {
	Name     string
	Disabled bool
	// Nodes it belongs to directly, besides its own node and Everyone.
	Nodes []Ref
}

// Node is a team, unit or role; whoever belongs to it belongs to its parents too. Cycles are a build error.
type Node struct {
	Ref     Ref
	Parents []Ref
}

// Server is the access view of one published server.
type Server struct {
	Name string
	// Items are its tools' names and, besides them, the surfaces that are granted with the whole server only.
	Items []string
}

// ItemOther stands for everything of a server that is not a tool: prompts, resources, completion, logging. Only a grant
// on the whole server (or on every server) reaches it. The character is not legal in a tool's name.
const ItemOther = "*other"

// Grant is one rule. Deny overrides allow; what no grant allows is denied.
type Grant struct {
	ID      string
	Deny    bool
	Subject Ref
	// Server is a name, or "*" for every server.
	Server string
	// Tool is a name, or "" for the whole server.
	Tool string
	// When is nil for an unconditional grant.
	When *Cond
}

// Op is the operator of a condition node.
type Op uint8

// The operators. Comparisons take one argument of the call and one constant of the same type; time is the decision's own.
const (
	OpInvalid Op = iota
	OpTrue
	OpFalse
	OpAnd // Kids, short-circuit from the left as Cedar does
	OpOr
	OpNot // Kids[0]
	OpHas // Arg is present
	OpEq  // Arg == Value
	OpNe
	OpLt // numbers only, as exact decimals
	OpLe
	OpGt
	OpGe
	OpIn     // Arg is one of Values
	OpBefore // the decision's time is before Value (milliseconds since the epoch)
	OpAfter  // at or after Value
)

// Type is the scalar type of an argument.
type Type uint8

// The types a condition can speak of.
const (
	TypeInvalid Type = iota
	TypeString
	TypeBool
	TypeNumber // exact decimal
)

// Value is a constant of a condition.
type Value struct {
	Type Type
	Str  string
	Bool bool
	// Int is the number; authored constants are integers (Cedar long), arguments are any decimal.
	Int int64
}

// Cond is a condition: a tree of at most MaxCondNodes nodes. Evaluating it gives true, false or an error (an argument
// absent or of another type): an error in an allow grant does not allow, an error in a deny grant denies.
type Cond struct {
	Op     Op
	Kids   []*Cond
	Arg    string
	Value  Value
	Values []Value
}

// MaxCondNodes bounds one condition.
const MaxCondNodes = 256
