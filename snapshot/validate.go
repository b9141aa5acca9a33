package snapshot

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The bounds of a policy. They keep a shard's records within their fixed widths and one decision within microseconds.
const (
	MaxName        = 1024     // bytes of any name
	MaxCondValue   = 64 << 10 // bytes of a string constant
	MaxCondValues  = 4096     // members of one OpIn
	MaxCondDepth   = 64
	MaxParents     = 4096
	MaxServerItems = 1 << 20
)

// IsSurface reports whether an item is one of those that only a grant on the whole server reaches.
func IsSurface(item string) bool { return strings.HasPrefix(item, "*") }

// CheckName reports why s cannot name anything in a policy; nil when it can.
func CheckName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("empty name")
	case len(s) > MaxName:
		return fmt.Errorf("name of %d bytes: at most %d", len(s), MaxName)
	case plain(s):
		return nil
	case !utf8.ValidString(s):
		return fmt.Errorf("name %q is not valid UTF-8", s)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return fmt.Errorf("name %q has a control character", s)
		}
	}
	return nil
}

// plain reports whether a text is printable ASCII, as nearly every name is.
func plain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Validate checks one condition: operators with the operands they need, constants of one type, bounded in every
// direction. A nil condition is valid.
func (c *Cond) Validate() error {
	if c == nil {
		return nil
	}
	n := 0
	return c.validate(&n, 0)
}

func (c *Cond) validate(n *int, depth int) error {
	if c == nil {
		return fmt.Errorf("condition node missing")
	}
	if *n++; *n > MaxCondNodes {
		return fmt.Errorf("condition has more than %d nodes", MaxCondNodes)
	}
	if depth > MaxCondDepth {
		return fmt.Errorf("condition is nested deeper than %d", MaxCondDepth)
	}
	switch c.Op {
	case OpTrue, OpFalse, OpFail:
		return nil
	case OpAnd, OpOr, OpNot:
		if len(c.Kids) == 0 || c.Op == OpNot && len(c.Kids) != 1 {
			return fmt.Errorf("operator %d with %d operands", c.Op, len(c.Kids))
		}
		for _, k := range c.Kids {
			if err := k.validate(n, depth+1); err != nil {
				return err
			}
		}
		return nil
	case OpBefore, OpAfter:
		if c.Value.Type != TypeNumber {
			return fmt.Errorf("time comparison without milliseconds")
		}
		return nil
	case OpMember:
		if err := CheckName(c.Arg); err != nil {
			return fmt.Errorf("membership: %w", err)
		}
		return nil
	case OpForeign:
		if c.Value.Type != TypeString {
			return fmt.Errorf("a Cedar expression that is no text")
		}
		return c.Value.validate()
	case OpHas, OpEq, OpNe, OpLt, OpLe, OpGt, OpGe, OpIn, OpInRange, OpContains:
		return c.validateLeaf()
	default:
		return fmt.Errorf("unknown operator %d", c.Op)
	}
}

func (c *Cond) validateLeaf() error {
	if err := c.checkOperand(); err != nil {
		return err
	}
	if c.With != nil {
		return c.checkWith()
	}
	if err := c.checkConstant(); err != nil {
		what := "attribute"
		if c.From == FromArgs {
			what = "argument"
		}
		return fmt.Errorf("%s %q: %w", what, c.Arg, err)
	}
	return nil
}

func (c *Cond) checkOperand() error {
	if err := CheckName(c.Arg); err != nil {
		return fmt.Errorf("argument: %w", err)
	}
	if (c.Zone != "") != (c.From == FromClock) || len(c.Zone) > MaxName {
		return fmt.Errorf("%q: a time zone belongs to a clock", c.Arg)
	}
	if c.From > FromResource {
		return fmt.Errorf("%q: unknown source %d", c.Arg, c.From)
	}
	if c.From != FromArgs && c.From != FromResource && AttrType(c.From, c.Arg) == TypeInvalid {
		return fmt.Errorf("%q: there is no such attribute", c.Arg)
	}
	return nil
}

func (c *Cond) checkConstant() error {
	switch c.Op {
	case OpHas:
		if c.From == FromClock {
			return fmt.Errorf("a clock is always there")
		}
		return nil
	case OpIn:
		if len(c.Values) == 0 || len(c.Values) > MaxCondValues {
			return fmt.Errorf("a set of %d members: 1 to %d", len(c.Values), MaxCondValues)
		}
		for _, v := range c.Values {
			if v.Type != c.Values[0].Type {
				return fmt.Errorf("set of mixed types")
			}
			if err := v.validate(); err != nil {
				return err
			}
		}
		return c.fits(c.Values[0].Type)
	case OpInRange:
		if c.From != FromContext || c.Arg != "ip" {
			return fmt.Errorf("only the caller's address lies in a network")
		}
		if _, err := ParseNetwork(c.Value.Str); c.Value.Type != TypeString || err != nil {
			return fmt.Errorf("%q is no network", c.Value.Str)
		}
		return nil
	case OpContains:
		if c.From != FromResource || c.Value.Type != TypeString {
			return fmt.Errorf("only a set of the resource's contains a string")
		}
		return c.Value.validate()
	case OpLt, OpLe, OpGt, OpGe:
		if c.Value.Type != TypeNumber {
			return fmt.Errorf("order is for numbers only")
		}
	default: // equality is for every type
	}
	if err := c.Value.validate(); err != nil {
		return err
	}
	return c.fits(c.Value.Type)
}

// fits compares the type of a constant with that of an attribute whose type is fixed.
func (c *Cond) fits(t Type) error {
	if want := AttrType(c.From, c.Arg); want != TypeInvalid && want != t {
		return fmt.Errorf("compared with a constant of another type")
	}
	return nil
}

// checkWith checks a comparison of two operands.
func (c *Cond) checkWith() error {
	w := c.With
	if w.From != FromContext && w.From != FromPrincipal && w.From != FromResource ||
		w.From != FromResource && AttrType(w.From, w.Arg) == TypeInvalid || CheckName(w.Arg) != nil {
		return fmt.Errorf("%q: compared with %q, which is no attribute", c.Arg, w.Arg)
	}
	left, right := AttrType(c.From, c.Arg), AttrType(w.From, w.Arg)
	fact := c.From == FromResource || w.From == FromResource
	switch {
	case c.From == FromArgs || c.From == FromClock || left == TypeIP || right == TypeIP:
		return fmt.Errorf("%q: cannot be compared with %q", c.Arg, w.Arg)
	case c.Op == OpContains:
		if c.From == FromResource && w.From != FromResource && right == TypeString {
			return nil
		}
	case c.Op == OpEq || c.Op == OpNe:
		if fact || left == TypeString && right == TypeString {
			return nil
		}
	case c.Op == OpLt || c.Op == OpLe || c.Op == OpGt || c.Op == OpGe:
		if fact && (left == TypeNumber || left == TypeInvalid) && (right == TypeNumber || right == TypeInvalid) {
			return nil
		}
	}
	return fmt.Errorf("%q: cannot be compared in this way with %q", c.Arg, w.Arg)
}

// AttrType is the type of an attribute that every decision knows by this name; TypeInvalid for one that there is not, and
// for arguments and facts, whose types are their own.
func AttrType(from Source, name string) Type {
	switch from {
	case FromContext:
		switch name {
		case "ip":
			return TypeIP
		case "region", "actor":
			return TypeString
		}
	case FromClock:
		if slices.Contains(ClockFields(), name) {
			return TypeNumber
		}
	case FromPrincipal:
		switch name {
		case "name", "kind", "region":
			return TypeString
		case "clearance":
			return TypeNumber
		}
	case FromResource:
		switch name {
		case "name", "server", "kind":
			return TypeString
		}
	case FromArgs:
	}
	return TypeInvalid
}

// ClockFields are what a clock shows, in the order of their numbers in a program.
func ClockFields() []string { return []string{"minute", "hour", "weekday", "day", "month", "year"} }

// ParseNetwork reads a network in CIDR form or a plain address, which is a network of one. Host bits may be set; an IPv4
// address in IPv6 form is refused, because a caller's is never one.
func ParseNetwork(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		var a netip.Addr
		if a, err = netip.ParseAddr(text); err == nil {
			p, err = a.Prefix(a.BitLen())
		}
	}
	if err != nil || p.Addr().Is4In6() || p.Addr().Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is no network", text)
	}
	return p.Masked(), nil
}

func (v Value) validate() error {
	switch v.Type {
	case TypeBool, TypeNumber:
		return nil
	case TypeString:
		if len(v.Str) > MaxCondValue {
			return fmt.Errorf("constant of %d bytes: at most %d", len(v.Str), MaxCondValue)
		}
		if !utf8.ValidString(v.Str) {
			return fmt.Errorf("constant is not valid UTF-8")
		}
		return nil
	default:
		return fmt.Errorf("constant of unknown type %d", v.Type)
	}
}

// Validate checks everything that Build relies on and names the offender. A grant may name a server or a tool that is
// not published (now): it then reaches nothing. A subject, a membership or a parent that does not exist is an error,
// because it can only be a mistake of whoever made the policy.
func (p *Policy) Validate() error {
	if err := CheckName(string(p.Tenant)); err != nil {
		return fmt.Errorf("tenant: %w", err)
	}
	known, err := p.checkNodes()
	if err != nil {
		return err
	}
	if err := p.checkServers(); err != nil {
		return err
	}
	ids := make(map[string]bool, len(p.Grants))
	for i := range p.Grants {
		g := &p.Grants[i]
		if err := CheckName(g.ID); err != nil {
			return fmt.Errorf("grant id: %w", err)
		}
		if ids[g.ID] {
			return fmt.Errorf("grant %q twice", g.ID)
		}
		ids[g.ID] = true
		if err := g.check(known); err != nil {
			return fmt.Errorf("grant %q: %w", g.ID, err)
		}
	}
	return p.checkCycles()
}

// refs are the nodes that a policy knows.
type refs struct {
	nodes map[Ref]bool
	users map[string]bool
}

// has reports whether there is a node; a principal's own node needs no definition.
func (r refs) has(ref Ref) bool {
	if name, own := strings.CutPrefix(string(ref), "user:"); own {
		return r.users[name]
	}
	return ref == Everyone || r.nodes[ref]
}

func (p *Policy) checkNodes() (refs, error) {
	known := refs{nodes: make(map[Ref]bool, len(p.Nodes)), users: make(map[string]bool, len(p.Principals))}
	for _, u := range p.Principals {
		if err := CheckName(u.Name); err != nil {
			return known, fmt.Errorf("principal: %w", err)
		}
		if known.users[u.Name] {
			return known, fmt.Errorf("principal %q twice", u.Name)
		}
		if u.Clearance > MaxLevel || u.Kind > KindWorkload || len(u.Region) > MaxName || !utf8.ValidString(u.Region) {
			return known, fmt.Errorf("principal %q: kind %d, clearance %d, region %q", u.Name, u.Kind, u.Clearance, u.Region)
		}
		known.users[u.Name] = true
	}
	for _, n := range p.Nodes {
		if err := CheckName(string(n.Ref)); err != nil {
			return known, fmt.Errorf("node: %w", err)
		}
		if known.nodes[n.Ref] {
			return known, fmt.Errorf("node %q twice", n.Ref)
		}
		if name, ok := strings.CutPrefix(string(n.Ref), "user:"); ok && !known.users[name] {
			return known, fmt.Errorf("node %q: no such principal", n.Ref)
		}
		if len(n.Parents) > MaxParents {
			return known, fmt.Errorf("node %q has %d parents: at most %d", n.Ref, len(n.Parents), MaxParents)
		}
		known.nodes[n.Ref] = true
	}
	for _, n := range p.Nodes {
		for _, r := range n.Parents {
			if !known.has(r) {
				return known, fmt.Errorf("node %q: parent %q does not exist", n.Ref, r)
			}
		}
	}
	for _, u := range p.Principals {
		for _, r := range u.Nodes {
			if !known.has(r) {
				return known, fmt.Errorf("principal %q: node %q does not exist", u.Name, r)
			}
		}
	}
	return known, nil
}

func (p *Policy) checkServers() error {
	servers := make(map[string]bool, len(p.Servers))
	for _, s := range p.Servers {
		if err := CheckName(s.Name); err != nil {
			return fmt.Errorf("server: %w", err)
		}
		if s.Name == "*" {
			return fmt.Errorf("server %q: the name stands for every server", s.Name)
		}
		if servers[s.Name] {
			return fmt.Errorf("server %q twice", s.Name)
		}
		servers[s.Name] = true
		if len(s.Items) > MaxServerItems {
			return fmt.Errorf("server %q has %d items: at most %d", s.Name, len(s.Items), MaxServerItems)
		}
		items := make(map[string]bool, len(s.Items))
		for _, it := range s.Items {
			if err := CheckName(it); err != nil {
				return fmt.Errorf("server %q: item: %w", s.Name, err)
			}
			if items[it] {
				return fmt.Errorf("server %q: item %q twice", s.Name, it)
			}
			items[it] = true
		}
		for it, facts := range s.Facts {
			if err := facts.check(); err != nil {
				return fmt.Errorf("server %q: item %q: %w", s.Name, it, err)
			}
		}
	}
	return nil
}

func (f Facts) check() error {
	for name, v := range f {
		if err := CheckName(name); err != nil {
			return fmt.Errorf("attribute: %w", err)
		}
		if AttrType(FromResource, name) != TypeInvalid {
			return fmt.Errorf("attribute %q is there by itself", name)
		}
		if v.Type == TypeSet {
			if !slices.IsSorted(v.Set) {
				return fmt.Errorf("attribute %q: its set is not sorted", name)
			}
			continue
		}
		if err := v.validate(); err != nil {
			return fmt.Errorf("attribute %q: %w", name, err)
		}
	}
	return nil
}

func (g *Grant) check(known refs) error {
	if !known.has(g.Subject) {
		return fmt.Errorf("subject %q does not exist", g.Subject)
	}
	if err := CheckName(g.Server); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if g.Tool != "" {
		if err := CheckName(g.Tool); err != nil {
			return fmt.Errorf("tool: %w", err)
		}
	}
	if kind, name := KindOf(g.Tool); kind == ItemRest || name == "" && g.Tool != "" {
		return fmt.Errorf("tool %q: only a grant on the whole server reaches it", g.Tool)
	}
	if err := g.When.Validate(); err != nil {
		return err
	}
	return g.When.checkMembers(known)
}

// checkMembers checks that every node that a condition asks for exists.
func (c *Cond) checkMembers(known refs) error {
	if c == nil {
		return nil
	}
	if c.Op == OpMember && !known.has(Ref(c.Arg)) {
		return fmt.Errorf("condition: node %q does not exist", c.Arg)
	}
	for _, k := range c.Kids {
		if err := k.checkMembers(known); err != nil {
			return err
		}
	}
	return nil
}

// checkCycles walks the parents with an own stack: a policy must not be able to exhaust ours.
func (p *Policy) checkCycles() error {
	parents := make(map[Ref][]Ref, len(p.Nodes))
	for _, n := range p.Nodes {
		parents[n.Ref] = n.Parents
	}
	const open, done = 1, 2
	state := make(map[Ref]uint8, len(p.Nodes))
	type frame struct {
		ref  Ref
		next int
	}
	for _, n := range p.Nodes {
		if state[n.Ref] != 0 {
			continue
		}
		state[n.Ref] = open
		stack := []frame{{ref: n.Ref}}
		for len(stack) > 0 {
			f := &stack[len(stack)-1]
			if f.next == len(parents[f.ref]) {
				state[f.ref] = done
				stack = stack[:len(stack)-1]
				continue
			}
			r := parents[f.ref][f.next]
			f.next++
			switch state[r] {
			case open:
				return fmt.Errorf("node %q belongs to itself through %q", r, f.ref)
			case 0:
				state[r] = open
				stack = append(stack, frame{ref: r})
			}
		}
	}
	return nil
}
