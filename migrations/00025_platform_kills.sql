-- +goose Up

-- Kills of every tenant: nodes, and what an owner of the platform kills everywhere. They belong to no tenant, so no row
-- security is on them; who may write one is decided before.
CREATE TABLE platform_kills (
    id        text        PRIMARY KEY,
    kind      text        NOT NULL,
    subject   text        NOT NULL,
    reason    text        NOT NULL DEFAULT '',
    issued_at timestamptz NOT NULL,
    envelope  bytea       NOT NULL
);

CREATE TABLE platform_kill_acks (
    kill_id text        NOT NULL REFERENCES platform_kills (id),
    cell    text        NOT NULL,
    node    text        NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (kill_id, cell, node)
);

-- As with the tenants' kills, what is written stays. Only the signature is made anew when its key is retired.
GRANT SELECT, INSERT ON platform_kills, platform_kill_acks TO mcpvault_app;
GRANT UPDATE (envelope) ON kills, platform_kills TO mcpvault_app;
