package publish

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// work is what one round found and made.
type work struct {
	tenant controlplane.Tenant
	head   *Head
	kills  killLists
	// rows is the newest outbox row that was looked at.
	rows int64
	// unfit is true when it is the rows that cannot be published, and not PostgreSQL that failed.
	unfit bool
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
		p.m.published(p.now().Sub(w.head.CommittedAt), force)
		p.log.InfoContext(ctx, "generation published", "tenant", w.tenant.Name, "generation", w.head.Version.String(),
			"revision", w.head.Revision, "duration", p.now().Sub(w.head.CommittedAt))
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
	return p.generation(ctx, tx, w)
}

// generation compiles one consistent view and stores what came out.
func (p *Publisher) generation(ctx context.Context, tx *store.Tx, w *work) error {
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
	if _, err := index.Open(out.Index); err != nil {
		return fmt.Errorf("the compiled index does not open: %w", err)
	}
	w.unfit = false
	for _, n := range out.Report.Notes {
		p.log.WarnContext(ctx, "grant needs attention", "tenant", in.Tenant.Name, "grant", n.Grant, "problem", n.Problem)
	}
	last, err := tx.Generation(ctx, 0)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	committed, err := tx.CommittedAt(ctx, in.Tenant.Revision)
	if err != nil {
		return err
	}
	if committed.IsZero() {
		committed = tx.Now()
	}
	g, err := p.seal(in.Tenant, last, out)
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
	if w.head, err = headOf(tx.Tenant(), g); err != nil {
		return err
	}
	return tx.AnnounceGeneration(ctx, p.id)
}

// seal numbers and signs: one up within an epoch, from 1 in a new one.
func (p *Publisher) seal(t controlplane.Tenant, last store.Generation, out *compile.Output) (store.Generation, error) {
	keys := p.cfg.Keys.Current()
	g := store.Generation{Epoch: uint64(keys.Trust.Epoch()), Generation: 1, Revision: t.Revision}
	if known := max(last.Epoch, t.Epoch); known > g.Epoch {
		return g, problem.Newf(problem.Conflict, "install the newest roots in keys_dir",
			"tenant %s was published in epoch %d, and the roots here know %d only", t.Name, known, g.Epoch)
	}
	if last.Epoch == g.Epoch {
		g.Generation = last.Generation + 1
	}
	now := p.now()
	head := &snapshotv1.Head{
		TenantId: string(t.ID), Tenant: t.Name, Epoch: g.Epoch, Generation: g.Generation, Revision: g.Revision,
		Parent: last.PayloadSHA256, NotBeforeMs: now.Add(-clockSkew).UnixMilli(), NotAfterMs: now.Add(HeadLife).UnixMilli(),
		Compiler: compile.ID, Shards: out.Shards,
	}
	env, err := seal.SignHead(head, keys.Head)
	if err != nil {
		return g, err
	}
	digest, err := seal.HeadDigest(env)
	if err != nil {
		return g, err
	}
	g.Envelope, g.PayloadSHA256 = env, digest[:]
	for _, s := range out.Shards {
		g.Size += s.GetSize()
	}
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
		in.Issuers = p.cfg.Issuers(in.Tenant)
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
	in.Staleness, err = tx.Staleness(ctx)
	return in, err
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

func headOf(id controlplane.TenantID, g store.Generation) (*Head, error) {
	env := &Head{
		TenantID: id, Version: snapshot.Version{Epoch: snapshot.Epoch(g.Epoch), Generation: snapshot.Generation(g.Generation)},
		Revision: g.Revision, Envelope: g.Envelope, CreatedAt: g.CreatedAt, CommittedAt: g.CommittedAt, Signers: seal.Signers(g.Envelope),
	}
	var ok bool
	if env.Digest, ok = snapshot.DigestFrom(g.PayloadSHA256); !ok {
		return nil, fmt.Errorf("stored generation %d has a digest of %d bytes", g.Generation, len(g.PayloadSHA256))
	}
	head, err := ReadHead(g.Envelope)
	if err != nil {
		return nil, err
	}
	for _, s := range head.GetShards() {
		if d, ok := snapshot.DigestFrom(s.GetSha256()); ok {
			env.Shards = append(env.Shards, d)
		}
	}
	return env, nil
}
