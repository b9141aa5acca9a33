-- A generation may be a delta on the one before instead of a head with shards of its own.

-- +goose Up

ALTER TABLE generations
    -- The generation of the head that a delta rests on; null for a head.
    ADD COLUMN base  bigint,
    -- Encoded snapshot.v1.SignedDelta; null for a head. The envelope of a delta is empty.
    ADD COLUMN delta bytea,
    ADD CONSTRAINT generations_delta CHECK ((base IS NULL) = (delta IS NULL) AND (base IS NULL OR base < generation));
