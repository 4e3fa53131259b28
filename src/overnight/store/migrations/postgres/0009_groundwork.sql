-- The order of events over all jobs: `position` is the id of the transaction that wrote the event, moved by `feed_epoch.shift`.
-- Readers stop below the oldest transaction still under way, so that no event appears behind them. Earlier events stand at 0.
-- A database restored on another server has positions above that server's transaction ids; opening it raises the epoch.
CREATE TABLE feed_epoch (
    id         BIGINT PRIMARY KEY,
    epoch      BIGINT NOT NULL,
    shift      BIGINT NOT NULL,
    cursor_key BYTEA NOT NULL
);
INSERT INTO feed_epoch VALUES (1, 1, 0, sha256((gen_random_uuid()::text || gen_random_uuid()::text)::bytea));
ALTER TABLE event DROP COLUMN position;
ALTER TABLE event ADD COLUMN position BIGINT NOT NULL DEFAULT 0;
ALTER TABLE event ALTER COLUMN position SET DEFAULT (pg_current_xact_id()::text::bigint);
CREATE INDEX event_position ON event (position, job_id, seq);

-- How far each listener has read. `owner` and `beat` name the process that serves it; its rows and its cursor commit together.
CREATE TABLE feed_cursor (
    sink     TEXT PRIMARY KEY,
    position BIGINT NOT NULL,
    job_id   TEXT NOT NULL,
    seq      BIGINT NOT NULL,
    owner    TEXT,
    beat     BIGINT NOT NULL
);

-- Content can be erased: the key of its `content_mac`, and the free texts of the event (questions, notes, messages of errors; JSON
-- by their places in the facts), stand beside it and go with it.
ALTER TABLE event ADD COLUMN content_key BYTEA;
ALTER TABLE event ADD COLUMN texts BYTEA;

-- `source` says how an outcome is known: executed, confirmed or reported. `arguments_sha256` is the digest of what was asked.
ALTER TABLE effect ADD COLUMN claim_digest BYTEA;
ALTER TABLE effect ADD COLUMN expires_at BIGINT;
ALTER TABLE effect ADD COLUMN done_sha256 TEXT;
ALTER TABLE effect ADD COLUMN contract TEXT;
ALTER TABLE effect ADD COLUMN source TEXT;
ALTER TABLE effect ADD COLUMN key_id TEXT;

ALTER TABLE review ADD COLUMN expires_at BIGINT;
ALTER TABLE review ADD COLUMN rule_digest TEXT;
ALTER TABLE review ADD COLUMN effect_key TEXT;
ALTER TABLE review ADD COLUMN answer BYTEA;
-- The key of `digest`, an HMAC of the question and the detail; it is erased with them. Earlier reviews have a plain hash.
ALTER TABLE review ADD COLUMN digest_key BYTEA;
CREATE UNIQUE INDEX review_effect ON review (tenant_id, effect_key) WHERE state = 'open' AND effect_key IS NOT NULL;

-- Globs of tool and job names that a key may use, as JSON; a key without a row may use all. Beside `virtual_key`, because processes
-- of earlier versions read all columns of that.
CREATE TABLE key_allowance (
    key_id TEXT PRIMARY KEY,
    tools  TEXT NOT NULL,
    jobs   TEXT NOT NULL
);

-- A brain version whose files stand in `brain_file`. A process last began with it, or changed to it, at `activated_at`. `reload`
-- numbers the requests to all processes to change to it; the highest one is the latest.
CREATE TABLE brain_version (
    version      TEXT PRIMARY KEY,
    files        BIGINT NOT NULL,
    stored_at    BIGINT NOT NULL,
    activated_at BIGINT NOT NULL,
    reload       BIGINT
);

-- Changes of keys, budgets, roles and settings: no job's log has them. An empty tenant is the instance.
CREATE TABLE audit_entry (
    audit_id  TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    at        BIGINT NOT NULL,
    actor     TEXT NOT NULL,
    key_id    TEXT,
    action    TEXT NOT NULL,
    subject   TEXT NOT NULL,
    detail    TEXT NOT NULL
);
CREATE INDEX audit_entry_at ON audit_entry (tenant_id, at);

-- External jobs that may be abandoned, with those of one effect. `active_at` is no column of it: each event would change the
-- index.
CREATE INDEX job_external_running ON job (job_id)
WHERE runtime = 'foreign' AND state = 'running' AND (unattributed = 0 OR external_id IS NOT NULL);
