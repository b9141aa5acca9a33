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
	err   error
	heads [][]byte
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

// setTrouble reports whether the control plane has been behind for so long that each of its heads is answered.
func (f *Feed) setTrouble(err error, heads [][]byte) (lasting bool) {
	f.connMu.Lock()
	defer f.connMu.Unlock()
	if err == nil {
		f.trouble = nil
		return false
	}
	if f.trouble == nil {
		f.trouble = &trouble{}
	}
	f.trouble.err, f.trouble.heads = err, heads
	return f.trouble.beats >= beatsBehind
}

// stillBehind says so, once, when the control plane stays behind: in the log, and to itself for each head that it offers.
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
	f.nackOlder(f.cfg.Trust.Current(), t.heads)
}

// behind compares a verified manifest with the one that this node holds and with the floors of its tenants.
func (f *Feed) behind(trust *seal.Trust, env []byte, m *snapshotv1.Manifest) error {
	heads := f.cfg.Store.Heads()
	for _, ref := range m.GetHeads() {
		id := snapshot.TenantID(ref.GetTenantId())
		offered := snapshot.Version{Epoch: snapshot.Epoch(ref.GetEpoch()), Generation: snapshot.Generation(ref.GetGeneration())}
		floor := f.cfg.Store.Floor(id)
		if floor.Newer(offered) {
			return fmt.Errorf("%w: tenant %s is offered at generation %s, %s was taken before", errBehind, id, offered, floor)
		}
		if offered != floor || heads[id] == nil {
			continue
		}
		if have, d, err := openHead(trust, heads[id]); err == nil && snapshot.VersionOf(have) == offered && string(d[:]) != string(ref.GetHeadSha256()) {
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

// nackOlder answers each head that is older than what this cell has had.
func (f *Feed) nackOlder(trust *seal.Trust, envelopes [][]byte) {
	for _, env := range envelopes {
		head, digest, err := openHead(trust, env)
		if err != nil {
			continue
		}
		if floor := f.cfg.Store.Floor(snapshot.TenantID(head.GetTenantId())); floor.Newer(snapshot.VersionOf(head)) {
			f.nack(head, digest, fmt.Errorf("%w: generation %s was taken before", errBehind, floor))
		}
	}
}
