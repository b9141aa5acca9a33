package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Server is one registered MCP server.
type Server struct {
	ID, Name, URL, Description string
	// PublishedVersion is 0 while none is approved, LatestVersion 0 while none was scanned.
	PublishedVersion, LatestVersion uint32
	LastError                       string
	ScannedAt                       time.Time
	CreatedAt                       time.Time
}

// VersionState is where a version stands on its way.
type VersionState string

// The states of a version.
const (
	VersionPending    VersionState = "pending"
	VersionPublished  VersionState = "published"
	VersionSuperseded VersionState = "superseded"
)

// ServerVersion is one tool surface of a server; only its state, its approval and the protocol revisions that the server
// was seen to speak change.
type ServerVersion struct {
	ID, ServerID     string
	Number           uint32
	Digest           []byte
	Surface          []byte
	State            VersionState
	ProtocolVersions []string
	CreatedAt        time.Time
	ApprovedBy       string
	ApprovedAt       time.Time
	// Effects of its tools: read, write, destructive. Filled by the functions that say so.
	Effects map[string]string
}

const (
	serverColumns = `s.id::text, s.name, s.url, s.description, s.published_version,
		coalesce((SELECT max(v.number) FROM server_versions v WHERE v.tenant_id = s.tenant_id AND v.server_id = s.id), 0),
		s.last_error, s.scanned_at, s.created_at`
	sqlServers      = `SELECT ` + serverColumns + ` FROM servers s WHERE s.tenant_id = $1 ORDER BY s.name`
	sqlServer       = `SELECT ` + serverColumns + ` FROM servers s WHERE s.tenant_id = $1 AND s.name = $2`
	sqlInsertServer = `INSERT INTO servers (tenant_id, id, name, url, description, last_error, scanned_at, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	sqlNoteScan     = `UPDATE servers SET last_error = $3, scanned_at = $4 WHERE tenant_id = $1 AND id = $2`
	sqlDeleteServer = `DELETE FROM servers WHERE tenant_id = $1 AND id = $2`

	versionColumns = `id::text, server_id::text, number, digest, surface, state, protocol_versions, created_at, approved_by, approved_at`
	sqlVersions    = `SELECT ` + versionColumns + ` FROM server_versions WHERE tenant_id = $1 AND server_id = $2 ORDER BY number DESC LIMIT 200`
	sqlVersion     = `SELECT ` + versionColumns + ` FROM server_versions WHERE tenant_id = $1 AND server_id = $2 AND number = $3`
	sqlVersionHash = `SELECT ` + versionColumns + ` FROM server_versions WHERE tenant_id = $1 AND server_id = $2 AND digest = $3`
	sqlPublished   = `SELECT ` + versionColumns + ` FROM server_versions WHERE tenant_id = $1 AND state = 'published'`

	sqlInsertVersion = `INSERT INTO server_versions (tenant_id, id, server_id, number, digest, surface, state, protocol_versions, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, 'pending', $7, $8)`
	sqlSetProtocols     = `UPDATE server_versions SET protocol_versions = $3 WHERE tenant_id = $1 AND id = $2`
	sqlSupersede        = `UPDATE server_versions SET state = 'superseded' WHERE tenant_id = $1 AND server_id = $2 AND state = 'published'`
	sqlPublishVersion   = `UPDATE server_versions SET state = 'published', approved_by = $3, approved_at = $4 WHERE tenant_id = $1 AND id = $2`
	sqlSetPublished     = `UPDATE servers SET published_version = $3 WHERE tenant_id = $1 AND id = $2`
	sqlDeleteEffects    = `DELETE FROM tool_effects WHERE tenant_id = $1 AND version_id = $2`
	sqlInsertEffect     = `INSERT INTO tool_effects (tenant_id, version_id, tool, effect) SELECT $1, $2, unnest($3::text[]), unnest($4::text[])`
	sqlEffects          = `SELECT version_id::text, tool, effect FROM tool_effects WHERE tenant_id = $1 AND version_id = $2`
	sqlPublishedEffects = `SELECT e.version_id::text, e.tool, e.effect FROM tool_effects e JOIN server_versions v
		ON v.tenant_id = e.tenant_id AND v.id = e.version_id WHERE e.tenant_id = $1 AND v.state = 'published'`
)

// Servers lists the tenant's servers by name.
func (tx *Tx) Servers(ctx context.Context) ([]Server, error) {
	return all(ctx, tx, scanServer, sqlServers, tx.tenant)
}

// Server finds one by name; not_found when there is none.
func (tx *Tx) Server(ctx context.Context, name string) (Server, error) {
	s, err := one(ctx, tx, scanServer, sqlServer, tx.tenant, name)
	return s, missing(err, "server %s does not exist", name)
}

// InsertServer registers a server; conflict when the name is taken.
func (tx *Tx) InsertServer(ctx context.Context, s Server) error {
	_, err := tx.exec(ctx, sqlInsertServer, tx.tenant, s.ID, s.Name, s.URL, s.Description, s.LastError, s.ScannedAt, tx.now)
	return err
}

// NoteScan says how the newest scan went.
func (tx *Tx) NoteScan(ctx context.Context, serverID, lastError string) error {
	_, err := tx.exec(ctx, sqlNoteScan, tx.tenant, serverID, lastError, tx.now)
	return err
}

// DeleteServer removes a server and its versions.
func (tx *Tx) DeleteServer(ctx context.Context, serverID string) error {
	_, err := tx.exec(ctx, sqlDeleteServer, tx.tenant, serverID)
	return err
}

// Versions lists a server's newest versions, newest first, without effects.
func (tx *Tx) Versions(ctx context.Context, serverID string) ([]ServerVersion, error) {
	return all(ctx, tx, scanVersion, sqlVersions, tx.tenant, serverID)
}

// Version finds one version with its effects; not_found when there is none.
func (tx *Tx) Version(ctx context.Context, server Server, number uint32) (ServerVersion, error) {
	v, err := one(ctx, tx, scanVersion, sqlVersion, tx.tenant, server.ID, int64(number))
	if err != nil {
		return v, missing(err, "server %s has no version %d", server.Name, number)
	}
	v.Effects, err = tx.Effects(ctx, v.ID)
	return v, err
}

// VersionByDigest finds the version with this surface; ok is false when it was never seen.
func (tx *Tx) VersionByDigest(ctx context.Context, serverID string, digest []byte) (v ServerVersion, ok bool, err error) {
	v, err = one(ctx, tx, scanVersion, sqlVersionHash, tx.tenant, serverID, digest)
	if isNoRows(err) {
		return v, false, nil
	}
	if err != nil {
		return v, false, err
	}
	v.Effects, err = tx.Effects(ctx, v.ID)
	return v, err == nil, err
}

// PublishedVersions lists what callers are served, by server id, with effects.
func (tx *Tx) PublishedVersions(ctx context.Context) (map[string]ServerVersion, error) {
	list, err := all(ctx, tx, scanVersion, sqlPublished, tx.tenant)
	if err != nil {
		return nil, err
	}
	rows, err := all(ctx, tx, scanEffect, sqlPublishedEffects, tx.tenant)
	if err != nil {
		return nil, err
	}
	byVersion := map[string]map[string]string{}
	for _, e := range rows {
		if byVersion[e.version] == nil {
			byVersion[e.version] = map[string]string{}
		}
		byVersion[e.version][e.tool] = e.effect
	}
	out := make(map[string]ServerVersion, len(list))
	for _, v := range list {
		v.Effects = byVersion[v.ID]
		out[v.ServerID] = v
	}
	return out, nil
}

// Effects of a version's tools, by name.
func (tx *Tx) Effects(ctx context.Context, versionID string) (map[string]string, error) {
	rows, err := all(ctx, tx, scanEffect, sqlEffects, tx.tenant, versionID)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(rows))
	for _, e := range rows {
		out[e.tool] = e.effect
	}
	return out, nil
}

// InsertVersion stores a surface that was not seen before, as pending.
func (tx *Tx) InsertVersion(ctx context.Context, v ServerVersion) error {
	_, err := tx.exec(ctx, sqlInsertVersion, tx.tenant, v.ID, v.ServerID, int64(v.Number), v.Digest, v.Surface, orEmpty(v.ProtocolVersions), tx.now)
	return err
}

// SetProtocolVersions notes what the server was last seen to speak.
func (tx *Tx) SetProtocolVersions(ctx context.Context, versionID string, protocols []string) error {
	_, err := tx.exec(ctx, sqlSetProtocols, tx.tenant, versionID, orEmpty(protocols))
	return err
}

// PublishVersion makes v what callers are served, with these effects, instead of what was published before.
func (tx *Tx) PublishVersion(ctx context.Context, v ServerVersion, effects map[string]string) error {
	tools := make([]string, 0, len(effects))
	classes := make([]string, 0, len(effects))
	for t, e := range effects {
		tools, classes = append(tools, t), append(classes, e)
	}
	for _, st := range []struct {
		sql  string
		args []any
	}{
		{sqlSupersede, []any{tx.tenant, v.ServerID}},
		{sqlPublishVersion, []any{tx.tenant, v.ID, tx.actor, tx.now}},
		{sqlSetPublished, []any{tx.tenant, v.ServerID, int64(v.Number)}},
		{sqlDeleteEffects, []any{tx.tenant, v.ID}},
		{sqlInsertEffect, []any{tx.tenant, v.ID, tools, classes}},
	} {
		if _, err := tx.exec(ctx, st.sql, st.args...); err != nil {
			return err
		}
	}
	return nil
}

func scanServer(row pgx.CollectableRow) (Server, error) {
	var s Server
	var published, latest int64
	var scanned *time.Time
	err := row.Scan(&s.ID, &s.Name, &s.URL, &s.Description, &published, &latest, &s.LastError, &scanned, &s.CreatedAt)
	s.PublishedVersion, s.LatestVersion, s.ScannedAt = uint32(published), uint32(latest), timeOrZero(scanned)
	return s, err
}

func scanVersion(row pgx.CollectableRow) (ServerVersion, error) {
	var v ServerVersion
	var number int64
	var approved *time.Time
	err := row.Scan(&v.ID, &v.ServerID, &number, &v.Digest, &v.Surface, (*string)(&v.State), &v.ProtocolVersions, &v.CreatedAt, &v.ApprovedBy, &approved)
	v.Number, v.ApprovedAt = uint32(number), timeOrZero(approved)
	return v, err
}

type effectRow struct{ version, tool, effect string }

func scanEffect(row pgx.CollectableRow) (effectRow, error) {
	var e effectRow
	err := row.Scan(&e.version, &e.tool, &e.effect)
	return e, err
}
