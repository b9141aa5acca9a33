package store

import (
	"fmt"
	"net"
	"slices"
	"strconv"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
)

const (
	// maxMembers leaves room for five that vote, and for the ones that are to take their places.
	maxMembers = 9
	// maxRemoved bounds the names that are remembered; 512 of the longest fit into one entry of the log.
	maxRemoved = 512
)

// Members is the newest list of the cell's nodes; nil while the cell has agreed on none. It is shared and must not be written to.
func (s *Store) Members() *cellv1.Members {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.mem.members
}

// PutMembers keeps a list of the cell's nodes. The error wraps ErrRollback for a list that is not newer, ErrInvalid for one
// that has a removed name again, or forgets one.
func (s *Store) PutMembers(m *cellv1.Members) error {
	if err := checkMembers(m); err != nil {
		return err
	}
	s.write.Lock()
	defer s.write.Unlock()
	have := s.mem.members
	switch {
	case m.GetVersion() == have.GetVersion() && !proto.Equal(m, have):
		return fmt.Errorf("members %d: %w", m.GetVersion(), ErrEquivocation)
	case m.GetVersion() <= have.GetVersion():
		return fmt.Errorf("members %d after %d: %w", m.GetVersion(), have.GetVersion(), ErrRollback)
	case m.GetKeysFrom() < have.GetKeysFrom():
		return fmt.Errorf("%w: session keys from %d after %d", ErrInvalid, m.GetKeysFrom(), have.GetKeysFrom())
	}
	for _, name := range have.GetRemoved() {
		if !slices.Contains(m.GetRemoved(), name) {
			return fmt.Errorf("%w: the list forgets that node %s was removed", ErrInvalid, name)
		}
	}
	value, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode members: %w", err)
	}
	if err := s.update(func(tx *bbolt.Tx) error { return s.put(tx, bucketMembers, current, value) }); err != nil {
		return fmt.Errorf("write members: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mem.members = proto.CloneOf(m)
	return nil
}

// DropSessionKeys removes the session keys before an id: what they have sealed is unknown from then on.
func (s *Store) DropSessionKeys(before uint32) (dropped int, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	var old []uint32
	for id := range s.mem.keys {
		if id < before {
			old = append(old, id)
		}
	}
	if len(old) == 0 {
		return 0, nil
	}
	err = s.update(func(tx *bbolt.Tx) error {
		for _, id := range old {
			if err := tx.Bucket(bucketKeys).Delete(keyID(id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("drop session keys: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range old {
		delete(s.mem.keys, id)
	}
	return len(old), nil
}

// checkMembers holds a list to its shape.
func checkMembers(m *cellv1.Members) error {
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%w: members: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	if n := len(m.GetMembers()); m.GetVersion() == 0 || n == 0 || n > maxMembers || len(m.GetRemoved()) > maxRemoved {
		return wrong("version %d with %d nodes, %d removed: at least one node and at most %d, and %d removed", m.GetVersion(), n, len(m.GetRemoved()), maxMembers, maxRemoved)
	}
	names := map[string]bool{}
	for _, name := range m.GetRemoved() {
		if !validName(name) || names[name] {
			return wrong("removed node %q", name)
		}
		names[name] = true
	}
	for _, node := range m.GetMembers() {
		switch name := node.GetNode(); {
		case !validName(name):
			return wrong("node %q", name)
		case names[name]:
			return wrong("node %q is there twice, or was removed: enrol the machine under a new name", name)
		case !validAddr(node.GetRaft()) || !validAddr(node.GetPeer()):
			return wrong("node %q is at %q and %q: host:port, or nothing", name, node.GetRaft(), node.GetPeer())
		}
		names[node.GetNode()] = true
	}
	return nil
}

// validAddr lets an address be left out: then each node's own configuration says where the other is.
func validAddr(addr string) bool {
	if addr == "" {
		return true
	}
	host, port, err := net.SplitHostPort(addr)
	n, perr := strconv.ParseUint(port, 10, 16)
	return err == nil && perr == nil && n > 0 && host != "" && len(addr) <= 300
}
