package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/mcpvault/mcpvault/controlplane"
)

const (
	sqlEndpointColumns = `SELECT id::text, name, owner, class, regions, access FROM endpoints WHERE tenant_id = $1 `
	sqlEndpoints       = sqlEndpointColumns + `ORDER BY name`
	sqlEndpoint        = sqlEndpointColumns + `AND name = $2`
	sqlInsertEndpoint  = `INSERT INTO endpoints (tenant_id, id, name, owner, class, regions, access, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	sqlUpdateEndpoint = `UPDATE endpoints SET owner = $3, class = $4, regions = $5, access = $6
		WHERE tenant_id = $1 AND name = $2 AND (owner, class, regions, access) IS DISTINCT FROM ($3, $4, $5, $6)`
	sqlDeleteEndpoint = `DELETE FROM endpoints WHERE tenant_id = $1 AND name = $2`

	sqlLinks = `SELECT e.name, s.name, l.item, l.access FROM endpoint_links l
		JOIN endpoints e ON e.tenant_id = l.tenant_id AND e.id = l.endpoint_id
		JOIN servers s ON s.tenant_id = l.tenant_id AND s.id = l.server_id
		WHERE l.tenant_id = $1 ORDER BY e.name, s.name, l.item`
	sqlPutLink = `INSERT INTO endpoint_links (tenant_id, endpoint_id, server_id, item, access) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (tenant_id, endpoint_id, server_id, item) DO UPDATE SET access = excluded.access
		WHERE endpoint_links.access <> excluded.access`
	sqlDeleteLink = `DELETE FROM endpoint_links WHERE tenant_id = $1 AND endpoint_id = $2 AND server_id = $3 AND item = $4`
)

// Endpoints lists the tenant's data endpoints by name, with what touches them.
func (tx *Tx) Endpoints(ctx context.Context) ([]controlplane.Endpoint, error) {
	list, err := all(ctx, tx, scanEndpoint, sqlEndpoints, tx.tenant)
	if err != nil || len(list) == 0 {
		return list, err
	}
	at := make(map[string]int, len(list))
	for i, e := range list {
		at[e.Name] = i
	}
	links, err := all(ctx, tx, pgx.RowToStructByPos[controlplane.Link], sqlLinks, tx.tenant)
	for _, l := range links {
		list[at[l.Endpoint]].Links = append(list[at[l.Endpoint]].Links, l)
	}
	return list, err
}

// Endpoint finds one by name, without what touches it; not_found when there is none.
func (tx *Tx) Endpoint(ctx context.Context, name string) (controlplane.Endpoint, error) {
	e, err := one(ctx, tx, scanEndpoint, sqlEndpoint, tx.tenant, name)
	return e, missing(err, "endpoint %s does not exist", name)
}

// InsertEndpoint adds an endpoint that nothing touches yet, and returns it with its id.
func (tx *Tx) InsertEndpoint(ctx context.Context, e controlplane.Endpoint) (controlplane.Endpoint, error) {
	e.ID = NewID()
	_, err := tx.exec(ctx, sqlInsertEndpoint, tx.tenant, e.ID, e.Name, e.Owner, int16(e.Class), orEmpty(e.Regions), orEmpty(e.Access), tx.now)
	return e, err
}

// UpdateEndpoint writes owner, class, regions and ways of use of the endpoint that e.Name names. It returns ErrNoChange
// when they are so already.
func (tx *Tx) UpdateEndpoint(ctx context.Context, e controlplane.Endpoint) error {
	return changed(tx.exec(ctx, sqlUpdateEndpoint, tx.tenant, e.Name, e.Owner, int16(e.Class), orEmpty(e.Regions), orEmpty(e.Access)))
}

// DeleteEndpoint removes an endpoint and what links to it.
func (tx *Tx) DeleteEndpoint(ctx context.Context, name string) error {
	_, err := tx.exec(ctx, sqlDeleteEndpoint, tx.tenant, name)
	return err
}

// PutLink says that an item of a server touches an endpoint, in these ways. It returns ErrNoChange when that is so already.
func (tx *Tx) PutLink(ctx context.Context, endpoint controlplane.Endpoint, srv Server, item string, access []string) error {
	return changed(tx.exec(ctx, sqlPutLink, tx.tenant, endpoint.ID, srv.ID, item, orEmpty(access)))
}

// DeleteLink says that an item does not touch an endpoint. It returns ErrNoChange when it does not already.
func (tx *Tx) DeleteLink(ctx context.Context, endpoint controlplane.Endpoint, srv Server, item string) error {
	return changed(tx.exec(ctx, sqlDeleteLink, tx.tenant, endpoint.ID, srv.ID, item))
}

func scanEndpoint(row pgx.CollectableRow) (controlplane.Endpoint, error) {
	var e controlplane.Endpoint
	err := row.Scan(&e.ID, &e.Name, &e.Owner, &e.Class, &e.Regions, &e.Access)
	return e, err
}
