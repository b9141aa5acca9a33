-- Which shards a generation is made of: a shard is kept while a generation that is kept names it.

-- +goose Up

CREATE TABLE generation_shards (
    tenant_id  uuid   NOT NULL,
    epoch      bigint NOT NULL,
    generation bigint NOT NULL,
    sha256     bytea  NOT NULL REFERENCES blobs (sha256),
    PRIMARY KEY (tenant_id, epoch, generation, sha256),
    FOREIGN KEY (tenant_id, epoch, generation) REFERENCES generations (tenant_id, epoch, generation) ON DELETE CASCADE
);
CREATE INDEX generation_shards_sha256 ON generation_shards (sha256);

ALTER TABLE generation_shards ENABLE ROW LEVEL SECURITY;
ALTER TABLE generation_shards FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON generation_shards USING (tenant_id = mcpvault_tenant()) WITH CHECK (tenant_id = mcpvault_tenant());
CREATE POLICY platform ON generation_shards FOR SELECT USING (mcpvault_platform());

GRANT SELECT, INSERT, DELETE ON generation_shards TO mcpvault_app;
