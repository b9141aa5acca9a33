package publish

import (
	"context"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/store"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// rotate shows every cell the roots that are in force now, and has everything signed anew that an older key has signed. A
// cell learns of a key and of what it signed in the same update.
func (p *Publisher) rotate(ctx context.Context) {
	if !p.isLoaded() {
		return // what is read then is signed with the keys of then
	}
	p.mu.Lock()
	for _, c := range p.cells {
		c.owed = true
	}
	p.mu.Unlock()
	p.renew(ctx)
	p.catchUp(ctx, nil)
}

// renew makes heads that are owed, and publishes anew what is half through its life, of an older epoch than the roots', or signed by a key that is not the
// newest any more: when the roots drop that key, no node may hold anything that only it has signed.
func (p *Publisher) renew(ctx context.Context) {
	keys := p.cfg.Keys.Current()
	var heads, kills []controlplane.TenantID
	p.mu.Lock()
	shown := true // kills are signed anew once the cells can know the key
	for _, c := range p.cells {
		shown = shown && (c.keys == nil || c.keys == keys)
	}
	for id, t := range p.tenants {
		if _, busy := p.busy[id]; busy || t.failure != nil && p.now().Before(t.failure.retryAt) {
			continue
		}
		if t.head != nil && (t.rebase || p.now().Sub(t.head.SealedAt) > HeadLife/2 || t.head.Version.Epoch < keys.Trust.Epoch() ||
			keys.Outdated(snapshotv1.KeyRole_KEY_ROLE_HEAD, t.head.Signers)) {
			heads = append(heads, id)
		}
		if shown && slices.ContainsFunc(t.kills, func(k store.Kill) bool { return outdated(keys, k) }) {
			kills = append(kills, id)
		}
	}
	p.mu.Unlock()
	for _, id := range heads {
		p.start(ctx, id, true)
	}
	for _, id := range kills {
		p.resignKills(ctx, keys, id)
	}
}

func outdated(keys *keyring.Set, k store.Kill) bool {
	return keys.Outdated(snapshotv1.KeyRole_KEY_ROLE_KILL, seal.Signers(k.Envelope))
}

// resignKills seals a tenant's kills, or with "" those of the platform, with the newest key. A kill that no roots believe
// is left as it is and said: it was not made here.
func (p *Publisher) resignKills(ctx context.Context, keys *keyring.Set, id controlplane.TenantID) {
	ctx, cancel := context.WithTimeout(ctx, pollLimit)
	defer cancel()
	var all []store.Kill
	signed := 0
	var err error
	if id == "" {
		err = p.st.Platform(ctx, func(tx *store.Tx) (err error) {
			if all, err = tx.PlatformKills(ctx); err == nil {
				signed, err = p.resign(ctx, keys, all, tx.ResealPlatformKill)
			}
			return err
		})
	} else {
		err = p.st.Record(ctx, id, func(tx *store.Tx) (err error) {
			if all, err = tx.Kills(ctx); err == nil {
				signed, err = p.resign(ctx, keys, all, tx.ResealKill)
			}
			return err
		})
	}
	if err != nil {
		p.log.WarnContext(ctx, "kills are not signed anew yet", "error", err)
		return
	}
	if signed > 0 {
		p.log.InfoContext(ctx, "kills signed anew", "tenant", id, "kills", signed, "key", keys.Kill.KeyID())
	}
	p.addKills(id, all)
}

// resign signs the kills anew that need it and says how many those were.
func (p *Publisher) resign(ctx context.Context, keys *keyring.Set, all []store.Kill, write func(ctx context.Context, id string, env []byte) error) (n int, err error) {
	for i, k := range all {
		if !outdated(keys, k) {
			continue
		}
		env, err := keys.ResignKill(k.Envelope)
		if err != nil {
			p.log.ErrorContext(ctx, "a kill cannot be signed anew", "kill", k.ID, "error", err)
			continue
		}
		if err := write(ctx, k.ID, env); err != nil {
			return n, err
		}
		all[i].Envelope = env
		n++
	}
	return n, nil
}

// killLists are the kills of one tenant, and those of all.
type killLists struct{ own, everywhere []store.Kill }

func readKills(ctx context.Context, tx *store.Tx) (k killLists, err error) {
	if k.own, err = tx.Kills(ctx); err != nil {
		return k, err
	}
	k.everywhere, err = tx.PlatformKills(ctx)
	return k, err
}

func (p *Publisher) showKills(id controlplane.TenantID, k killLists) {
	p.addKills(id, k.own)
	p.addKills("", k.everywhere)
}

// addKills shows kills to the cells of the tenant, or with "" to all of them.
func (p *Publisher) addKills(id controlplane.TenantID, kills []store.Kill) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.tenant(id)
	if len(kills) >= len(t.kills) {
		t.kills = kills
	}
	for name, c := range p.cells {
		if id != "" && !p.homedIn(t.name, name) {
			continue
		}
		if id == "" {
			c.view.KilledNodes = killedNodes(name, t.kills)
		}
		if c.add(id, t.kills) {
			c.announce()
		}
	}
}

// killedNodes are the names of the nodes of a cell that were killed.
func killedNodes(cell string, kills []store.Kill) map[string]bool {
	var all map[string]bool
	for _, k := range kills {
		in, node, ok := strings.Cut(k.Subject, "/")
		if k.Kind != "node" || !ok || in != cell {
			continue
		}
		if all == nil {
			all = map[string]bool{}
		}
		all[node] = true
	}
	return all
}

// add appends what is new and replaces what was signed anew. The view's slice is never written to where somebody reads it.
func (c *cellState) add(id controlplane.TenantID, kills []store.Kill) (changed bool) {
	resigned := false
	for _, k := range kills {
		at, known := c.sent[k.ID]
		switch {
		case !known:
			c.sent[k.ID] = len(c.view.Kills)
			c.view.Kills = append(c.view.Kills, KillRecord{ID: k.ID, TenantID: id, Envelope: k.Envelope})
			changed = true
		case string(c.view.Kills[at].Envelope) != string(k.Envelope):
			if !resigned {
				c.view.Kills = slices.Clone(c.view.Kills)
				c.view.Resigned++
			}
			resigned = true
			c.view.Kills[at].Envelope = k.Envelope
		}
	}
	return changed || resigned
}
