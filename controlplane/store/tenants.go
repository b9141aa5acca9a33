package store

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlInsertTenant = `INSERT INTO tenants (id, name, hosts, revision, epoch, created_at) VALUES ($1, $2, $3, 1, 1, $4)`
	sqlListTenants  = `SELECT id::text, name, hosts, revision, epoch, created_at FROM tenants ORDER BY name`
	sqlTenantByName = `SELECT id::text, name, hosts, revision, epoch, created_at FROM tenants WHERE name = $1`
	sqlRaiseEpoch   = `UPDATE tenants SET epoch = $2 WHERE id = $1 AND epoch < $2`
	sqlTenantByID   = `SELECT id::text, name, hosts, revision, epoch, created_at FROM tenants WHERE id = $1`
)

// CreateTenant makes a tenant; its first ledger entry says so. It is a conflict when the name or a host is taken, of
// whichever tenant.
func (s *Store) CreateTenant(ctx context.Context, actor, name string, hosts []string) (controlplane.Tenant, error) {
	hosts = slices.Compact(slices.Sorted(slices.Values(hosts)))
	t := controlplane.Tenant{ID: controlplane.TenantID(NewID()), Name: name, Hosts: hosts, Revision: 1, Epoch: 1}
	_, err := s.write(ctx, t.ID, actor, func(tx *Tx) error {
		return tx.Change(ctx, "tenant.create", "tenant:"+name, map[string]any{"id": t.ID, "hosts": hosts})
	}, func(tx *Tx) error {
		t.CreatedAt, tx.revision = tx.now, 1
		_, err := tx.exec(ctx, sqlInsertTenant, t.ID, t.Name, orEmpty(hosts), tx.now)
		return err
	})
	return t, err
}

// Tenants lists the tenants that the transaction may see, by name: all of them in a platform transaction.
func (tx *Tx) Tenants(ctx context.Context) ([]controlplane.Tenant, error) {
	return all(ctx, tx, scanTenant, sqlListTenants)
}

// TenantByName finds one tenant; not_found when there is none, or none that the transaction may see.
func (tx *Tx) TenantByName(ctx context.Context, name string) (controlplane.Tenant, error) {
	t, err := one(ctx, tx, scanTenant, sqlTenantByName, name)
	return t, missing(err, "tenant %s does not exist", name)
}

// RaiseEpoch lets the tenant's epoch follow that of the roots. It never goes down.
func (tx *Tx) RaiseEpoch(ctx context.Context, epoch uint64) error {
	_, err := tx.exec(ctx, sqlRaiseEpoch, tx.tenant, int64(epoch))
	return err
}

// Self is the tenant of the transaction, as this view has it.
func (tx *Tx) Self(ctx context.Context) (controlplane.Tenant, error) {
	t, err := one(ctx, tx, scanTenant, sqlTenantByID, orNull(string(tx.tenant)))
	return t, missing(err, "tenant %s does not exist", tx.tenant)
}

// Tenants lists all tenants, by name.
func (s *Store) Tenants(ctx context.Context) (tenants []controlplane.Tenant, err error) {
	err = s.Platform(ctx, func(tx *Tx) error {
		tenants, err = tx.Tenants(ctx)
		return err
	})
	return tenants, err
}

// TenantByName finds one tenant, or not_found.
func (s *Store) TenantByName(ctx context.Context, name string) (t controlplane.Tenant, err error) {
	err = s.Platform(ctx, func(tx *Tx) error {
		t, err = tx.TenantByName(ctx, name)
		return err
	})
	return t, err
}

func scanTenant(row pgx.CollectableRow) (controlplane.Tenant, error) {
	var t controlplane.Tenant
	var rev, epoch int64
	var at time.Time
	err := row.Scan((*string)(&t.ID), &t.Name, &t.Hosts, &rev, &epoch, &at)
	t.Revision, t.Epoch, t.CreatedAt = uint64(rev), uint64(epoch), at.UTC()
	return t, err
}

// orEmpty is for array columns that are not null.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
