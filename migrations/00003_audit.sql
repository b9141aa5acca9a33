-- The audit records of all cells, and what proves them: per node a log, its Merkle tree in tiles of 256 hashes, and the
-- newest checkpoint that was witnessed. A record is never written again; the server's role may not even try.

-- +goose Up

CREATE TABLE audit_logs (
    -- Stands for the long id in the rows below.
    no           serial      PRIMARY KEY,
    -- The log's origin: mcpvault/audit/CELL/NODE/INCARNATION.
    id           text        NOT NULL UNIQUE,
    cell         text        NOT NULL,
    node         text        NOT NULL,
    -- Pinned at the first contact.
    verifier_key text        NOT NULL,
    -- Records below this are stored.
    size         bigint      NOT NULL DEFAULT 0 CHECK (size >= 0),
    -- The signed checkpoint of size witnessed, NULL before the first.
    checkpoint   bytea,
    witnessed    bigint      NOT NULL DEFAULT 0 CHECK (witnessed <= size),
    witnessed_at timestamptz,
    -- '' or what is wrong with the log; nothing more is taken from it then.
    alarm        text        NOT NULL DEFAULT '',
    created_at   timestamptz NOT NULL
);

-- Tile (level, n) holds the hashes of tree level 8*level from n*256 on: all 256, or as many as there are at the right edge.
CREATE TABLE audit_tiles (
    log    integer NOT NULL REFERENCES audit_logs (no),
    level  integer NOT NULL,
    n      bigint  NOT NULL,
    hashes bytea   NOT NULL CHECK (length(hashes) % 32 = 0 AND length(hashes) BETWEEN 32 AND 8192),
    PRIMARY KEY (log, level, n)
);
-- Hashes do not compress.
ALTER TABLE audit_tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

CREATE TABLE audit_records (
    log         integer     NOT NULL,
    idx         bigint      NOT NULL,
    -- The nil UUID for records of no tenant: a node's own life, and requests that named none.
    tenant_id   uuid        NOT NULL,
    id          text        NOT NULL,
    -- The intent that an outcome belongs to, else ''.
    intent_id   text        NOT NULL,
    at          timestamptz NOT NULL,
    kind        integer     NOT NULL,
    decision    integer     NOT NULL,
    reason      text        NOT NULL,
    principal   text        NOT NULL,
    server      text        NOT NULL,
    target      text        NOT NULL,
    -- audit.v1.Record as the node wrote it: the leaf of the tree.
    leaf        bytea       NOT NULL,
    -- In the order in which the records became visible: who follows asks for those after the last one seen.
    received    bigserial   NOT NULL,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (log, idx)
);
CREATE INDEX audit_records_received ON audit_records (tenant_id, received);
CREATE INDEX audit_records_id ON audit_records (tenant_id, id);
CREATE INDEX audit_records_intent ON audit_records (tenant_id, intent_id) WHERE intent_id <> '';

ALTER TABLE audit_records ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit_records FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON audit_records USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant());
-- A whole log mixes tenants: only the platform reads one in order.
CREATE POLICY platform ON audit_records FOR SELECT USING (mcpvault_platform());

GRANT SELECT, INSERT ON audit_logs TO mcpvault_app;
GRANT UPDATE (size, checkpoint, witnessed, witnessed_at, alarm) ON audit_logs TO mcpvault_app;
GRANT USAGE ON SEQUENCE audit_logs_no_seq TO mcpvault_app;
GRANT SELECT, INSERT ON audit_tiles TO mcpvault_app;
GRANT UPDATE (hashes) ON audit_tiles TO mcpvault_app;
GRANT SELECT, INSERT ON audit_records TO mcpvault_app;
GRANT USAGE ON SEQUENCE audit_records_received_seq TO mcpvault_app;
