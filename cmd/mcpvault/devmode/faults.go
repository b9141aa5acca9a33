package devmode

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/demoserver"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/fault"
	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// FaultKind is what can be broken.
type FaultKind string

// The kinds of fault, with what they are on.
const (
	// FaultCut drops what two processes say to each other, FaultOneWay what the first says to the second, and FaultDelay
	// brings it later.
	FaultCut    FaultKind = "cut"
	FaultOneWay FaultKind = "one-way"
	FaultDelay  FaultKind = "delay"
	// FaultClock moves a node's wall clock.
	FaultClock FaultKind = "clock"
	// FaultDisk lets a node's writes hang or fail.
	FaultDisk FaultKind = "disk"
	// FaultSVID gives a node an identity that ends soon, and renews it no more.
	FaultSVID FaultKind = "svid"
	// FaultUpstream lets a demo server answer late or not at all.
	FaultUpstream FaultKind = "upstream"
)

// Fault is one thing that is broken on purpose.
type Fault struct {
	Kind FaultKind `json:"kind"`
	// On are the processes that it is on: two for links, the first of them the one that speaks; else a node or a demo server.
	On []string `json:"on"`
	// How is hang, full or error for a disk, and slow or hang for a server.
	How string `json:"how,omitempty"`
	// Parts of the disk that it is on; empty for the whole disk.
	Parts []cell.DiskPart `json:"parts,omitempty"`
	// For is the delay, how far a clock is ahead (negative for behind), or how long an SVID still lives.
	For Duration `json:"for,omitempty"`
}

// Duration is written as people do: 1m30s.
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// key names what a fault is on: a second one there takes the place of the first.
func (f Fault) key() string {
	on := f.On
	if f.Kind == FaultCut {
		on = slices.Sorted(slices.Values(on))
	}
	return string(f.Kind) + " " + strings.Join(on, " ")
}

// most are the bounds of what a fault may last or move.
const (
	mostDelay  = time.Minute
	mostClock  = 365 * 24 * time.Hour
	mostSlow   = 10 * time.Minute
	leastClock = time.Millisecond
)

// ParseFault reads a fault as it is typed after `mcpvault dev fault set`; only are the parts of a disk. With bare, the words
// are no more than what it is on, as after `clear`.
func ParseFault(words []string, only []string, bare bool) (Fault, error) {
	if len(words) == 0 {
		return Fault{}, badFault("a fault begins with its kind")
	}
	shape, ok := shapes()[FaultKind(words[0])]
	if !ok {
		return Fault{}, badFault(fmt.Sprintf("there is no fault %q", words[0]))
	}
	f, rest := Fault{Kind: FaultKind(words[0])}, words[1:]
	if len(rest) < shape.on || slices.Contains(rest, "") {
		return Fault{}, badFault(fmt.Sprintf("%s needs %d names", f.Kind, shape.on))
	}
	f.On, rest = rest[:shape.on:shape.on], rest[shape.on:]
	if shape.on == 2 && f.On[0] == f.On[1] {
		return Fault{}, badFault("a link has two ends")
	}
	if len(only) > 0 && (f.Kind != FaultDisk || bare) {
		return Fault{}, badFault("--only is for a disk")
	}
	if bare {
		if len(rest) > 0 {
			return Fault{}, badFault(fmt.Sprintf("%q says too much: name what is broken and no more", strings.Join(words, " ")))
		}
		return f, nil
	}
	if err := shape.read(&f, rest); err != nil {
		return Fault{}, err
	}
	for _, part := range only {
		if !slices.Contains(fault.Parts(), cell.DiskPart(part)) {
			return Fault{}, badFault(fmt.Sprintf("a disk has no part %q", part))
		}
		f.Parts = append(f.Parts, cell.DiskPart(part))
	}
	return f, nil
}

func badFault(what string) error {
	return problem.New(problem.Invalid, what, "see `mcpvault dev fault set --help`")
}

// shape says how a kind of fault is typed: how many names, and what comes then.
type shape struct {
	on   int
	read func(f *Fault, rest []string) error
}

func shapes() map[FaultKind]shape {
	return map[FaultKind]shape{
		FaultCut:      {2, readNothing},
		FaultOneWay:   {2, readNothing},
		FaultDelay:    {2, readDelay},
		FaultClock:    {1, readClock},
		FaultDisk:     {1, readDisk},
		FaultSVID:     {1, readSVID},
		FaultUpstream: {1, readUpstream},
	}
}

func readNothing(f *Fault, rest []string) error {
	if len(rest) > 0 {
		return badFault(fmt.Sprintf("%s takes two names and no more", f.Kind))
	}
	return nil
}

// readFor reads a duration within bounds.
func (f *Fault) readFor(word string, least, most time.Duration) error {
	d, err := time.ParseDuration(word)
	if err != nil || d < least || d > most {
		return badFault(fmt.Sprintf("%q is no duration from %s to %s", word, least, most))
	}
	f.For = Duration(d)
	return nil
}

func readDelay(f *Fault, rest []string) error {
	if len(rest) != 1 {
		return badFault("delay needs two names and how much: n1 n2 200ms")
	}
	return f.readFor(rest[0], time.Millisecond, mostDelay)
}

// readClock takes +10m and -10m, and for the sake of shells and flags "ahead 10m" and "behind 10m".
func readClock(f *Fault, rest []string) error {
	usage := badFault("clock needs a name and how far: n2 +10m, or n2 behind 10m")
	switch {
	case len(rest) == 1 && (strings.HasPrefix(rest[0], "+") || strings.HasPrefix(rest[0], "-")):
		if err := f.readFor(rest[0], -mostClock, mostClock); err != nil {
			return err
		}
	case len(rest) == 2 && (rest[0] == "ahead" || rest[0] == "behind"):
		if err := f.readFor(rest[1], leastClock, mostClock); err != nil {
			return err
		}
		if rest[0] == "behind" {
			f.For = -f.For
		}
	default:
		return usage
	}
	if f.For == 0 {
		return badFault("a clock that is right is no fault: clear it")
	}
	return nil
}

func readDisk(f *Fault, rest []string) error {
	if len(rest) != 1 || !slices.Contains(fault.Kinds(), fault.Kind(rest[0])) {
		return badFault("disk needs a name and what is wrong: n1 hang, full or error")
	}
	f.How = rest[0]
	return nil
}

func readSVID(f *Fault, rest []string) error {
	if len(rest) != 1 {
		return badFault("svid needs a name and how long it still lives: n3 5s")
	}
	return f.readFor(rest[0], time.Second, svidTTL)
}

func readUpstream(f *Fault, rest []string) error {
	switch {
	case len(rest) == 1 && rest[0] == "hang":
		f.How = rest[0]
		return nil
	case len(rest) == 2 && rest[0] == "slow":
		f.How = rest[0]
		return f.readFor(rest[1], time.Millisecond, mostSlow)
	}
	return badFault("upstream needs a name and what is wrong: demo hang, or demo slow 5s")
}

// locate replaces the names that people use by those of processes.
func (d *Dev) locate(f *Fault) error {
	if f.Kind == FaultUpstream {
		d.mu.Lock()
		defer d.mu.Unlock()
		if _, ok := d.demos[f.On[0]]; !ok {
			return problem.Newf(problem.NotFound, "use one of "+strings.Join(slices.Sorted(maps.Keys(d.demos)), ", "), "there is no demo server %q", f.On[0])
		}
		return nil
	}
	on := make([]string, 0, len(f.On))
	for _, name := range f.On {
		full, err := d.plan.resolve(name)
		if err != nil {
			return err
		}
		on = append(on, full)
	}
	f.On = on
	if len(on) == 2 {
		return d.links.has(on[0], on[1])
	}
	if _, ok := d.plan.node(on[0]); !ok {
		return problem.Newf(problem.Invalid, "name a node", "%s has no %s that could be broken", on[0], f.Kind)
	}
	return nil
}

// has reports whether there is a link between two processes.
func (l *links) has(a, b string) error {
	if l.ways[way{a, b}] == nil {
		return problem.Newf(problem.Invalid, "name two nodes of one cell, or a node and controlplane", "%s and %s do not talk to each other", a, b)
	}
	return nil
}

// node finds a node by its id.
func (p *plan) node(id string) (node, bool) {
	i := slices.IndexFunc(p.nodes, func(n node) bool { return n.id() == id })
	if i < 0 {
		return node{}, false
	}
	return p.nodes[i], true
}

// startLinks puts this process between all nodes, and between them and the control plane, when links are to be broken or are
// long.
func (d *Dev) startLinks(bg *background) error {
	reserved := func(port int) bool { return port >= d.plan.cfg.PortBase && port < d.plan.cfg.PortBase+span }
	for _, n := range d.plan.nodes {
		if !d.cfg.Faults && d.cfg.LinkDelay <= 0 {
			return nil
		}
		if err := d.links.add(n.id(), controlPlane, addr(d.plan.cellapiPort()), reserved); err != nil {
			return err
		}
		if !d.cfg.Faults {
			continue
		}
		for _, m := range d.plan.nodes {
			if m.cell != n.cell || m == n {
				continue
			}
			for _, port := range []int{m.raft, m.peer} {
				if err := d.links.add(n.id(), m.id(), addr(port), reserved); err != nil {
					return err
				}
			}
		}
	}
	d.breakLinks()
	d.links.run(bg)
	return nil
}

// reroute lets a node reach the others through the links.
func (d *Dev) reroute(n node, c *cell.Config) {
	const scheme = "https://"
	c.ControlPlane = scheme + d.links.through(n.id(), strings.TrimPrefix(c.ControlPlane, scheme))
	for i := range c.Members {
		m := &c.Members[i]
		m.Raft, m.Peer = d.links.through(n.id(), m.Raft), d.links.through(n.id(), m.Peer)
	}
}

// breakLinks brings each direction into the state that the faults say.
func (d *Dev) breakLinks() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for w, p := range d.links.ways {
		cut, delay := false, time.Duration(0)
		if w.from == controlPlane {
			delay = d.cfg.LinkDelay
		}
		for _, f := range d.faults {
			if len(f.On) != 2 {
				continue
			}
			same, opposite := f.On[0] == w.from && f.On[1] == w.to, f.On[1] == w.from && f.On[0] == w.to
			switch {
			case f.Kind == FaultCut && (same || opposite), f.Kind == FaultOneWay && same:
				cut = true
			case f.Kind == FaultDelay && same:
				delay += time.Duration(f.For)
			}
		}
		p.set(cut, delay)
	}
}

// nodeFaults is all that is wrong with a node.
func (d *Dev) nodeFaults(n node) fault.State {
	d.mu.Lock()
	defer d.mu.Unlock()
	var s fault.State
	for _, f := range d.faults {
		if f.On[0] != n.id() {
			continue
		}
		if f.Kind == FaultClock {
			s.Clock = time.Duration(f.For)
		}
		if f.Kind == FaultDisk {
			s.Disk = map[cell.DiskPart]fault.Kind{}
			parts := f.Parts
			if len(parts) == 0 {
				parts = fault.Parts()
			}
			for _, part := range parts {
				s.Disk[part] = fault.Kind(f.How)
			}
		}
	}
	return s
}

// upstreamFault is what is wrong with a demo server.
func upstreamFault(f Fault) demoserver.Trouble {
	return demoserver.Trouble{Slow: time.Duration(f.For), Hang: f.How == "hang"}
}

// inForce are the faults, in an order that does not change.
func (d *Dev) inForce() []Fault {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]Fault, 0, len(d.faults))
	for _, key := range slices.Sorted(maps.Keys(d.faults)) {
		all = append(all, d.faults[key])
	}
	return all
}

// obeyFault carries out one command about faults.
func (d *Dev) obeyFault(ctx context.Context, cmd command) error {
	if !d.cfg.Faults {
		return problem.New(problem.Conflict, "this installation was started without faults", "start it with `mcpvault dev --faults`")
	}
	if cmd.Op == opFaultList {
		return nil
	}
	d.ops.Lock()
	defer d.ops.Unlock()
	var change []Fault
	if cmd.Fault != nil {
		if err := d.locate(cmd.Fault); err != nil {
			return err
		}
		change = append(change, *cmd.Fault)
	} else {
		change = d.inForce() // all of them are cleared
	}
	d.mu.Lock()
	for _, f := range change {
		if cmd.Op == opFaultSet {
			d.faults[f.key()] = f
			continue
		}
		if _, there := d.faults[f.key()]; !there {
			d.mu.Unlock()
			return problem.Newf(problem.NotFound, "see `mcpvault dev fault list`", "there is no fault %s", f.key())
		}
		delete(d.faults, f.key())
	}
	d.mu.Unlock()
	// All of it is tried: a dead node must not keep the others broken.
	var err error
	for _, f := range change {
		err = errors.Join(err, d.enforce(ctx, f, cmd.Op == opFaultSet))
	}
	return err
}

// enforce brings what a fault is on into the state that the faults say.
func (d *Dev) enforce(ctx context.Context, f Fault, broken bool) error {
	switch f.Kind {
	case FaultCut, FaultOneWay, FaultDelay:
		d.breakLinks()
	case FaultUpstream:
		d.mu.Lock()
		defer d.mu.Unlock()
		if s := d.demos[f.On[0]]; broken {
			s.SetTrouble(upstreamFault(f))
		} else {
			s.SetTrouble(demoserver.Trouble{})
		}
	case FaultSVID:
		ttl := svidTTL
		if broken {
			ttl = time.Duration(f.For)
		}
		return d.renew(f.On[0], ttl)
	case FaultClock, FaultDisk:
		n, _ := d.plan.node(f.On[0])
		d.mu.Lock()
		c := d.children[n.id()]
		d.mu.Unlock()
		if c == nil || !c.running() {
			return nil // It begins so when it is started again.
		}
		ctx, cancel := context.WithTimeout(ctx, faultLimit)
		defer cancel()
		return c.faults.tell(ctx, d.nodeFaults(n))
	}
	return nil
}

// faultLimit is how long a node may take to hear what is wrong with it.
const faultLimit = 5 * time.Second

// renew gives a node a new identity.
func (d *Dev) renew(id string, ttl time.Duration) error {
	n, _ := d.plan.node(id)
	ca, err := svid.OpenCA(d.plan.caDir(), trustDomain)
	if err != nil {
		return fmt.Errorf("open the CA: %w", err)
	}
	name, err := svid.NodeID(trustDomain, n.cell, n.name)
	if err != nil {
		return err
	}
	return issueFor(ca, name, d.plan.identity(n.file()), ttl)
}
