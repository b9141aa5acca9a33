package cell

import (
	"time"

	"github.com/mcpvault/mcpvault/kit/tlog"
)

// Machine is what a node takes from the machine that it runs on. The zero value is the machine itself, which is what
// production runs on; rehearsals put faults in between.
type Machine struct {
	// Now is the wall clock; time.Now when nil.
	Now func() time.Time
	// BeforeWrite is called before each write to a part of the node's disk, and may delay it; an error fails it. Nil in
	// production.
	BeforeWrite func(DiskPart) error
	// AuditFS is the file system of the audit log; the machine's when nil.
	AuditFS tlog.FS
}

// DiskPart is a part of a node's disk that BeforeWrite hears of.
type DiskPart string

// The parts: the cell's log, and what is verified.
const (
	DiskRaft  DiskPart = "raft"
	DiskStore DiskPart = "store"
)

// before is the hook for one part; nil when there is none.
func (m Machine) before(part DiskPart) func() error {
	if m.BeforeWrite == nil {
		return nil
	}
	return func() error { return m.BeforeWrite(part) }
}
