// Package fault breaks one node of a development cell on purpose: its clock and its disk. `mcpvault dev` tells a node that it
// has started what to break, over a socket that both inherited; what is broken stays so until the next message.
//
// It is a program's hand on dataplane/cell.Machine and nothing that production links: an architecture test holds that.
package fault

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/tlog"
	"github.com/mcpvault/mcpvault/kit/tlog/tlogtest"
)

// Kind is what is wrong with a part of the disk.
type Kind string

// The kinds: a write never ends, finds no room (ENOSPC), or fails (EIO).
const (
	Hang  Kind = "hang"
	Full  Kind = "full"
	Error Kind = "error"
)

// Audit is the part of the disk that the audit log lies on; the others are the cell's.
const Audit cell.DiskPart = "audit"

// Parts are all parts of a node's disk.
func Parts() []cell.DiskPart { return []cell.DiskPart{cell.DiskRaft, Audit, cell.DiskStore} }

// Kinds are all kinds.
func Kinds() []Kind { return []Kind{Hang, Full, Error} }

// State is all that is wrong with a node; the zero value is a sound one.
type State struct {
	// Clock is how far its wall clock is ahead of the machine's, in nanoseconds; negative for behind.
	Clock time.Duration `json:"clock,omitempty"`
	// Disk is what is wrong with each part of its disk.
	Disk map[cell.DiskPart]Kind `json:"disk,omitempty"`
}

func (s State) check() error {
	for part, kind := range s.Disk {
		if !slices.Contains(Parts(), part) || !slices.Contains(Kinds(), kind) {
			return fmt.Errorf("no disk has %q of %q", kind, part)
		}
	}
	return nil
}

// Node is the machine of one node. Its methods may be called from many goroutines.
type Node struct {
	audit *tlogtest.FS
	clock atomic.Int64 // nanoseconds ahead

	mu      sync.Mutex // guards what follows
	disk    map[cell.DiskPart]Kind
	changed chan struct{} // closed when disk changes
	release func()        // lets the audit log's disk go on; nil while it does
}

// New is a node with nothing wrong.
func New() *Node {
	return &Node{audit: tlogtest.New(tlog.Disk{}), changed: make(chan struct{})}
}

// Machine is what the node runs on.
func (n *Node) Machine() cell.Machine {
	return cell.Machine{Now: n.now, BeforeWrite: n.beforeWrite, AuditFS: n.audit}
}

// Set makes exactly what s says be wrong.
func (n *Node) Set(s State) error {
	if err := s.check(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clock.Store(int64(s.Clock))
	n.disk = maps.Clone(s.Disk)
	close(n.changed)
	n.changed = make(chan struct{})
	n.setAudit(s.Disk[Audit])
	return nil
}

// setAudit is called with mu held. A full disk has no room for what the log's ballast file gives back either.
func (n *Node) setAudit(k Kind) {
	n.audit.FailWrites(errorOf(k))
	switch {
	case k == Hang && n.release == nil:
		n.release = n.audit.Hang()
	case k != Hang && n.release != nil:
		n.release()
		n.release = nil
	}
}

// now is the machine's wall clock, moved. Without the monotonic reading, as a clock that was set has none in common with what
// it was before.
func (n *Node) now() time.Time {
	return time.Now().Round(0).Add(time.Duration(n.clock.Load()))
}

// errorOf is what a write gives; nil for one that hangs, or for none.
func errorOf(k Kind) error {
	switch k {
	case Full:
		return syscall.ENOSPC
	case Error:
		return syscall.EIO
	case Hang:
	}
	return nil
}

func (n *Node) beforeWrite(part cell.DiskPart) error {
	for {
		n.mu.Lock()
		kind, changed := n.disk[part], n.changed
		n.mu.Unlock()
		if kind != Hang {
			return errorOf(kind)
		}
		<-changed
	}
}

// answer is what comes back for each state.
type answer struct {
	Error string `json:"error,omitempty"`
}

// Obey takes states from the socket and returns after the first one; it goes on until the socket is closed, and then leaves
// everything as it is.
func (n *Node) Obey(socket io.ReadWriter) error {
	in, out := json.NewDecoder(socket), json.NewEncoder(socket)
	if err := n.obey(in, out); err != nil {
		return fmt.Errorf("hear what is to be broken: %w", err)
	}
	go func() {
		for n.obey(in, out) == nil { // Until the socket is closed.
			continue
		}
	}()
	return nil
}

func (n *Node) obey(in *json.Decoder, out *json.Encoder) error {
	var s State
	if err := in.Decode(&s); err != nil {
		return err
	}
	var a answer
	if err := n.Set(s); err != nil {
		a.Error = err.Error()
	}
	return out.Encode(a)
}

// Line is the other end of the socket.
type Line struct {
	in   *json.Decoder
	out  *json.Encoder
	owed int
}

// NewLine begins to talk to a node.
func NewLine(socket io.ReadWriter) *Line {
	return &Line{in: json.NewDecoder(socket), out: json.NewEncoder(socket)}
}

// Send says in which state the node is to be, and does not wait.
func (l *Line) Send(s State) error {
	if err := l.out.Encode(s); err != nil {
		return fmt.Errorf("tell the node what is wrong with it: %w", err)
	}
	l.owed++
	return nil
}

// Wait returns when the node is in the state that was sent last.
func (l *Line) Wait() error {
	for l.owed > 0 {
		var a answer
		if err := l.in.Decode(&a); err != nil {
			return fmt.Errorf("hear from the node: %w", err)
		}
		l.owed--
		if a.Error != "" {
			return errors.New(a.Error)
		}
	}
	return nil
}
