package snapshot

import "strings"

// Policy is everything about access in one tenant, in the one form that directory rows and authored Cedar both lower to.
// It is the input of builder.Build and of the slow twin. Slices may come in any order; Build sorts.
type Policy struct {
	Tenant     TenantID
	Principals []Principal
	Nodes      []Node
	Servers    []Server
	Grants     []Grant
}

// Ref names a node of the graph: "user:alice", "team:analysts", "group:eng", "unit:emea", "role:analyst" or Everyone. A
// principal's own node is "user:" plus its name, for service accounts and workloads too.
type Ref string

// Everyone is the node that every principal of the tenant belongs to.
const Everyone Ref = "everyone"

// PrincipalKind says what a principal is.
type PrincipalKind uint8

// The kinds of principals.
const (
	KindPerson PrincipalKind = iota
	KindServiceAccount
	KindWorkload // named by its SPIFFE ID
)

// String is the word that conditions compare principal.kind with.
func (k PrincipalKind) String() string {
	return [...]string{"person", "service_account", "workload", ""}[k&3]
}

// MaxLevel is the highest clearance and the highest class of data; 0 is public.
const MaxLevel = 7

// Principal is a person, a service account or a workload.
type Principal struct {
	Name     string
	Kind     PrincipalKind
	Disabled bool
	// Clearance is the highest class of data that it may touch, 0 to MaxLevel; policies compare it, nothing else does.
	Clearance uint8
	// Region is where it belongs; "" is nowhere.
	Region string
	// Nodes it belongs to directly, besides its own node and Everyone.
	Nodes []Ref
}

// Node is a unit, team, group or role; whoever belongs to it belongs to its parents too. Cycles are a build error.
type Node struct {
	Ref     Ref
	Parents []Ref
}

// Server is the access view of one published server.
type Server struct {
	Name string
	// Items are its tools' names and, besides them, its surfaces: PromptItem, ResourceItem, ItemOther.
	Items []string
	// Facts are what conditions may ask about an item, by its name. An item without an entry has none.
	Facts map[string]Facts
}

// Facts are the attributes of one item, by name. They are settled when a policy is compiled: no decision looks them up.
// See FromResource for those that MCPVault's own compiler writes; name, server and kind are there by themselves.
type Facts map[string]Fact

// Fact is the value of one attribute.
type Fact struct {
	Value
	// Set is the value of an attribute of TypeSet: strings, sorted, each once.
	Set []string
}

// The surfaces of a server are items whose names begin with a star, which is not legal in a tool's name.
const (
	// ItemOther stands for everything of a server that has no item of its own: completion, logging, prompts and resources
	// that nobody has named. A grant on one tool or one prompt does not reach it.
	ItemOther = "*other"

	promptPrefix   = "*prompt/"
	resourcePrefix = "*resource/"
)

// PromptItem is the item of a prompt.
func PromptItem(name string) string { return promptPrefix + name }

// ResourceItem is the item of a pattern of resource URIs: an address in which * stands for any run of characters.
func ResourceItem(pattern string) string { return resourcePrefix + pattern }

// ItemKind is what an item stands for.
type ItemKind uint8

// The kinds of items.
const (
	ItemTool ItemKind = iota
	ItemPrompt
	ItemResource
	ItemRest // ItemOther and what a later version may add
)

// String is the word that conditions compare resource.kind with.
func (k ItemKind) String() string { return [...]string{"tool", "prompt", "resource", "other"}[k&3] }

// KindOf splits an item's name into its kind and the name that people know it by.
func KindOf(item string) (ItemKind, string) {
	if name, ok := strings.CutPrefix(item, promptPrefix); ok {
		return ItemPrompt, name
	}
	if pattern, ok := strings.CutPrefix(item, resourcePrefix); ok {
		return ItemResource, pattern
	}
	if IsSurface(item) {
		return ItemRest, strings.TrimPrefix(item, "*")
	}
	return ItemTool, item
}

// Grant is one rule. Deny overrides allow; what no grant allows is denied.
type Grant struct {
	ID      string
	Deny    bool
	Subject Ref
	// Server is a name, or "*" for every server.
	Server string
	// Tool is the name of an item: a tool, PromptItem or ResourceItem; "" is everything of the server.
	Tool string
	// When is nil for an unconditional grant. A condition on FromResource narrows what the grant reaches.
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

	OpMember   // the principal belongs to the node Arg
	OpInRange  // the operand, an address, lies in the network Value (a CIDR text; a plain address is a network of one)
	OpContains // the operand, a set, has the member Value
	OpForeign  // Value is a Cedar expression in its JSON form, evaluated by package residual
	OpFail     // always an error: what is left of an attribute that is not there
)

// Flipped is the operator that says the same with the two sides of a comparison exchanged.
func (o Op) Flipped() Op {
	switch o {
	case OpLt:
		return OpGt
	case OpLe:
		return OpGe
	case OpGt:
		return OpLt
	case OpGe:
		return OpLe
	default:
		return o
	}
}

// Source says where the operand of a condition comes from.
type Source uint8

// The sources. What comes from the arguments alone is not known when things are listed.
const (
	// FromArgs: an argument of the call, by name.
	FromArgs Source = iota
	// FromContext: "ip" (address of the caller), "region" (of the cell), "actor" (who acts for the principal). Absent when
	// not known, or when nobody acts.
	FromContext
	// FromClock: the decision's time on the clock of Cond.Zone: "minute" of the day, "hour", "weekday" (1 is Monday), "day",
	// "month", "year".
	FromClock
	// FromPrincipal: "name", "kind" ("person", "service_account", "workload"), "clearance", "region" (may be absent).
	FromPrincipal
	// FromResource: "name", "server", "kind" (ItemKind.String) and the item's Facts: "effect", "readOnlyHint",
	// "destructiveHint", "idempotentHint", "openWorldHint", "version", "class", "endpoints", "owners", "regions",
	// "access" (patterns, "endpoint:pattern"), "labels.KEY".
	FromResource
)

// Type is the scalar type of an argument.
type Type uint8

// The types a condition can speak of.
const (
	TypeInvalid Type = iota
	TypeString
	TypeBool
	TypeNumber // exact decimal
	TypeSet    // of strings: facts only
	TypeIP
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
	Op   Op
	Kids []*Cond
	// From and Arg name the operand, Zone the clock of FromClock (an IANA time zone).
	From   Source
	Arg    string
	Zone   string
	Value  Value
	Values []Value
	// With is the right side in place of Value. One of the two sides is a fact, which is settled at compile time, or both
	// are strings of principal and context.
	With *Operand
}

// Operand is the right side of a comparison that is no constant.
type Operand struct {
	From Source
	Arg  string
}

// MaxCondNodes bounds one condition.
const MaxCondNodes = 256
