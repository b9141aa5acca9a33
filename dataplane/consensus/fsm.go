package consensus

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"google.golang.org/protobuf/proto"
)

// errEntry means that bytes are no entry of the log.
var errEntry = errors.New("not an entry of the cell's log")

// decodeEntry reads one command.
func decodeEntry(data []byte) (*cellv1.RaftEntry, error) {
	if len(data) > MaxEntry {
		return nil, fmt.Errorf("%w: %d bytes", errEntry, len(data))
	}
	return decodeAny(data)
}

func decodeAny(data []byte) (*cellv1.RaftEntry, error) {
	entry := &cellv1.RaftEntry{}
	if err := proto.Unmarshal(data, entry); err != nil {
		return nil, fmt.Errorf("%w: %w", errEntry, err)
	}
	if entry.GetCommand() == nil {
		return nil, fmt.Errorf("%w: no command", errEntry)
	}
	return entry, nil
}

// fsm is the state machine: it verifies and writes to the store, and keeps nothing itself.
type fsm struct {
	n *Node
	// fail takes the log out of service: a node that cannot write must not go on applying.
	fail func(error)
	// turn is held while an entry is applied.
	turn chan struct{}
	// old is the last entry that was in the log when this life began: up to there entries are seen again.
	old uint64
}

// applyLimits is how many times the limit of a write an entry may take: its signatures are verified, too.
const applyLimits = 4

// begin watches over one entry: a node whose store hangs must not stay in office and apply nothing.
func (f *fsm) begin(index uint64) (end func()) {
	f.turn <- struct{}{}
	t := time.AfterFunc(applyLimits*f.n.cfg.WriteLimit, func() { f.fail(fmt.Errorf("apply entry %d: %w", index, errStalled)) })
	return func() {
		t.Stop()
		<-f.turn
	}
}

// settle waits until nothing is applied any more: an entry that hangs must not meet those of the log's next life.
func (f *fsm) settle(ctx context.Context) {
	select {
	case f.turn <- struct{}{}:
		<-f.turn
	case <-ctx.Done():
	}
}

// Apply takes one committed entry. It returns an error, for the proposer, when the entry was refused.
func (f *fsm) Apply(l *raft.Log) any {
	defer f.begin(l.Index)()
	entry, err := decodeEntry(l.Data)
	if batch := entry.GetSessions(); err == nil && batch != nil {
		return f.sessions(l.Index, entry, batch)
	}
	if err == nil && entry.GetSessionState() != nil {
		err = fmt.Errorf("%w: a part of a snapshot", errEntry)
	}
	if err == nil {
		err = f.n.take(entry)
	}
	if err == nil || entry.GetDeltas() != nil {
		// Of deltas, those of one tenant are taken also when those of another are refused.
		f.n.cfg.OnApply(Applied{Index: l.Index, Entry: entry})
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrRollback) && l.Index <= f.old:
		// Taken before the restart, and followed by newer ones.
	case isRefusal(err):
		f.n.refused.Add(1)
		f.n.log.Warn("a committed entry was not taken", "index", l.Index, "error", err)
	default:
		f.fail(fmt.Errorf("apply entry %d: %w", l.Index, err))
	}
	return err
}

// sessions takes a change of leases. It returns what became of it, or an error.
func (f *fsm) sessions(index uint64, entry *cellv1.RaftEntry, batch *cellv1.SessionBatch) any {
	change, err := f.n.cfg.Store.Leases().Apply(index, batch)
	switch {
	case err == nil:
		if !change.Seen {
			f.n.cfg.OnApply(Applied{Index: index, Entry: entry, Ended: change.Ended})
		}
		return change
	case isRefusal(err):
		f.n.refused.Add(1)
		f.n.log.Warn("a committed entry was not taken", "index", index, "error", err)
	default:
		f.fail(fmt.Errorf("apply entry %d: %w", index, err))
	}
	return err
}

// isRefusal tells a verdict, which is the same on every node, from a failure of this node's disk.
func isRefusal(err error) bool {
	for _, verdict := range []error{errEntry, errRefused, store.ErrRollback, store.ErrEquivocation, store.ErrInvalid} {
		if errors.Is(err, verdict) {
			return true
		}
	}
	return false
}

// verify judges an entry and changes nothing.
func (n *Node) verify(entry *cellv1.RaftEntry) error {
	var err error
	switch c := entry.GetCommand().(type) {
	case *cellv1.RaftEntry_Update:
		err = n.cfg.Trust.VerifyUpdate(c.Update)
	case *cellv1.RaftEntry_Kill:
		_, err = n.cfg.Trust.VerifyKill(c.Kill)
	case *cellv1.RaftEntry_Deltas:
		for _, d := range c.Deltas.GetDeltas() {
			err = errors.Join(err, n.cfg.Trust.VerifyDelta(d))
		}
	case *cellv1.RaftEntry_Members:
		err = n.verifyMembers(c.Members)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return nil
}

// take verifies an entry and writes it to the store.
func (n *Node) take(entry *cellv1.RaftEntry) error {
	switch c := entry.GetCommand().(type) {
	case *cellv1.RaftEntry_Update:
		if err := n.verify(entry); err != nil {
			return err
		}
		if len(c.Update.GetManifest()) == 0 {
			return n.cfg.Store.PutRoots(c.Update.GetRoots())
		}
		return n.cfg.Store.PutUpdate(c.Update)
	case *cellv1.RaftEntry_Kill:
		id, err := n.cfg.Trust.VerifyKill(c.Kill)
		if err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		_, err = n.cfg.Store.AddKill(id, c.Kill)
		return err
	case *cellv1.RaftEntry_Deltas:
		if err := n.verify(entry); err != nil {
			return err
		}
		return n.cfg.Store.PutDeltas(c.Deltas.GetDeltas())
	case *cellv1.RaftEntry_SessionKey:
		return n.cfg.Store.PutSessionKey(c.SessionKey)
	case *cellv1.RaftEntry_Members:
		if err := n.verify(entry); err != nil {
			return err
		}
		return n.cfg.Store.PutMembers(c.Members)
	case *cellv1.RaftEntry_SessionState:
		return n.cfg.Store.Leases().Restore(c.SessionState)
	}
	return fmt.Errorf("%w: an unknown command", errEntry)
}

// state is a snapshot: the entries that would build the store anew, each verified again by whoever restores it. There may be
// many leases: they are read when they are written.
type state struct {
	entries []*cellv1.RaftEntry
	leases  *store.LeaseState
}

const (
	stateMagic = "mcpvault raft state 1\n"
	// maxStateEntry bounds one entry of a snapshot.
	maxStateEntry = 64 << 20
	// stateBatch is how many bytes of heads and deltas one entry of a snapshot has before the next one is begun.
	stateBatch = 8 << 20
)

// Snapshot takes what the store holds now; the parts are shared and never written to.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	s := f.n.cfg.Store
	var all []*cellv1.RaftEntry
	if list := s.Members(); list != nil {
		all = append(all, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Members{Members: list}})
	}
	for _, u := range updates(s) {
		all = append(all, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Update{Update: u}})
	}
	for _, k := range s.Kills() {
		all = append(all, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_Kill{Kill: k}})
	}
	for _, k := range s.SessionKeys() {
		all = append(all, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_SessionKey{SessionKey: k}})
	}
	leases, err := s.Leases().State()
	if err != nil {
		return nil, err
	}
	return &state{all, leases}, nil
}

// updates are what the store holds, cut between tenants: a head and its deltas stay together.
func updates(s *store.Store) []*cellv1.Update {
	whole := s.LastUpdate()
	if len(whole.GetManifest()) == 0 {
		if len(whole.GetRoots()) == 0 {
			return nil
		}
		return []*cellv1.Update{{Roots: whole.GetRoots()}}
	}
	next := func() *cellv1.Update { return &cellv1.Update{Roots: whole.GetRoots(), Manifest: whole.GetManifest()} }
	chains := s.Chains()
	all, size := []*cellv1.Update{next()}, 0
	for _, id := range slices.Sorted(maps.Keys(chains)) {
		if size > stateBatch {
			all, size = append(all, next()), 0
		}
		u, c := all[len(all)-1], chains[id]
		u.Heads, u.Deltas = append(u.Heads, c.Head), append(u.Deltas, c.Deltas...)
		size += len(c.Head)
		for _, d := range c.Deltas {
			size += len(d.GetBody()) + len(d.GetSignature())
		}
	}
	return all
}

// Persist writes the snapshot; the sink seals it.
func (s *state) Persist(sink raft.SnapshotSink) error {
	err := s.write(sink)
	if err == nil {
		err = sink.Close()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return nil
}

// Release ends the reading of the leases.
func (s *state) Release() {
	if s.leases != nil {
		s.leases.Close()
	}
}

func (s *state) write(w io.Writer) error {
	b := bufio.NewWriter(w)
	_, _ = b.WriteString(stateMagic)
	for _, entry := range s.entries {
		if err := writeEntry(b, entry); err != nil {
			return err
		}
	}
	if s.leases != nil && s.leases.Index > 0 {
		err := s.leases.Parts(func(part *cellv1.SessionState) error {
			return writeEntry(b, &cellv1.RaftEntry{Command: &cellv1.RaftEntry_SessionState{SessionState: part}})
		})
		if err != nil {
			return err
		}
	}
	return b.Flush()
}

func writeEntry(b *bufio.Writer, entry *cellv1.RaftEntry) error {
	data, err := proto.Marshal(entry)
	if err != nil {
		return err
	}
	if len(data) > maxStateEntry {
		return fmt.Errorf("an entry of %d bytes", len(data))
	}
	_, _ = b.Write(binary.AppendUvarint(nil, uint64(len(data))))
	_, err = b.Write(data)
	return err
}

// readState gives the entries of a snapshot one by one: there may be many.
func readState(r io.Reader, take func(*cellv1.RaftEntry) error) error {
	b := bufio.NewReader(r)
	magic := make([]byte, len(stateMagic))
	if _, err := io.ReadFull(b, magic); err != nil || string(magic) != stateMagic {
		return fmt.Errorf("%w: not a snapshot of this version", errEntry)
	}
	for i := 0; ; i++ {
		size, err := binary.ReadUvarint(b)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil || size > maxStateEntry {
			return fmt.Errorf("%w: snapshot entry %d of %d bytes", errEntry, i, size)
		}
		// Read as it comes: the length is not believed until the bytes are there.
		data, err := io.ReadAll(io.LimitReader(b, int64(size)))
		if err != nil || uint64(len(data)) != size {
			return fmt.Errorf("%w: snapshot entry %d is cut short", errEntry, i)
		}
		entry, err := decodeAny(data)
		if err == nil {
			err = take(entry)
		}
		if err != nil {
			return err
		}
	}
}

// Restore merges a snapshot into the store. What the store has newer stays; what does not verify is left out.
func (f *fsm) Restore(r io.ReadCloser) error {
	return readState(r, func(entry *cellv1.RaftEntry) error {
		err := errEntry // changes of leases count from a place in the log, which a snapshot's do not have
		if entry.GetSessions() == nil {
			err = f.n.take(entry)
		}
		switch {
		case err == nil:
			f.n.cfg.OnApply(Applied{Entry: entry})
		case errors.Is(err, store.ErrRollback):
			// The store is ahead of the snapshot, as it is after every restart.
		case isRefusal(err):
			f.n.refused.Add(1)
			f.n.log.Warn("a part of a snapshot was not taken", "error", err)
		default:
			return fmt.Errorf("restore snapshot: %w", err)
		}
		return nil
	})
}
