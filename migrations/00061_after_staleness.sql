-- What is done when the bound of reads is over: a row says that reads go on.

-- +goose Up
ALTER TABLE staleness DROP CONSTRAINT staleness_subject_check;
ALTER TABLE staleness ADD CONSTRAINT staleness_subject_check
    CHECK (subject IN ('read', 'write', 'read_only_after') OR subject LIKE 'label:%=%');
