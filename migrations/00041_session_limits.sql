-- +goose Up

-- What a tenant lets the sessions of legacy clients be, where it is not the default.
CREATE TABLE session_limits (
    tenant_id     uuid    PRIMARY KEY REFERENCES tenants (id),
    -- 0 is the default in all of them.
    idle_ms       bigint  NOT NULL CHECK (idle_ms >= 0),
    max_ms        bigint  NOT NULL CHECK (max_ms >= 0),
    per_principal integer NOT NULL CHECK (per_principal >= 0),
    per_tenant    integer NOT NULL CHECK (per_tenant >= 0)
);

ALTER TABLE session_limits ENABLE ROW LEVEL SECURITY;
ALTER TABLE session_limits FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON session_limits USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant());

GRANT SELECT, INSERT, UPDATE, DELETE ON session_limits TO mcpvault_app;
