-- Policies that people write as Cedar, beside the grants that are rows. One row is one text of any number of policies.

-- +goose Up

CREATE TABLE policies (
    tenant_id   uuid        NOT NULL REFERENCES tenants (id),
    name        text        NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    text        text        NOT NULL CHECK (length(text) BETWEEN 1 AND 262144),
    -- Counts the writes of this text; who writes may name the one that was read, so that no change is lost.
    version     bigint      NOT NULL CHECK (version > 0),
    description text        NOT NULL DEFAULT '',
    updated_by  text        NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

ALTER TABLE policies ENABLE ROW LEVEL SECURITY;
ALTER TABLE policies FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON policies USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant());

GRANT SELECT, INSERT, UPDATE, DELETE ON policies TO mcpvault_app;
