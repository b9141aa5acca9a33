-- Who there is, in full: groups beside teams, roles given to groups and units, workloads named by their SPIFFE ID, and what
-- conditions may ask about a principal.

-- +goose Up

ALTER TABLE users DROP CONSTRAINT users_kind_check;
ALTER TABLE users
    ADD CONSTRAINT users_kind_check CHECK (kind IN ('person', 'service_account', 'workload')),
    -- The highest class of data that the principal may touch; 0 is public.
    ADD COLUMN clearance smallint NOT NULL DEFAULT 0 CHECK (clearance BETWEEN 0 AND 7),
    -- Where it belongs; '' is nowhere.
    ADD COLUMN region    text     NOT NULL DEFAULT '';

-- A group is a flat set of users. What an identity provider nests arrives here as its members.
CREATE TABLE groups (
    tenant_id  uuid        NOT NULL REFERENCES tenants (id),
    id         uuid        NOT NULL,
    name       text        NOT NULL,
    -- Who keeps its members: manual, or the name of what provisions it.
    source     text        NOT NULL DEFAULT 'manual' CHECK (source <> ''),
    created_at timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, id),
    UNIQUE (tenant_id, name)
);

CREATE TABLE group_members (
    tenant_id uuid NOT NULL,
    group_id  uuid NOT NULL,
    user_id   uuid NOT NULL,
    PRIMARY KEY (tenant_id, group_id, user_id),
    FOREIGN KEY (tenant_id, group_id) REFERENCES groups (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id) ON DELETE CASCADE
);
CREATE INDEX group_members_user ON group_members (tenant_id, user_id);

ALTER TABLE role_members DROP CONSTRAINT role_members_member_kind_check;
ALTER TABLE role_members
    ADD CONSTRAINT role_members_member_kind_check CHECK (member_kind IN ('user', 'team', 'group', 'unit')),
    ADD COLUMN group_id uuid GENERATED ALWAYS AS (CASE WHEN member_kind = 'group' THEN member_id END) STORED,
    ADD COLUMN unit_id  uuid GENERATED ALWAYS AS (CASE WHEN member_kind = 'unit' THEN member_id END) STORED,
    ADD FOREIGN KEY (tenant_id, group_id) REFERENCES groups (tenant_id, id) ON DELETE CASCADE,
    ADD FOREIGN KEY (tenant_id, unit_id) REFERENCES units (tenant_id, id) ON DELETE CASCADE;

-- +goose StatementBegin
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['groups', 'group_members'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format('CREATE POLICY tenant ON %I USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant())', t);
    END LOOP;
END
$$;
-- +goose StatementEnd

GRANT SELECT, INSERT, UPDATE, DELETE ON groups, group_members TO mcpvault_app;
