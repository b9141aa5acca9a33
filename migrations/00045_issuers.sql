-- The authorization servers outside of MCPVault whose tokens a tenant's callers may bring.

-- +goose Up

CREATE TABLE issuers (
    tenant_id   uuid        NOT NULL REFERENCES tenants (id),
    name        text        NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    -- As the iss claim has it. Nobody's tokens are read by two rules.
    url         text        NOT NULL CHECK (length(url) BETWEEN 1 AND 512),
    -- mcpvault.admin.v1.Issuer: the rules, and the keys with those that were withdrawn. They count only all together.
    definition  bytea       NOT NULL,
    updated_by  text        NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name),
    UNIQUE (tenant_id, url)
);

ALTER TABLE issuers ENABLE ROW LEVEL SECURITY;
ALTER TABLE issuers FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON issuers USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant());

GRANT SELECT, INSERT, UPDATE, DELETE ON issuers TO mcpvault_app;
