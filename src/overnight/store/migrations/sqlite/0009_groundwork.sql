-- The order of events over all jobs: each transaction takes the next number of this row for all of its events. A rowid would not
-- do: SQLite gives that of a deleted newest row again. Earlier events keep the order in which they were written.
CREATE TABLE feed_epoch (
    id         INTEGER PRIMARY KEY,
    epoch      INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    cursor_key BLOB NOT NULL
) STRICT;
INSERT INTO feed_epoch VALUES (1, 1, (SELECT coalesce(max(rowid), 0) FROM event), randomblob(32));
UPDATE event SET position = rowid;
CREATE INDEX event_position ON event (position);
-- Processes of an earlier version give no position.
CREATE TRIGGER event_position AFTER INSERT ON event WHEN NEW.position IS NULL
BEGIN
    UPDATE feed_epoch SET position = position + 1;
    UPDATE event SET position = (SELECT position FROM feed_epoch) WHERE rowid = NEW.rowid;
END;

-- How far each listener has read. `owner` and `beat` name the process that serves it; its rows and its cursor commit together.
CREATE TABLE feed_cursor (
    sink     TEXT PRIMARY KEY,
    position INTEGER NOT NULL,
    job_id   TEXT NOT NULL,
    seq      INTEGER NOT NULL,
    owner    TEXT,
    beat     INTEGER NOT NULL
) STRICT;

-- Content can be erased: the key of its `content_mac`, and the free texts of the event (questions, notes, messages of errors; JSON
-- by their places in the facts), stand beside it and go with it.
ALTER TABLE event ADD COLUMN content_key BLOB;
ALTER TABLE event ADD COLUMN texts BLOB;

-- `source` says how an outcome is known: executed, confirmed or reported. `arguments_sha256` is the digest of what was asked.
ALTER TABLE effect ADD COLUMN claim_digest BLOB;
ALTER TABLE effect ADD COLUMN expires_at INTEGER;
ALTER TABLE effect ADD COLUMN done_sha256 TEXT;
ALTER TABLE effect ADD COLUMN contract TEXT;
ALTER TABLE effect ADD COLUMN source TEXT;
ALTER TABLE effect ADD COLUMN key_id TEXT;

ALTER TABLE review ADD COLUMN expires_at INTEGER;
ALTER TABLE review ADD COLUMN rule_digest TEXT;
ALTER TABLE review ADD COLUMN effect_key TEXT;
ALTER TABLE review ADD COLUMN answer BLOB;
-- The key of `digest`, an HMAC of the question and the detail; it is erased with them. Earlier reviews have a plain hash.
ALTER TABLE review ADD COLUMN digest_key BLOB;
CREATE UNIQUE INDEX review_effect ON review (tenant_id, effect_key) WHERE state = 'open' AND effect_key IS NOT NULL;

-- Globs of tool and job names that a key may use, as JSON; a key without a row may use all. Beside `virtual_key`, because processes
-- of earlier versions read all columns of that.
CREATE TABLE key_allowance (
    key_id TEXT PRIMARY KEY,
    tools  TEXT NOT NULL,
    jobs   TEXT NOT NULL
) STRICT;

-- A brain version whose files stand in `brain_file`. A process last began with it, or changed to it, at `activated_at`. `reload`
-- numbers the requests to all processes to change to it; the highest one is the latest.
CREATE TABLE brain_version (
    version      TEXT PRIMARY KEY,
    files        INTEGER NOT NULL,
    stored_at    INTEGER NOT NULL,
    activated_at INTEGER NOT NULL,
    reload       INTEGER
) STRICT;

-- Changes of keys, budgets, roles and settings: no job's log has them. An empty tenant is the instance.
CREATE TABLE audit_entry (
    audit_id  TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    at        INTEGER NOT NULL,
    actor     TEXT NOT NULL,
    key_id    TEXT,
    action    TEXT NOT NULL,
    subject   TEXT NOT NULL,
    detail    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX audit_entry_at ON audit_entry (tenant_id, at);

-- External jobs that may be abandoned, with those of one effect. `active_at` is no column of it: each event would change the
-- index.
CREATE INDEX job_external_running ON job (job_id)
WHERE runtime = 'foreign' AND state = 'running' AND (unattributed = 0 OR external_id IS NOT NULL);
