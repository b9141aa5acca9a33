// Package proof checks what the control plane hands out, without believing it: a snapshot against the root keys, an
// audit record against its log's signed checkpoint. It does no IO, so that the same check runs on a machine that has
// never seen the control plane.
package proof

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/tlog"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/shard"
)

// Snapshot is what a verified generation says.
type Snapshot struct {
	Head *snapshotv1.Head
	// Version and Digest are those of the generation: the head's, or of the last of Deltas deltas on it.
	Version snapshot.Version
	Digest  snapshot.Digest
	Deltas  int
	// State is the state hash of the decision index: on every node that serves the generation it is the same.
	State snapshot.Digest
	// Roots is the version of the roots that it was checked against.
	Roots   uint64
	Servers int
	Tools   int
	// InForce is nil while the head's time has come and not run out.
	InForce error
}

// CheckSnapshot verifies a generation against root keys that the reader has from elsewhere: the signatures of its head and of
// the deltas on it, that every shard is what the head names, that each delta follows and applies, and that a cell could serve
// from what comes of it. A failure is problem.Denied: nobody should act on such a snapshot.
func CheckSnapshot(g *adminv1.GetGenerationResponse, roots []byte, now time.Time) (*Snapshot, error) {
	trust, err := openRoots(roots, g.GetRoots())
	if err != nil {
		return nil, refused("its root keys are not the known ones", err)
	}
	head, err := trust.OpenHead(g.GetEnvelope())
	if err != nil {
		return nil, refused("its signature is not good", err)
	}
	digest, err := seal.HeadDigest(g.GetEnvelope())
	if err != nil {
		return nil, refused("its head is not to be read", err)
	}
	blobs := map[snapshot.Digest][]byte{}
	for _, b := range g.GetShards() {
		blobs[snapshot.DigestOf(b)] = b
	}
	x, catalogue, err := shard.OpenTenant(head, func(_ []byte, d snapshot.Digest, _ uint64) ([]byte, error) {
		if b, ok := blobs[d]; ok {
			return b, nil
		}
		return nil, errors.New("it is not there")
	})
	if err != nil {
		return nil, refused("its content is not what was signed", err)
	}
	s := &Snapshot{
		Head: head, Version: snapshot.VersionOf(head), Digest: digest, State: x.StateHash(), Roots: trust.Version(),
		Servers: len(catalogue.GetServers()), InForce: seal.CheckTime(head, now),
	}
	if want := head.GetStateHash(); len(want) > 0 && string(want) != string(s.State[:]) {
		return nil, refused("its content is not what was signed", index.ErrState)
	}
	if err := s.apply(trust, x, g.GetDeltas()); err != nil {
		return nil, refused("a delta of it is not good", err)
	}
	said := g.GetGeneration()
	if said.GetDigest() != s.Digest.String() || said.GetGeneration() != uint64(s.Version.Generation) || said.GetEpoch() != uint64(s.Version.Epoch) {
		return nil, refused("the control plane shows it as another one", fmt.Errorf("signed %s, shown %d.%d", s.Version, said.GetEpoch(), said.GetGeneration()))
	}
	for _, server := range catalogue.GetServers() {
		s.Tools += len(server.GetTools())
	}
	return s, nil
}

// Trust opens root keys that the reader has from elsewhere.
func Trust(roots []byte) (*seal.Trust, error) {
	trust, err := openRoots(roots, roots)
	if err != nil {
		return nil, problem.New(problem.Invalid, "these are no root keys: "+err.Error(), "give the roots.pb that you got from whoever runs the installation")
	}
	return trust, nil
}

// Follows opens newer root keys that the known ones vouch for.
func Follows(known, newest []byte) (*seal.Trust, error) { return openRoots(known, newest) }

// apply goes from the head to the generation, as a cell does.
func (s *Snapshot) apply(trust *seal.Trust, x *index.Index, deltas []*snapshotv1.SignedDelta) error {
	for _, signed := range deltas {
		d, err := trust.OpenDelta(signed)
		if err != nil {
			return err
		}
		next := seal.DeltaVersion(d)
		if string(d.GetParent()) != string(s.Digest[:]) || next.Epoch != s.Version.Epoch || next.Generation != s.Version.Generation+1 ||
			string(seal.DeltaTenant(d)) != s.Head.GetTenantId() {
			return fmt.Errorf("delta %s does not follow %s", next, s.Version)
		}
		if x, err = index.Apply(x, d); err != nil {
			return fmt.Errorf("delta %s: %w", next, err)
		}
		s.Version, s.Digest, s.State = next, seal.DeltaDigest(signed), snapshot.Digest(d.GetStateHash())
		s.Deltas++
	}
	return nil
}

// openRoots believes the known roots, and newer ones that they vouch for.
func openRoots(known, newest []byte) (*seal.Trust, error) {
	pin, err := seal.RootsDigest(known)
	if err != nil {
		return nil, err
	}
	trust, err := seal.OpenRoots(known, pin)
	if err != nil || len(newest) == 0 {
		return trust, err
	}
	return trust.OpenRoots(newest)
}

func refused(what string, cause error) error {
	return problem.Newf(problem.Denied, "do not use it; compare with another node, and look at the control plane's log",
		"the snapshot does not verify: %s: %v", what, cause)
}

// Record is one audit record and how far it is proven.
type Record struct {
	*auditv1.Record
	LogID string
	Index uint64
	Leaf  []byte
	// Proven is true when the record's place in the log is covered by a signed checkpoint of Size records.
	Proven bool
	Size   int64
	// Unproven says why it is not proven, when it is not.
	Unproven string
}

// ReadRecord decodes a record without proving anything.
func ReadRecord(r *adminv1.AuditRecord) (*Record, error) {
	rec := &auditv1.Record{}
	if err := proto.Unmarshal(r.GetLeaf(), rec); err != nil {
		return nil, fmt.Errorf("record %d of %s is not to be read: %w", r.GetIndex(), r.GetLogId(), err)
	}
	return &Record{Record: rec, LogID: r.GetLogId(), Index: r.GetIndex(), Leaf: r.GetLeaf()}, nil
}

// CheckRecord decodes a record and checks its inclusion proof. A proof that is there and wrong is problem.Denied; a record
// that is not yet covered by a checkpoint comes back unproven.
func CheckRecord(p *adminv1.ProvenRecord) (*Record, error) {
	r, err := ReadRecord(p.GetRecord())
	if err != nil {
		return nil, err
	}
	log := p.GetLog()
	if log.GetAlarm() != "" {
		return nil, forged(r, errors.New(log.GetAlarm()))
	}
	if len(log.GetCheckpoint()) == 0 {
		r.Unproven = "its log has no witnessed checkpoint yet"
		return r, nil
	}
	cp, err := tlog.OpenCheckpoint(log.GetCheckpoint(), log.GetVerifierKey())
	if err != nil {
		return nil, forged(r, err)
	}
	if cp.Origin != r.LogID {
		return nil, forged(r, fmt.Errorf("the checkpoint is of %s", cp.Origin))
	}
	if int64(r.Index) >= cp.Size {
		r.Unproven = fmt.Sprintf("the newest witnessed checkpoint covers %d records, this is record %d", cp.Size, r.Index)
		return r, nil
	}
	path, err := tlog.HashesFromBytes(p.GetProof())
	if err != nil {
		return nil, forged(r, err)
	}
	if err := tlog.CheckRecord(path, cp.Size, cp.Root, int64(r.Index), tlog.LeafHash(r.Leaf)); err != nil {
		return nil, forged(r, err)
	}
	r.Proven, r.Size = true, cp.Size
	return r, nil
}

func forged(r *Record, cause error) error {
	return problem.Newf(problem.Denied, "check the whole log with `mcpvault audit verify`, and the node's own directory",
		"record %d of %s does not verify: %v", r.Index, r.LogID, cause)
}
