package feed

import (
	"context"
	"errors"
	"fmt"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// errBehind means that the control plane offers less than this cell has had, or something else under the same number. It
// works on another database: one that was restored from a backup, or a new one. Nothing of it is taken; a control plane
// that is merely late has caught up with its next update.
var errBehind = errors.New("the control plane is behind this cell, as if its database had been replaced; what is verified is served until its lease ends")

// trouble is an update that was not taken.
type trouble struct {
	err    error
	offers map[snapshot.TenantID]*offer
	// beats are the heartbeats since: one comes right behind each update.
	beats int
}

// beatsBehind is how many heartbeats show that the control plane is behind and not just this stream: the cell's log may
// bring an update before the stream brings the one before it.
const beatsBehind = 2

// Problem is why what the control plane offers is not taken; nil when it is.
func (f *Feed) Problem() error {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	if t := f.trouble; t != nil && t.beats >= beatsBehind {
		return t.err
	}
	return f.refusal()
}

// setTrouble reports whether the control plane has been behind for so long that each of its generations is answered.
func (f *Feed) setTrouble(err error, offers map[snapshot.TenantID]*offer) (lasting bool) {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	if err == nil {
		f.trouble = nil
		return false
	}
	if f.trouble == nil {
		f.trouble = &trouble{}
	}
	f.trouble.err, f.trouble.offers = err, offers
	return f.trouble.beats >= beatsBehind
}

// stillBehind says so, once, when the control plane stays behind: in the log, and to itself for each generation that it offers.
func (f *Feed) stillBehind(ctx context.Context) {
	f.connMu.Lock()
	t := f.trouble
	if t != nil {
		t.beats++
	}
	said := t == nil || t.beats != beatsBehind
	f.connMu.Unlock()
	if said {
		return
	}
	f.log.ErrorContext(ctx, "refused what the control plane sent", "err", t.err)
	f.nackOlder(t.offers)
}

// behind compares a verified manifest, and what came with it, with what this node holds and with the floors of its tenants.
// A tenant of which nothing came is offered at the manifest's head, or further on by deltas that came before.
func (f *Feed) behind(trust *seal.Trust, env []byte, m *snapshotv1.Manifest, offers map[snapshot.TenantID]*offer) error {
	chains := f.cfg.Store.Chains()
	for _, ref := range m.GetHeads() {
		id := snapshot.TenantID(ref.GetTenantId())
		offered := snapshot.Version{Epoch: snapshot.Epoch(ref.GetEpoch()), Generation: snapshot.Generation(ref.GetGeneration())}
		digest := string(ref.GetHeadSha256())
		if o := offers[id]; o != nil {
			end := o.end()
			offered, digest = end.version, string(end.digest[:])
		} else if chain, ok := chains[id]; !ok || len(chain.Deltas) > 0 && headIs(chain.Head, digest) {
			continue
		}
		floor, have := f.cfg.Store.FloorDigest(id)
		if floor.Newer(offered) {
			return fmt.Errorf("%w: tenant %s is offered at generation %s, %s was taken before", errBehind, id, offered, floor)
		}
		if offered == floor && digest != string(have[:]) {
			return fmt.Errorf("%w: tenant %s is offered at generation %s with other contents", errBehind, id, offered)
		}
	}
	stored := f.cfg.Store.Manifest()
	if stored == nil {
		return nil
	}
	have, err := trust.OpenManifest(stored, f.cfg.Cell)
	switch {
	case err != nil:
		return nil //nolint:nilerr // signed by keys that are withdrawn: what replaces it is judged by its heads
	case m.GetSequence() < have.GetSequence():
		return fmt.Errorf("%w: manifest %d is offered, %d was taken before", errBehind, m.GetSequence(), have.GetSequence())
	case m.GetSequence() == have.GetSequence() && !seal.SamePayload(env, stored):
		return fmt.Errorf("%w: manifest %d is offered with other contents", errBehind, m.GetSequence())
	}
	return nil
}

// headIs reports whether an envelope is that of the head which a reference names.
func headIs(env []byte, digest string) bool {
	d, err := seal.HeadDigest(env)
	return err == nil && string(d[:]) == digest
}

// nackOlder answers each generation that is older than what this cell has had.
func (f *Feed) nackOlder(offers map[snapshot.TenantID]*offer) {
	for id, o := range offers {
		if floor := f.cfg.Store.Floor(id); floor.Newer(o.end().version) {
			f.nack(o.end(), fmt.Errorf("%w: generation %s was taken before", errBehind, floor))
		}
	}
}
