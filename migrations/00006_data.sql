-- Data that tools touch, labels on servers and what they offer, and the settings of a tenant.

-- +goose Up

CREATE TABLE endpoints (
    tenant_id  uuid        NOT NULL REFERENCES tenants (id),
    id         uuid        NOT NULL,
    name       text        NOT NULL,
    -- Who answers for the data, in words.
    owner      text        NOT NULL DEFAULT '',
    -- Class of the data: 0 is public.
    class      smallint    NOT NULL CHECK (class BETWEEN 0 AND 7),
    regions    text[]      NOT NULL DEFAULT '{}',
    -- How it can be used: read, write ...
    access     text[]      NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);

-- What of a server touches an endpoint, and how. It outlives the server's versions.
CREATE TABLE endpoint_links (
    tenant_id   uuid   NOT NULL,
    endpoint_id uuid   NOT NULL,
    server_id   uuid   NOT NULL,
    -- A tool's name, *prompt/NAME or *resource/PATTERN.
    item        text   NOT NULL CHECK (item <> ''),
    access      text[] NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant_id, endpoint_id, server_id, item),
    FOREIGN KEY (tenant_id, endpoint_id) REFERENCES endpoints (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, server_id) REFERENCES servers (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX endpoint_links_server ON endpoint_links (tenant_id, server_id);

CREATE TABLE labels (
    tenant_id uuid NOT NULL,
    server_id uuid NOT NULL,
    -- A tool's name; '' labels the server and with it everything that it offers.
    tool      text NOT NULL,
    key       text NOT NULL,
    value     text NOT NULL,
    PRIMARY KEY (tenant_id, server_id, tool, key),
    FOREIGN KEY (tenant_id, server_id) REFERENCES servers (tenant_id, id) ON DELETE CASCADE
);

-- How long after the last contact with the control plane calls are still served, where it is not the default.
CREATE TABLE staleness (
    tenant_id uuid   NOT NULL REFERENCES tenants (id),
    -- read, write, or label:KEY=VALUE.
    subject   text   NOT NULL CHECK (subject IN ('read', 'write') OR subject LIKE 'label:%=%'),
    max_ms    bigint NOT NULL CHECK (max_ms > 0),
    PRIMARY KEY (tenant_id, subject)
);

-- +goose StatementBegin
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['endpoints', 'endpoint_links', 'labels', 'staleness'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant())', t);
    END LOOP;
END
$$;
-- +goose StatementEnd

GRANT SELECT, INSERT, UPDATE, DELETE ON endpoints, endpoint_links, labels, staleness TO mcpvault_app;
