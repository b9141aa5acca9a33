-- Tokens with which one machine becomes one node, once. They are of the platform: no row security is on them, and who may make
-- one is decided before. The ledger of the tenant that its maker acted in says what became of it.

-- +goose Up

CREATE TABLE join_tokens (
    id         text        PRIMARY KEY,
    -- SHA-256 of the secret: whoever reads the database joins nothing.
    secret     bytea       NOT NULL UNIQUE CHECK (length(secret) = 32),
    cell       text        NOT NULL,
    node       text        NOT NULL,
    ledger     uuid        NOT NULL,
    created_by text        NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at    timestamptz,
    -- SHA-256 of the public key that it was used for: the same machine may ask again when the answer was lost.
    used_key   bytea,
    revoked_at timestamptz,
    CHECK ((used_at IS NULL) = (used_key IS NULL))
);

CREATE INDEX join_tokens_created ON join_tokens (created_at);

GRANT SELECT, INSERT ON join_tokens TO mcpvault_app;
GRANT UPDATE (used_at, used_key, revoked_at) ON join_tokens TO mcpvault_app;
