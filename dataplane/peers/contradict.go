package peers

import (
	"bytes"
	"fmt"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// Contradictions are where two nodes hold different contents under one number: the manifest, or a tenant's generation.
// Whoever signs two bodies under one number shows each cell, or each node, another policy. Numbers that only one of the
// two has are no contradiction: one of them is late.
func Contradictions(own, other *cellv1.NodeStatus) []string {
	var all []string
	if n := own.GetManifestSequence(); n != 0 && n == other.GetManifestSequence() && !bytes.Equal(own.GetManifestRoot(), other.GetManifestRoot()) {
		all = append(all, fmt.Sprintf("manifest %d", n))
	}
	type version struct {
		tenant            string
		epoch, generation uint64
	}
	mine := map[version]*cellv1.AppliedHead{}
	for _, a := range own.GetApplied() {
		mine[version{a.GetTenantId(), a.GetEpoch(), a.GetGeneration()}] = a
	}
	for _, a := range other.GetApplied() {
		have, both := mine[version{a.GetTenantId(), a.GetEpoch(), a.GetGeneration()}]
		switch name := fmt.Sprintf("generation %d.%d of tenant %s", a.GetEpoch(), a.GetGeneration(), a.GetTenantId()); {
		case !both:
		case differ(a.GetDigest(), have.GetDigest()):
			all = append(all, name)
		case differ(a.GetStateHash(), have.GetStateHash()):
			all = append(all, "the state of "+name)
		}
	}
	return all
}

// differ compares what both nodes say; one of an older release says nothing.
func differ(a, b []byte) bool { return len(a) > 0 && len(b) > 0 && !bytes.Equal(a, b) }

// Proven reports whether two updates show that the holder of a signing key has sealed two bodies under one number. Without
// it the contradiction is only what the other node says.
func Proven(trust *seal.Trust, cell string, own, other *cellv1.Update) bool {
	a, errA := trust.OpenManifest(own.GetManifest(), cell)
	b, errB := trust.OpenManifest(other.GetManifest(), cell)
	if errA == nil && errB == nil && a.GetSequence() == b.GetSequence() && !bytes.Equal(a.GetRoot(), b.GetRoot()) {
		return true
	}
	type version struct {
		tenant            string
		epoch, generation uint64
	}
	seen := map[version][]byte{}
	for _, env := range own.GetHeads() {
		if h, err := trust.OpenHead(env); err == nil {
			seen[version{h.GetTenantId(), h.GetEpoch(), h.GetGeneration()}] = env
		}
	}
	for _, env := range other.GetHeads() {
		h, err := trust.OpenHead(env)
		if err != nil {
			continue
		}
		if have, both := seen[version{h.GetTenantId(), h.GetEpoch(), h.GetGeneration()}]; both && !seal.SamePayload(have, env) {
			return true
		}
	}
	return false
}
