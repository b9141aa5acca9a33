package publish

import (
	"context"
	"errors"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/snapshot"
)

// load reads what is in force, once PostgreSQL can be asked. It reports whether that is known now.
func (p *Publisher) load(ctx context.Context) bool {
	if p.lost(ctx, p.loadAll(ctx)) {
		return false
	}
	p.mu.Lock()
	p.loaded = true
	p.mu.Unlock()
	return true
}

func (p *Publisher) loadAll(ctx context.Context) error {
	tenants, err := p.st.Tenants(ctx)
	if err != nil {
		return err
	}
	for _, t := range tenants {
		if _, err := p.reloadTenant(ctx, t.ID); err != nil {
			return err
		}
		// The settings may home tenants elsewhere than they did before.
		if err := p.st.Record(ctx, t.ID, func(tx *store.Tx) error { return p.home(ctx, tx, t, nil) }); err != nil {
			return err
		}
	}
	for _, cell := range p.Cells() {
		if err := p.manifest(ctx, cell, 0); err != nil {
			return err
		}
	}
	return nil
}

// follow looks at what another control plane published: one tenant, or all of them when hints may have been lost.
func (p *Publisher) follow(ctx context.Context, who string) {
	tenant, publisher, _ := strings.Cut(who, " ")
	switch {
	case publisher == p.id || !p.isLoaded():
	case tenant != "":
		p.aside(func() { p.reload(ctx, controlplane.TenantID(tenant)) })
	default:
		p.aside(func() {
			tenants, err := p.st.Tenants(ctx)
			if err != nil {
				return // the listener lost its connection again, and gives a new hint when it is back
			}
			for _, t := range tenants {
				p.reload(ctx, t.ID)
			}
		})
	}
}

// reload shows what another control plane published of a tenant. It reports whether that could be read.
func (p *Publisher) reload(ctx context.Context, id controlplane.TenantID) bool {
	newer, err := p.reloadTenant(ctx, id)
	if err != nil {
		if ctx.Err() == nil {
			p.log.WarnContext(ctx, "generation of another control plane cannot be read", "error", err)
		}
		return false
	}
	if !newer {
		return true
	}
	if err := p.show(ctx, id, nil); err != nil {
		p.log.WarnContext(ctx, "generation of another control plane cannot be shown", "error", err)
	}
	return true
}

// reloadTenant reads what is stored, and reports whether that is newer than what was known.
func (p *Publisher) reloadTenant(ctx context.Context, id controlplane.TenantID) (newer bool, err error) {
	var self controlplane.Tenant
	var head *Head
	var kills killLists
	err = p.st.Read(ctx, id, func(tx *store.Tx) (err error) {
		if self, err = tx.Self(ctx); err != nil {
			return err
		}
		if kills, err = readKills(ctx, tx); err != nil {
			return err
		}
		if head, err = Load(ctx, tx, snapshot.Version{}); errors.Is(err, store.ErrNotFound) {
			head, err = nil, nil
		}
		return err
	})
	if err != nil {
		return false, err
	}
	p.mu.Lock()
	t := p.tenant(id)
	t.name = self.Name
	newer = p.enforce(t, head)
	p.mu.Unlock()
	p.showKills(id, kills)
	return newer, nil
}

// catchUp does what hints and lost connections left undone. A manifest that could not be numbered is made now. A number
// that went up without us means that another control plane has published: without looking, we would go on signing that
// our older root is the newest.
func (p *Publisher) catchUp(ctx context.Context, numbers map[string]uint64) {
	elsewhere := false
	var owed []string
	p.mu.Lock()
	for name, c := range p.cells {
		if numbers[name] > c.number {
			c.number, elsewhere = numbers[name], true
		}
		if c.owed {
			owed = append(owed, name)
		}
	}
	p.mu.Unlock()
	for _, cell := range owed {
		p.aside(func() {
			if err := p.manifest(ctx, cell, 0); err != nil && ctx.Err() == nil {
				p.log.WarnContext(ctx, "manifest cannot be made", "cell", cell, "error", err)
			}
		})
	}
	if elsewhere {
		p.aside(func() { p.reloadNewer(ctx) })
	}
}

// reloadNewer reads the tenants that have a newer generation than is known here.
func (p *Publisher) reloadNewer(ctx context.Context) {
	var newest map[controlplane.TenantID]snapshot.Version
	limited, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	err := p.st.Platform(limited, func(tx *store.Tx) (err error) {
		newest, err = tx.Newest(limited)
		return err
	})
	if err != nil {
		p.forgetNumbers() // so that the next poll looks again
		return
	}
	for id, version := range newest {
		if h := p.Head(id); h == nil || version.Newer(h.Version) {
			if !p.reload(limited, id) {
				p.forgetNumbers()
			}
		}
	}
}

func (p *Publisher) forgetNumbers() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.cells {
		c.number = c.sequence
	}
}
