-- What a grant may reach besides a server or a tool, from when it holds, and under which circumstances. Every default is
-- what a grant meant before.

-- +goose Up

ALTER TABLE grants
    -- Number of the published version that the grant is about; 0 for whichever is published.
    ADD COLUMN version    integer     NOT NULL DEFAULT 0 CHECK (version >= 0),
    -- What the grant reaches on every server: "readOnlyHint=true,label.pci=true", "endpoint=crm/read"; '' for what server
    -- and tool say.
    ADD COLUMN selector   text        NOT NULL DEFAULT '' CHECK (selector = '' OR server = '*' AND tool = '' AND version = 0),
    ADD COLUMN not_before timestamptz,
    -- Circumstances. Each must hold; '' and 0 ask for nothing. Lists have commas between, sorted.
    ADD COLUMN networks         text     NOT NULL DEFAULT '',
    -- Minutes of the day on the clock of time_zone, from the first to before the second; over midnight when it is lower.
    ADD COLUMN from_minute      smallint NOT NULL DEFAULT 0 CHECK (from_minute BETWEEN 0 AND 1439),
    ADD COLUMN to_minute        smallint NOT NULL DEFAULT 0 CHECK (to_minute BETWEEN 0 AND 1440),
    -- Bit 0 is Monday.
    ADD COLUMN weekdays         smallint NOT NULL DEFAULT 0 CHECK (weekdays BETWEEN 0 AND 127),
    ADD COLUMN time_zone        text     NOT NULL DEFAULT '',
    ADD COLUMN regions          text     NOT NULL DEFAULT '',
    ADD COLUMN within_clearance boolean  NOT NULL DEFAULT false,
    ADD COLUMN not_acting       boolean  NOT NULL DEFAULT false,
    ADD CONSTRAINT grants_time_zone CHECK ((time_zone = '') = (to_minute = 0));
