package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	"github.com/mcpvault/mcpvault/controlplane/issuers"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// work is what one round found and made.
type work struct {
	tenant controlplane.Tenant
	head   *Head
	// index is the head's, deltas applied.
	index *index.Index
	kills killLists
	// rows is the newest outbox row that was looked at.
	rows int64
	// unfit is true when it is the rows that cannot be published, and not PostgreSQL that failed.
	unfit bool
	// why says why the generation is a head; empty for a delta.
	why rebase
	// sequences are the new manifests' numbers by cell.
	sequences map[string]uint64
}

// publish brings one tenant up to date: kills first, because they need no compiling and are urgent.
func (p *Publisher) publish(ctx context.Context, tenant controlplane.TenantID, force bool) {
	var w work
	limited, cancel := context.WithTimeout(ctx, publishLimit)
	defer cancel()
	err := p.st.Record(limited, tenant, func(tx *store.Tx) (err error) {
		w = work{sequences: map[string]uint64{}}
		return p.round(limited, tx, &w, force)
	})
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		p.failed(ctx, tenant, w, err)
		return
	}
	if err := p.install(ctx, tenant, w); err != nil {
		p.log.ErrorContext(ctx, "generation is stored but cannot be announced", "tenant", w.tenant.Name, "error", err)
		return
	}
	if w.head != nil {
		p.m.published(p.now().Sub(w.head.CommittedAt), force, w.why == "")
		attrs := []any{
			"tenant", w.tenant.Name, "generation", w.head.Version.String(), "revision", w.head.Revision,
			"duration", p.now().Sub(w.head.CommittedAt),
		}
		if w.why != "" {
			attrs = append(attrs, "rebase", string(w.why))
		}
		p.log.InfoContext(ctx, "generation published", attrs...)
	}
}

func (p *Publisher) refreshKills(ctx context.Context, tenant controlplane.TenantID) {
	var kills killLists
	err := p.st.Read(ctx, tenant, func(tx *store.Tx) (err error) {
		kills, err = readKills(ctx, tx)
		return err
	})
	if err == nil {
		p.showKills(tenant, kills)
	}
}

// round does the work of one tenant under its lock, in one transaction.
func (p *Publisher) round(ctx context.Context, tx *store.Tx, w *work, force bool) error {
	if err := tx.LockPublish(ctx); err != nil {
		return err
	}
	open, err := tx.Pending(ctx)
	if err != nil || len(open) == 0 && !force {
		return err
	}
	policy := force
	for _, o := range open { // one, or none
		w.rows, policy = o.Newest, policy || o.Policy
	}
	// Kills that are seen here are committed: the cells are shown them before anything is compiled.
	if w.kills, err = readKills(ctx, tx); err != nil {
		return err
	}
	p.showKills(tx.Tenant(), w.kills)
	for _, o := range open {
		if err := tx.FinishOutbox(ctx, tx.Tenant(), store.OutboxKill, o.Revision); err != nil {
			return err
		}
	}
	if !policy {
		w.tenant, err = tx.Self(ctx)
		return err
	}
	return p.generation(ctx, tx, w, force)
}

// generation compiles one consistent view and stores what came out.
func (p *Publisher) generation(ctx context.Context, tx *store.Tx, w *work, force bool) error {
	// The view is taken after the lock, on a connection of its own: it holds everything that anybody published before.
	in, err := p.read(ctx, tx.Tenant())
	if err != nil {
		return err
	}
	w.tenant, w.unfit = in.Tenant, true
	out, err := compile.Compile(in)
	if err != nil {
		return err
	}
	fresh, err := index.Open(out.Index)
	if err != nil {
		return fmt.Errorf("the compiled index does not open: %w", err)
	}
	w.unfit = false
	for _, n := range out.Report.Notes {
		p.log.WarnContext(ctx, "grant needs attention", "tenant", in.Tenant.Name, "grant", n.Grant, "problem", n.Problem)
	}
	last, err := newest(ctx, tx)
	if err != nil {
		return err
	}
	committed, err := tx.CommittedAt(ctx, in.Tenant.Revision)
	if err != nil {
		return err
	}
	if committed.IsZero() {
		committed = tx.Now()
	}
	next := candidate{
		tenant: in.Tenant, last: last, out: out, keys: p.cfg.Keys.Current(), index: fresh, force: force || p.rebaseAsked(tx.Tenant()),
	}
	g, err := p.difference(ctx, tx, &next)
	var why rebase
	if errors.As(err, &why) {
		g, err = p.seal(&next)
	}
	if err != nil {
		return err
	}
	if err := tx.RaiseEpoch(ctx, g.Epoch); err != nil {
		return err
	}
	g.CreatedAt, g.CommittedAt = tx.Now(), committed
	blobs := []store.Blob{{SHA256: out.Shards[0].GetSha256(), Bytes: out.Index}, {SHA256: out.Shards[1].GetSha256(), Bytes: out.Catalogue}}
	if err := tx.InsertGeneration(ctx, g, blobs); err != nil {
		return err
	}
	if err := tx.FinishOutbox(ctx, tx.Tenant(), store.OutboxPolicy, in.Tenant.Revision); err != nil {
		return err
	}
	if err := tx.ForgetGenerations(ctx, KeepGenerations, tx.Now().Add(-p.cfg.KeepFor)); err != nil {
		return err
	}
	if err := p.home(ctx, tx, in.Tenant, w.sequences); err != nil {
		return err
	}
	w.index, w.why = next.index, why
	if w.head, err = headOf(tx.Tenant(), append(next.last, g)); err != nil {
		return err
	}
	return tx.AnnounceGeneration(ctx, p.id)
}

// newest is what the newest generation is made of; nil when there is none.
func newest(ctx context.Context, tx *store.Tx) ([]store.Generation, error) {
	g, err := tx.Generation(ctx, 0)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return tx.Chain(ctx, g)
}

// candidate is a tenant's next generation on its way.
type candidate struct {
	tenant controlplane.Tenant
	// last is what the generation before is made of; nil when there is none.
	last []store.Generation
	out  *compile.Output
	keys *keyring.Set
	// index is what was compiled; when it is sent as a delta, the one before with that delta applied.
	index *index.Index
	force bool
}

// number is one up within an epoch, from 1 in a new one.
func (c *candidate) number() (store.Generation, error) {
	g := store.Generation{Epoch: uint64(c.keys.Trust.Epoch()), Generation: 1, Revision: c.tenant.Revision}
	var newest store.Generation
	if len(c.last) > 0 {
		newest = c.last[len(c.last)-1]
	}
	if known := max(newest.Epoch, c.tenant.Epoch); known > g.Epoch {
		return g, problem.Newf(problem.Conflict, "install the newest roots in keys_dir",
			"tenant %s was published in epoch %d, and the roots here know %d only", c.tenant.Name, known, g.Epoch)
	}
	if newest.Epoch == g.Epoch {
		g.Generation = newest.Generation + 1
	}
	return g, nil
}

// parent is the digest of the generation before; empty for the first.
func (c *candidate) parent() []byte {
	if len(c.last) == 0 {
		return nil
	}
	return c.last[len(c.last)-1].PayloadSHA256
}

// seal numbers and signs a head.
func (p *Publisher) seal(c *candidate) (store.Generation, error) {
	g, err := c.number()
	if err != nil {
		return g, err
	}
	now, state := p.now(), c.index.StateHash()
	head := &snapshotv1.Head{
		TenantId: string(c.tenant.ID), Tenant: c.tenant.Name, Epoch: g.Epoch, Generation: g.Generation, Revision: g.Revision,
		Parent: c.parent(), NotBeforeMs: now.Add(-clockSkew).UnixMilli(), NotAfterMs: now.Add(HeadLife).UnixMilli(),
		Compiler: compile.ID, Shards: c.out.Shards, StateHash: state[:],
	}
	env, err := seal.SignHead(head, c.keys.Head)
	if err != nil {
		return g, err
	}
	digest, err := seal.HeadDigest(env)
	if err != nil {
		return g, err
	}
	g.Base, g.Envelope, g.PayloadSHA256 = g.Generation, env, digest[:]
	for _, s := range c.out.Shards {
		g.Size += s.GetSize()
	}
	c.last = nil
	return g, nil
}

// home notes where the tenant is homed and, unless sequences is nil, takes a number for the next manifest of each of its
// cells.
func (p *Publisher) home(ctx context.Context, tx *store.Tx, t controlplane.Tenant, sequences map[string]uint64) error {
	for _, cell := range sortedNames(p.cfg.Cells) {
		h := store.CellTenant{Cell: cell, TenantID: t.ID}
		if !p.homedIn(t.Name, cell) {
			if err := tx.Unhome(ctx, h); err != nil {
				return err
			}
			continue
		}
		if err := tx.EnsureCell(ctx, cell); err != nil {
			return err
		}
		if err := tx.Home(ctx, h); err != nil {
			return err
		}
		if sequences == nil {
			continue
		}
		n, err := tx.NextManifest(ctx, cell)
		if err != nil {
			return err
		}
		sequences[cell] = n
	}
	return nil
}

func (p *Publisher) homedIn(tenant, cell string) bool {
	list := p.cfg.Cells[cell]
	return slices.Contains(list, tenant) || slices.Contains(list, Everyone)
}

// failed keeps why, where people look for it, and leaves the last good generation in force.
func (p *Publisher) failed(ctx context.Context, id controlplane.TenantID, w work, err error) {
	p.mu.Lock()
	t := p.tenant(id)
	if w.tenant.Name != "" {
		t.name = w.tenant.Name
	}
	f := &Failure{Tenant: t.name, Message: err.Error(), Since: p.now(), retryAt: p.now().Add(failureRetry), rows: w.rows}
	if t.failure != nil {
		f.Since = t.failure.Since
	}
	if !w.unfit {
		f.retryAt = p.now() // PostgreSQL, not the rows: try again at the next poll
	}
	t.failure = f
	p.mu.Unlock()
	p.log.ErrorContext(ctx, "tenant cannot be published", "tenant", f.Tenant, "error", err)
	p.m.failed(w.unfit)
	if !w.unfit {
		return
	}
	if err := p.st.Record(ctx, id, func(tx *store.Tx) error { return tx.NotePublishError(ctx, f.Message) }); err != nil {
		p.log.WarnContext(ctx, "the reason cannot be stored", "tenant", f.Tenant, "error", err)
	}
}

// tenant finds or makes the state. p.mu is held.
func (p *Publisher) tenant(id controlplane.TenantID) *tenantState {
	t := p.tenants[id]
	if t == nil {
		t = &tenantState{name: string(id)}
		p.tenants[id] = t
	}
	return t
}

// read takes one consistent view of everything that decides.
func (p *Publisher) read(ctx context.Context, tenant controlplane.TenantID) (in compile.Input, err error) {
	err = p.st.Read(ctx, tenant, func(tx *store.Tx) (err error) {
		in, err = ReadInput(ctx, tx)
		return err
	})
	if err == nil && p.cfg.Issuers != nil {
		in.Issuers = append(in.Issuers, p.cfg.Issuers(in.Tenant)...)
	}
	return in, err
}

// ReadInput reads everything that decides in the tenant, as one consistent view when the transaction is one.
func ReadInput(ctx context.Context, tx *store.Tx) (in compile.Input, err error) {
	rows, err := tx.PolicyRows(ctx)
	if err != nil {
		return in, err
	}
	grants, err := tx.Grants(ctx)
	if err != nil {
		return in, err
	}
	in = inputOf(rows, grants)
	if in.Servers, err = readServers(ctx, tx); err != nil {
		return in, err
	}
	if in.Endpoints, err = tx.Endpoints(ctx); err != nil {
		return in, err
	}
	at := make(map[string]int, len(in.Servers))
	for i, s := range in.Servers {
		at[s.Name] = i
	}
	for _, e := range in.Endpoints {
		for _, l := range e.Links {
			if i, ok := at[l.Server]; ok {
				in.Servers[i].Links = append(in.Servers[i].Links, l)
			}
		}
	}
	labels, err := tx.Labels(ctx)
	if err != nil {
		return in, err
	}
	for _, l := range labels {
		if i, ok := at[l.Server]; ok {
			in.Servers[i].Labels = append(in.Servers[i].Labels, l)
		}
	}
	policies, err := tx.Policies(ctx)
	if err != nil {
		return in, err
	}
	for _, pol := range policies {
		in.Policies = append(in.Policies, compile.Policy{Name: pol.Name, Text: pol.Text})
	}
	if in.Issuers, err = readIssuers(ctx, tx); err != nil {
		return in, err
	}
	if in.Staleness, err = tx.Staleness(ctx); err != nil {
		return in, err
	}
	if in.RateLimits, err = tx.RateLimits(ctx); err != nil {
		return in, err
	}
	if in.Sessions, err = tx.SessionLimits(ctx); err != nil {
		return in, err
	}
	in.Guards, err = tx.Guards(ctx)
	return in, err
}

func readIssuers(ctx context.Context, tx *store.Tx) ([]*snapshotv1.Issuer, error) {
	rows, err := tx.Issuers(ctx)
	out := make([]*snapshotv1.Issuer, 0, len(rows)+1)
	for _, row := range rows {
		i, err := issuers.ToSnapshot(row)
		if err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, err
}

func inputOf(rows store.PolicyRows, grants []store.Grant) compile.Input {
	in := compile.Input{
		Tenant: rows.Tenant, Users: make([]compile.User, len(rows.Users)), Grants: make([]compile.Grant, len(grants)),
		Units: nodes(rows.Units), Teams: nodes(rows.Teams), Groups: nodes(rows.Groups), Roles: nodes(rows.Roles),
	}
	for i, u := range rows.Users {
		in.Users[i] = compile.User(u)
	}
	for i, g := range grants {
		in.Grants[i] = compile.Grant{
			ID: g.ID, Deny: g.Deny, Subject: g.Subject, Target: g.Target, Condition: g.Condition, Limits: g.Limits,
			NotBefore: g.NotBefore, ExpiresAt: g.ExpiresAt,
		}
	}
	return in
}

// readServers reads the servers that have a published version.
func readServers(ctx context.Context, tx *store.Tx) ([]compile.Server, error) {
	servers, err := tx.Servers(ctx)
	if err != nil {
		return nil, err
	}
	versions, err := tx.PublishedVersions(ctx)
	if err != nil {
		return nil, err
	}
	var out []compile.Server
	for _, s := range servers {
		if v, ok := versions[s.ID]; ok {
			out = append(out, compile.Server{
				ID: s.ID, Name: s.Name, Version: v.Number, Digest: v.Digest, Surface: v.Surface,
				ProtocolVersions: v.ProtocolVersions, Effects: v.Effects,
			})
		}
	}
	return out, nil
}

func nodes(list []store.PolicyNode) []compile.Node {
	out := make([]compile.Node, len(list))
	for i, n := range list {
		out[i] = compile.Node(n)
	}
	return out
}
