-- The control plane's tables. Two rules hold everywhere: a row that belongs to a tenant is seen and written only while
-- mcpvault.tenant names that tenant, and the role that the server works as owns nothing.

-- +goose Up

-- +goose StatementBegin
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'mcpvault_app') THEN
        CREATE ROLE mcpvault_app NOLOGIN NOINHERIT;
    END IF;
EXCEPTION
    -- Roles belong to the whole server: another database of it, or another migrator this very moment, made the role.
    WHEN duplicate_object OR unique_violation THEN NULL;
END
$$;
-- +goose StatementEnd

-- The server logs in as the owner and becomes mcpvault_app. From PostgreSQL 16 on, having made a role is not enough for that.
-- +goose StatementBegin
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        EXECUTE format('GRANT mcpvault_app TO %I', current_user);
    END IF;
EXCEPTION
    -- The role is somebody else's, who granted it or did not: the first connection tells.
    WHEN insufficient_privilege THEN NULL;
END
$$;
-- +goose StatementEnd

-- A setting that was set locally in an earlier transaction of the session reads as '' and not as NULL.
CREATE FUNCTION mcpvault_tenant() RETURNS uuid LANGUAGE sql STABLE
    RETURN nullif(current_setting('mcpvault.tenant', true), '')::uuid;

CREATE FUNCTION mcpvault_platform() RETURNS boolean LANGUAGE sql STABLE
    RETURN coalesce(current_setting('mcpvault.platform', true), '') = 'on';

-- Tenants ---------------------------------------------------------------------------------------------------------------

CREATE TABLE tenants (
    id         uuid        PRIMARY KEY,
    name       text        NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    hosts      text[]      NOT NULL DEFAULT '{}',
    -- Counts the admin writes of this tenant. Its row lock puts them in one order.
    revision   bigint      NOT NULL DEFAULT 0 CHECK (revision >= 0),
    epoch      bigint      NOT NULL DEFAULT 1 CHECK (epoch >= 1),
    created_at timestamptz NOT NULL
);

-- A host name leads to one tenant only. Written by the trigger below and by nobody else: tenants.hosts is the truth.
CREATE TABLE tenant_hosts (
    host      text PRIMARY KEY CHECK (host = lower(host)),
    tenant_id uuid NOT NULL REFERENCES tenants (id) ON DELETE CASCADE
);

-- +goose StatementBegin
CREATE FUNCTION mcpvault_index_hosts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tenant_hosts WHERE tenant_id = NEW.id;
    INSERT INTO tenant_hosts (host, tenant_id) SELECT DISTINCT h, NEW.id FROM unnest(NEW.hosts) AS h;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER tenants_hosts AFTER INSERT OR UPDATE OF hosts ON tenants
    FOR EACH ROW EXECUTE FUNCTION mcpvault_index_hosts();

-- Directory -------------------------------------------------------------------------------------------------------------
-- References carry the tenant, so that a row cannot point into another tenant whatever the code does.

CREATE TABLE units (
    tenant_id  uuid        NOT NULL REFERENCES tenants (id),
    id         uuid        NOT NULL,
    name       text        NOT NULL,
    parent_id  uuid,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name),
    FOREIGN KEY (tenant_id, parent_id) REFERENCES units (tenant_id, id)
);

CREATE TABLE users (
    tenant_id     uuid        NOT NULL REFERENCES tenants (id),
    id            uuid        NOT NULL,
    name          text        NOT NULL,
    kind          text        NOT NULL CHECK (kind IN ('person', 'service_account')),
    unit_id       uuid,
    display_name  text        NOT NULL DEFAULT '',
    supervisor_id uuid,
    disabled      boolean     NOT NULL DEFAULT false,
    -- What the user may do through the admin API: owner, admin, auditor, member. Nothing to do with calls through a cell.
    admin_roles   text[]      NOT NULL DEFAULT '{}' CHECK (admin_roles <@ ARRAY['owner', 'admin', 'auditor', 'member']),
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name),
    FOREIGN KEY (tenant_id, unit_id) REFERENCES units (tenant_id, id),
    FOREIGN KEY (tenant_id, supervisor_id) REFERENCES users (tenant_id, id)
);

CREATE TABLE teams (
    tenant_id  uuid        NOT NULL REFERENCES tenants (id),
    id         uuid        NOT NULL,
    name       text        NOT NULL,
    unit_id    uuid,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name),
    FOREIGN KEY (tenant_id, unit_id) REFERENCES units (tenant_id, id)
);

CREATE TABLE team_members (
    tenant_id uuid NOT NULL,
    team_id   uuid NOT NULL,
    user_id   uuid NOT NULL,
    PRIMARY KEY (tenant_id, team_id, user_id),
    FOREIGN KEY (tenant_id, team_id) REFERENCES teams (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX team_members_user ON team_members (tenant_id, user_id);

CREATE TABLE roles (
    tenant_id   uuid        NOT NULL REFERENCES tenants (id),
    id          uuid        NOT NULL,
    name        text        NOT NULL,
    description text        NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);

-- role_id has what inherits_id has, too.
CREATE TABLE role_inherits (
    tenant_id   uuid NOT NULL,
    role_id     uuid NOT NULL,
    inherits_id uuid NOT NULL,
    PRIMARY KEY (tenant_id, role_id, inherits_id),
    FOREIGN KEY (tenant_id, role_id) REFERENCES roles (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, inherits_id) REFERENCES roles (tenant_id, id) ON DELETE CASCADE
);

CREATE TABLE role_members (
    tenant_id   uuid NOT NULL,
    role_id     uuid NOT NULL,
    member_kind text NOT NULL CHECK (member_kind IN ('user', 'team')),
    member_id   uuid NOT NULL,
    -- One of the two is the member again, so that a reference can hold it.
    user_id     uuid GENERATED ALWAYS AS (CASE WHEN member_kind = 'user' THEN member_id END) STORED,
    team_id     uuid GENERATED ALWAYS AS (CASE WHEN member_kind = 'team' THEN member_id END) STORED,
    PRIMARY KEY (tenant_id, role_id, member_kind, member_id),
    FOREIGN KEY (tenant_id, role_id) REFERENCES roles (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, team_id) REFERENCES teams (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX role_members_member ON role_members (tenant_id, member_kind, member_id);

-- A circle above a unit, a user or a role would make every walk upwards endless: refused whoever writes it.
-- +goose StatementBegin
CREATE FUNCTION mcpvault_refuse_unit_cycle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        WITH RECURSIVE above AS (
            SELECT NEW.parent_id AS id
            UNION
            SELECT u.parent_id FROM units u JOIN above a ON u.id = a.id AND u.tenant_id = NEW.tenant_id
            WHERE u.parent_id IS NOT NULL
        ) SELECT 1 FROM above WHERE id = NEW.id
    ) THEN
        RAISE EXCEPTION 'unit % would be above itself', NEW.name USING ERRCODE = 'check_violation', CONSTRAINT = 'units_no_cycle';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER units_no_cycle BEFORE INSERT OR UPDATE OF parent_id ON units
    FOR EACH ROW WHEN (NEW.parent_id IS NOT NULL) EXECUTE FUNCTION mcpvault_refuse_unit_cycle();

-- +goose StatementBegin
CREATE FUNCTION mcpvault_refuse_supervisor_cycle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        WITH RECURSIVE above AS (
            SELECT NEW.supervisor_id AS id
            UNION
            SELECT u.supervisor_id FROM users u JOIN above a ON u.id = a.id AND u.tenant_id = NEW.tenant_id
            WHERE u.supervisor_id IS NOT NULL
        ) SELECT 1 FROM above WHERE id = NEW.id
    ) THEN
        RAISE EXCEPTION 'user % would supervise themselves', NEW.name USING ERRCODE = 'check_violation', CONSTRAINT = 'users_no_cycle';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER users_no_cycle BEFORE INSERT OR UPDATE OF supervisor_id ON users
    FOR EACH ROW WHEN (NEW.supervisor_id IS NOT NULL) EXECUTE FUNCTION mcpvault_refuse_supervisor_cycle();

-- +goose StatementBegin
CREATE FUNCTION mcpvault_refuse_role_cycle() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        WITH RECURSIVE above AS (
            SELECT NEW.inherits_id AS id
            UNION
            SELECT r.inherits_id FROM role_inherits r JOIN above a ON r.role_id = a.id AND r.tenant_id = NEW.tenant_id
        ) SELECT 1 FROM above WHERE id = NEW.role_id
    ) THEN
        RAISE EXCEPTION 'a role would inherit from itself' USING ERRCODE = 'check_violation', CONSTRAINT = 'roles_no_cycle';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER roles_no_cycle BEFORE INSERT OR UPDATE ON role_inherits
    FOR EACH ROW EXECUTE FUNCTION mcpvault_refuse_role_cycle();

-- Registry --------------------------------------------------------------------------------------------------------------

CREATE TABLE servers (
    tenant_id         uuid        NOT NULL REFERENCES tenants (id),
    id                uuid        NOT NULL,
    name              text        NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    url               text        NOT NULL,
    description       text        NOT NULL DEFAULT '',
    -- Number of the version that callers are served; 0 while none is approved.
    published_version integer     NOT NULL DEFAULT 0,
    -- The newest scan's problem, '' when it went well.
    last_error        text        NOT NULL DEFAULT '',
    scanned_at        timestamptz,
    created_at        timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);

-- A version is the content of a tool surface; only its state and its approval are ever written again.
CREATE TABLE server_versions (
    tenant_id         uuid        NOT NULL,
    id                uuid        NOT NULL,
    server_id         uuid        NOT NULL,
    number            integer     NOT NULL CHECK (number > 0),
    digest            bytea       NOT NULL CHECK (length(digest) = 32),
    surface           bytea       NOT NULL,
    state             text        NOT NULL CHECK (state IN ('pending', 'published', 'superseded')),
    protocol_versions text[]      NOT NULL DEFAULT '{}',
    created_at        timestamptz NOT NULL,
    approved_by       text        NOT NULL DEFAULT '',
    approved_at       timestamptz,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, server_id, number),
    UNIQUE (tenant_id, server_id, digest),
    FOREIGN KEY (tenant_id, server_id) REFERENCES servers (tenant_id, id) ON DELETE CASCADE
);

CREATE TABLE tool_effects (
    tenant_id  uuid NOT NULL,
    version_id uuid NOT NULL,
    tool       text NOT NULL,
    effect     text NOT NULL CHECK (effect IN ('read', 'write', 'destructive')),
    PRIMARY KEY (tenant_id, version_id, tool),
    FOREIGN KEY (tenant_id, version_id) REFERENCES server_versions (tenant_id, id) ON DELETE CASCADE
);

-- Access ----------------------------------------------------------------------------------------------------------------

CREATE TABLE grants (
    tenant_id  uuid        NOT NULL REFERENCES tenants (id),
    id         uuid        NOT NULL,
    effect     text        NOT NULL CHECK (effect IN ('allow', 'deny')),
    -- user:NAME, team:NAME, role:NAME or everyone.
    subject    text        NOT NULL,
    -- A server's name, or * for all.
    server     text        NOT NULL,
    -- A tool's name, or '' for all of the server.
    tool       text        NOT NULL DEFAULT '',
    condition  text        NOT NULL DEFAULT '',
    expires_at timestamptz,
    reason     text        NOT NULL DEFAULT '',
    created_by text        NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX grants_subject ON grants (tenant_id, subject);
CREATE INDEX grants_server ON grants (tenant_id, server);

CREATE TABLE tokens (
    tenant_id  uuid        NOT NULL REFERENCES tenants (id),
    -- The token's jti, a ULID. The token itself is kept nowhere.
    id         text        NOT NULL,
    principal  text        NOT NULL,
    issued_at  timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    revoked_at timestamptz,
    created_by text        NOT NULL,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, principal) REFERENCES users (tenant_id, name)
);
CREATE INDEX tokens_principal ON tokens (tenant_id, principal);

CREATE TABLE kills (
    tenant_id uuid        NOT NULL REFERENCES tenants (id),
    id        text        NOT NULL,
    kind      text        NOT NULL,
    subject   text        NOT NULL,
    reason    text        NOT NULL DEFAULT '',
    issued_at timestamptz NOT NULL,
    envelope  bytea       NOT NULL,
    PRIMARY KEY (tenant_id, id)
);

CREATE TABLE kill_acks (
    tenant_id uuid        NOT NULL,
    kill_id   text        NOT NULL,
    cell      text        NOT NULL,
    node      text        NOT NULL,
    at        timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, kill_id, cell, node),
    FOREIGN KEY (tenant_id, kill_id) REFERENCES kills (tenant_id, id)
);

-- Change ledger and outbox ----------------------------------------------------------------------------------------------

CREATE TABLE changes (
    tenant_id uuid        NOT NULL REFERENCES tenants (id),
    sequence  bigint      NOT NULL CHECK (sequence > 0),
    at        timestamptz NOT NULL,
    actor     text        NOT NULL,
    action    text        NOT NULL,
    object    text        NOT NULL,
    -- json and not jsonb: the hash is over these very bytes.
    detail    json        NOT NULL,
    revision  bigint      NOT NULL,
    -- SHA-256 over the hash of the change before and this one.
    hash      bytea       NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (tenant_id, sequence)
);

CREATE TABLE outbox (
    id        bigserial   PRIMARY KEY,
    tenant_id uuid        NOT NULL REFERENCES tenants (id),
    revision  bigint      NOT NULL,
    kind      text        NOT NULL,
    at        timestamptz NOT NULL,
    done_at   timestamptz
);
CREATE INDEX outbox_open ON outbox (id) WHERE done_at IS NULL;

-- Publishing ------------------------------------------------------------------------------------------------------------

CREATE TABLE generations (
    tenant_id      uuid        NOT NULL REFERENCES tenants (id),
    epoch          bigint      NOT NULL,
    generation     bigint      NOT NULL,
    revision       bigint      NOT NULL,
    envelope       bytea       NOT NULL,
    payload_sha256 bytea       NOT NULL CHECK (length(payload_sha256) = 32),
    size           bigint      NOT NULL,
    error          text        NOT NULL DEFAULT '',
    created_at     timestamptz NOT NULL,
    -- When the revision was committed.
    committed_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, epoch, generation)
);

CREATE TABLE acks (
    tenant_id  uuid        NOT NULL REFERENCES tenants (id),
    cell       text        NOT NULL,
    node       text        NOT NULL,
    epoch      bigint      NOT NULL,
    generation bigint      NOT NULL,
    revision   bigint      NOT NULL,
    status     text        NOT NULL CHECK (status IN ('applied', 'rejected')),
    reason     text        NOT NULL DEFAULT '',
    at         timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, epoch, generation, cell, node)
);

-- Shared by all tenants: content-addressed shards, and the fleet.
CREATE TABLE blobs (
    sha256 bytea  PRIMARY KEY CHECK (length(sha256) = 32),
    bytes  bytea  NOT NULL,
    size   bigint NOT NULL
);

CREATE TABLE cells (
    name              text   PRIMARY KEY,
    -- Sequence of the newest manifest of the cell.
    manifest_sequence bigint NOT NULL DEFAULT 0
);

CREATE TABLE cell_tenants (
    cell      text NOT NULL REFERENCES cells (name) ON DELETE CASCADE,
    tenant_id uuid NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    PRIMARY KEY (cell, tenant_id)
);
CREATE INDEX cell_tenants_tenant ON cell_tenants (tenant_id);

CREATE TABLE node_status (
    cell    text        NOT NULL REFERENCES cells (name) ON DELETE CASCADE,
    node    text        NOT NULL,
    -- cell.v1.NodeStatus.
    status  bytea       NOT NULL,
    seen_at timestamptz NOT NULL,
    PRIMARY KEY (cell, node)
);

CREATE TABLE settings (
    key   text  PRIMARY KEY,
    value jsonb NOT NULL
);

-- Row-level security ----------------------------------------------------------------------------------------------------

-- +goose StatementBegin
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY[
        'units', 'users', 'teams', 'team_members', 'roles', 'role_inherits', 'role_members',
        'servers', 'server_versions', 'tool_effects', 'grants', 'tokens', 'kills', 'kill_acks',
        'changes', 'generations', 'acks'
    ] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant())', t);
    END LOOP;
    -- The publisher must find the work of all tenants, and a request its tenant: these and no others.
    FOREACH t IN ARRAY ARRAY['outbox', 'cell_tenants', 'tenant_hosts'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant())', t);
        EXECUTE format('CREATE POLICY platform ON %I USING (mcpvault_platform()) WITH CHECK (mcpvault_platform())', t);
    END LOOP;
END
$$;
-- +goose StatementEnd

ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON tenants USING (id = mcpvault_tenant()) WITH CHECK (id = mcpvault_tenant());
CREATE POLICY platform ON tenants FOR SELECT USING (mcpvault_platform());

GRANT USAGE ON SCHEMA public TO mcpvault_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON
    units, users, teams, team_members, roles, role_inherits, role_members,
    servers, server_versions, tool_effects, grants, acks,
    blobs, cells, cell_tenants, node_status, settings, tenant_hosts
    TO mcpvault_app;
GRANT SELECT, INSERT, DELETE ON generations TO mcpvault_app;
GRANT UPDATE (error) ON generations TO mcpvault_app;
GRANT SELECT, INSERT ON tenants TO mcpvault_app;
GRANT UPDATE (hosts, revision, epoch) ON tenants TO mcpvault_app;
GRANT SELECT, INSERT ON tokens TO mcpvault_app;
GRANT UPDATE (revoked_at) ON tokens TO mcpvault_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox TO mcpvault_app;
GRANT USAGE ON SEQUENCE outbox_id_seq TO mcpvault_app;
-- What is written here is never written again: a kill is not taken back, the ledger not corrected.
GRANT SELECT, INSERT ON kills, kill_acks, changes TO mcpvault_app;
