package store

import (
	"encoding/binary"
	"fmt"
	"strings"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"google.golang.org/protobuf/proto"
)

const (
	// maxEnvelope bounds one signed record.
	maxEnvelope = 4 << 20
	maxName     = 256
)

// readEnvelope opens the outer two layers of a signed record without judging it, and returns the payload's digest.
func readEnvelope(env []byte, into proto.Message) (snapshot.Digest, error) {
	if len(env) > maxEnvelope {
		return snapshot.Digest{}, fmt.Errorf("%w: an envelope of %d bytes", ErrInvalid, len(env))
	}
	var e snapshotv1.Envelope
	if err := proto.Unmarshal(env, &e); err != nil {
		return snapshot.Digest{}, fmt.Errorf("%w: envelope: %w", ErrInvalid, err)
	}
	if len(e.GetPayload()) == 0 {
		return snapshot.Digest{}, fmt.Errorf("%w: an empty envelope", ErrInvalid)
	}
	if err := proto.Unmarshal(e.GetPayload(), into); err != nil {
		return snapshot.Digest{}, fmt.Errorf("%w: payload: %w", ErrInvalid, err)
	}
	return snapshot.DigestOf(e.GetPayload()), nil
}

func validName(s string) bool {
	return s != "" && len(s) <= maxName && !strings.ContainsRune(s, 0)
}

func readHead(env []byte) (Generation, error) {
	var h snapshotv1.Head
	digest, err := readEnvelope(env, &h)
	if err != nil {
		return Generation{}, fmt.Errorf("head: %w", err)
	}
	if !validName(h.GetTenantId()) || h.GetGeneration() == 0 {
		return Generation{}, fmt.Errorf("head: %w: no tenant or generation", ErrInvalid)
	}
	head := Generation{Tenant: snapshot.TenantID(h.GetTenantId()), Version: snapshot.VersionOf(&h), Digest: digest, Envelope: env}
	for _, sh := range h.GetShards() {
		d, ok := snapshot.DigestFrom(sh.GetSha256())
		if !ok {
			return Generation{}, fmt.Errorf("head: %w: a shard digest of %d bytes", ErrInvalid, len(sh.GetSha256()))
		}
		head.shards = append(head.shards, d)
	}
	return head, nil
}

// readDelta reads a delta's body without judging its signature.
func readDelta(d *snapshotv1.SignedDelta) (Generation, error) {
	if len(d.GetBody()) > seal.MaxDelta || len(d.GetSignature()) > maxName {
		return Generation{}, fmt.Errorf("delta: %w: %d bytes", ErrInvalid, len(d.GetBody()))
	}
	var body snapshotv1.Delta
	if err := proto.Unmarshal(d.GetBody(), &body); err != nil {
		return Generation{}, fmt.Errorf("delta: %w: %w", ErrInvalid, err)
	}
	parent, ok := snapshot.DigestFrom(body.GetParent())
	g := Generation{Tenant: seal.DeltaTenant(&body), Version: seal.DeltaVersion(&body), Digest: seal.DeltaDigest(d), Delta: d, parent: parent}
	if !ok || g.Tenant == "" || g.Version.Generation < 2 {
		return Generation{}, fmt.Errorf("delta: %w: no tenant, parent or generation", ErrInvalid)
	}
	return g, nil
}

// mark is a version together with the body that first carried it.
type mark struct {
	version snapshot.Version
	digest  snapshot.Digest
}

type manifest struct {
	mark
	refs     map[snapshot.TenantID]mark
	order    []*snapshotv1.HeadRef
	envelope []byte
}

func readManifest(env []byte) (manifest, error) {
	var m snapshotv1.Manifest
	digest, err := readEnvelope(env, &m)
	if err != nil {
		return manifest{}, fmt.Errorf("manifest: %w", err)
	}
	out := manifest{
		mark:     mark{snapshot.Version{Generation: snapshot.Generation(m.GetSequence())}, digest},
		refs:     make(map[snapshot.TenantID]mark, len(m.GetHeads())),
		order:    m.GetHeads(),
		envelope: env,
	}
	for _, ref := range m.GetHeads() {
		id := snapshot.TenantID(ref.GetTenantId())
		_, ok := snapshot.DigestFrom(ref.GetHeadSha256())
		if _, twice := out.refs[id]; !ok || twice || !validName(string(id)) {
			return manifest{}, fmt.Errorf("manifest: %w: the reference to tenant %q", ErrInvalid, id)
		}
		out.refs[id] = markOf(ref)
	}
	return out, nil
}

func markOf(ref *snapshotv1.HeadRef) mark {
	m := mark{version: snapshot.Version{Epoch: snapshot.Epoch(ref.GetEpoch()), Generation: snapshot.Generation(ref.GetGeneration())}}
	copy(m.digest[:], ref.GetHeadSha256())
	return m
}

func readRoots(env []byte) (mark, error) {
	var r snapshotv1.Roots
	digest, err := readEnvelope(env, &r)
	if err != nil {
		return mark{}, fmt.Errorf("roots: %w", err)
	}
	return mark{snapshot.Version{Generation: snapshot.Generation(r.GetVersion())}, digest}, nil
}

func checkSessionKey(k *cellv1.SessionKey) error {
	if k.GetId() == 0 || len(k.GetKey()) != 32 {
		return fmt.Errorf("%w: a session key has an id and 32 bytes", ErrInvalid)
	}
	return nil
}

// generationKey sorts a tenant's generations by version.
func generationKey(id snapshot.TenantID, v snapshot.Version) []byte {
	k := append([]byte(id), 0)
	k = binary.BigEndian.AppendUint64(k, uint64(v.Epoch))
	return binary.BigEndian.AppendUint64(k, uint64(v.Generation))
}

func keyID(id uint32) []byte { return binary.BigEndian.AppendUint32(nil, id) }
