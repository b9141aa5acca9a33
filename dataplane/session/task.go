package session

import (
	"encoding/binary"

	"github.com/mcpvault/mcpvault/snapshot"
)

const kindTask byte = 4

// MaxTask bounds the id that a server gives a task.
const MaxTask = 512

// Task is what the id of a task says: whose it is, and which task of which server it is, begun by which tool. It is as good as
// long as the keys that sealed it are kept.
type Task struct {
	Owner  Owner
	Tenant snapshot.TenantID
	Server string
	// Tool began it; ID is the server's own.
	Tool, ID string
}

// SealTask makes the id by which a caller knows a task; two are never equal.
func (s *Sessions) SealTask(t Task) string {
	b := append(make([]byte, 0, 256), t.Owner[:]...)
	for _, f := range []string{string(t.Tenant), t.Server, t.Tool, t.ID} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(f)))
		b = append(b, f...)
	}
	return s.keys.Load().seal(kindTask, b)
}

// OpenTask reads what SealTask made, on any node that shares the keys; ErrUnknown for anything else. Whether it is the
// caller's is for the caller to compare.
func (s *Sessions) OpenTask(text string) (Task, error) {
	if len(text) > MaxID {
		return Task{}, ErrUnknown
	}
	b, err := s.open(kindTask, text)
	if err != nil || len(b) < len(Owner{}) {
		return Task{}, ErrUnknown
	}
	t := Task{Owner: Owner(b[:16])}
	b = b[16:]
	var tenant string
	for _, f := range []*string{&tenant, &t.Server, &t.Tool, &t.ID} {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return Task{}, ErrUnknown
		}
		n := int(binary.BigEndian.Uint16(b))
		*f, b = string(b[2:2+n]), b[2+n:]
	}
	t.Tenant = snapshot.TenantID(tenant)
	return t, nil
}
