-- +goose Up

-- What a tenant's cells do about what servers say and ask, where it is not the default ('' or nothing).
CREATE TABLE guards (
    tenant_id       uuid    PRIMARY KEY REFERENCES tenants (id),
    results         text    NOT NULL CHECK (results IN ('', 'strip', 'pass', 'block')),
    questions       text    NOT NULL CHECK (questions IN ('', 'block', 'pass')),
    changed_tools   text    NOT NULL CHECK (changed_tools IN ('', 'refuse', 'serve')),
    check_arguments boolean NOT NULL,
    -- Both sorted.
    origins         text[]  NOT NULL,
    forbidden       text[]  NOT NULL
);

ALTER TABLE guards ENABLE ROW LEVEL SECURITY;
ALTER TABLE guards FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON guards USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant());

GRANT SELECT, INSERT, UPDATE, DELETE ON guards TO mcpvault_app;
