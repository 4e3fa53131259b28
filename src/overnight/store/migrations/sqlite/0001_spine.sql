-- The log header and the state of a job: one row, the lock of everything that happens to the job.
CREATE TABLE job (
    job_id              TEXT PRIMARY KEY,
    tenant_id           TEXT NOT NULL,
    external_id         TEXT,
    parent_job_id       TEXT,
    root_job_id         TEXT NOT NULL,
    runtime             TEXT NOT NULL,
    name                TEXT NOT NULL,
    agent_id            TEXT,
    workflow            TEXT,
    session_id          TEXT,
    code_ref            TEXT,
    code_fingerprint    TEXT,
    brain_version       TEXT,
    parent_path         TEXT,
    parent_ordinal      INTEGER,
    state               TEXT NOT NULL,
    waiting             TEXT NOT NULL,
    attempt             INTEGER NOT NULL,
    lease_epoch         INTEGER NOT NULL,
    lease_owner         TEXT,
    lease_expires_at    INTEGER,
    wake_at             INTEGER,
    recoveries          INTEGER NOT NULL,
    last_seq            INTEGER NOT NULL,
    input               BLOB,
    result              BLOB,
    error               TEXT,
    unattributed        INTEGER NOT NULL,
    created_at          INTEGER NOT NULL,
    started_at          INTEGER,
    finished_at         INTEGER,
    active_at           INTEGER NOT NULL,
    cancel_requested_at INTEGER
) STRICT;
CREATE UNIQUE INDEX job_external ON job (tenant_id, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX job_queued ON job (wake_at, job_id) WHERE state = 'queued';
CREATE INDEX job_timer ON job (wake_at) WHERE state = 'parked' AND wake_at IS NOT NULL;
CREATE INDEX job_leased ON job (lease_owner) WHERE lease_owner IS NOT NULL;
CREATE INDEX job_parent ON job (parent_job_id) WHERE parent_job_id IS NOT NULL;

-- One row per fact. `content` stands outside of the seal, so that it can be erased while the fact stays.
-- With a rowid, unlike its neighbours: its rows are long, which a table without one keeps in a page of their own each.
CREATE TABLE event (
    job_id      TEXT NOT NULL,
    seq         INTEGER NOT NULL,
    tenant_id   TEXT NOT NULL,
    month       INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    path        TEXT,
    ordinal     INTEGER,
    fingerprint TEXT,
    body        BLOB NOT NULL,
    content     BLOB,
    position    INTEGER,
    UNIQUE (job_id, seq)
) STRICT;
CREATE INDEX event_fingerprint ON event (job_id, fingerprint) WHERE fingerprint IS NOT NULL AND path IS NULL;

CREATE TABLE seal (
    batch          INTEGER PRIMARY KEY,
    first_position INTEGER NOT NULL,
    last_position  INTEGER NOT NULL,
    previous_hash  BLOB NOT NULL,
    hash           BLOB NOT NULL,
    sealed_at      INTEGER NOT NULL
) STRICT;

CREATE TABLE message (
    tenant_id TEXT NOT NULL,
    month     INTEGER NOT NULL,
    hash      BLOB NOT NULL,
    body      BLOB NOT NULL,
    PRIMARY KEY (tenant_id, month, hash)
) STRICT, WITHOUT ROWID;

-- node = H(parent, message): a conversation of n turns stores each message once.
CREATE TABLE node (
    tenant_id TEXT NOT NULL,
    month     INTEGER NOT NULL,
    hash      BLOB NOT NULL,
    parent    BLOB NOT NULL,
    message   BLOB NOT NULL,
    PRIMARY KEY (tenant_id, month, hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE blob (
    tenant_id TEXT NOT NULL,
    month     INTEGER NOT NULL,
    hash      BLOB NOT NULL,
    body      BLOB NOT NULL,
    PRIMARY KEY (tenant_id, month, hash)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_day (
    tenant_id     TEXT NOT NULL,
    day           INTEGER NOT NULL,
    agent_id      TEXT NOT NULL,
    model         TEXT NOT NULL,
    stripe        TEXT NOT NULL,
    calls         INTEGER NOT NULL,
    input_tokens  INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost_microusd INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, day, agent_id, model, stripe)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_job (
    job_id        TEXT NOT NULL,
    model         TEXT NOT NULL,
    calls         INTEGER NOT NULL,
    input_tokens  INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost_microusd INTEGER NOT NULL,
    PRIMARY KEY (job_id, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE budget (
    tenant_id         TEXT NOT NULL,
    scope             TEXT NOT NULL,
    scope_id          TEXT NOT NULL,
    limit_microusd    INTEGER,
    limit_calls       INTEGER,
    reserved_microusd INTEGER NOT NULL,
    spent_microusd    INTEGER NOT NULL,
    calls             INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, scope, scope_id)
) STRICT, WITHOUT ROWID;

-- Holds only calls in flight: reading all of it is cheaper than indexes on it.
CREATE TABLE reservation (
    call_id         TEXT PRIMARY KEY,
    tenant_id       TEXT NOT NULL,
    job_id          TEXT NOT NULL,
    owner           TEXT NOT NULL,
    lease_epoch     INTEGER,
    amount_microusd INTEGER NOT NULL,
    estimate        TEXT NOT NULL,
    scopes          TEXT NOT NULL,
    expires_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE effect (
    tenant_id        TEXT NOT NULL,
    effect_key       TEXT NOT NULL,
    job_id           TEXT NOT NULL,
    tool             TEXT NOT NULL,
    state            TEXT NOT NULL,
    arguments_sha256 TEXT NOT NULL,
    owner            TEXT NOT NULL,
    attempt          INTEGER NOT NULL,
    lease_epoch      INTEGER NOT NULL,
    provider_id      TEXT,
    result           BLOB,
    error            TEXT,
    claimed_at       INTEGER NOT NULL,
    settled_at       INTEGER,
    PRIMARY KEY (tenant_id, effect_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX effect_job ON effect (job_id);

CREATE TABLE review (
    review_id    TEXT PRIMARY KEY,
    tenant_id    TEXT NOT NULL,
    job_id       TEXT NOT NULL,
    kind         TEXT NOT NULL,
    path         TEXT NOT NULL,
    ordinal      INTEGER NOT NULL,
    question     TEXT NOT NULL,
    detail       TEXT NOT NULL,
    digest       TEXT NOT NULL,
    state        TEXT NOT NULL,
    decided_by   TEXT,
    note         TEXT,
    requested_at INTEGER NOT NULL,
    decided_at   INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX review_open ON review (tenant_id, requested_at) WHERE state = 'open';
CREATE INDEX review_job ON review (job_id);

CREATE TABLE worker (
    worker_id  TEXT PRIMARY KEY,
    role       TEXT NOT NULL,
    host       TEXT NOT NULL,
    pid        INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE brain_file (
    version TEXT NOT NULL,
    path    TEXT NOT NULL,
    body    BLOB NOT NULL,
    PRIMARY KEY (version, path)
) STRICT, WITHOUT ROWID;
