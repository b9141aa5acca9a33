-- +goose Up

-- What callers may ask for over time. What has no row has no limit.
CREATE TABLE rate_limits (
    tenant_id uuid   NOT NULL REFERENCES tenants (id),
    -- A scope (principal, tenant, server, tool, discover, resume), a scope and a name (principal/alice, tool/pay/refund), or
    -- calls: how many requests of one principal a node has under way at most.
    subject   text   NOT NULL CHECK (subject <> ''),
    requests  bigint NOT NULL CHECK (requests > 0),
    per_ms    bigint NOT NULL CHECK (per_ms >= 0),
    burst     bigint NOT NULL CHECK (burst >= 0),
    PRIMARY KEY (tenant_id, subject)
);

ALTER TABLE rate_limits ENABLE ROW LEVEL SECURITY;
ALTER TABLE rate_limits FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON rate_limits USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant());

GRANT SELECT, INSERT, UPDATE, DELETE ON rate_limits TO mcpvault_app;
