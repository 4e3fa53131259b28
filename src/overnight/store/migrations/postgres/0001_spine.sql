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
    parent_ordinal      BIGINT,
    state               TEXT NOT NULL,
    waiting             TEXT NOT NULL,
    attempt             BIGINT NOT NULL,
    lease_epoch         BIGINT NOT NULL,
    lease_owner         TEXT,
    lease_expires_at    BIGINT,
    wake_at             BIGINT,
    recoveries          BIGINT NOT NULL,
    last_seq            BIGINT NOT NULL,
    input               BYTEA,
    result              BYTEA,
    error               TEXT,
    unattributed        BIGINT NOT NULL,
    created_at          BIGINT NOT NULL,
    started_at          BIGINT,
    finished_at         BIGINT,
    active_at           BIGINT NOT NULL,
    cancel_requested_at BIGINT
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX job_external ON job (tenant_id, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX job_queued ON job (wake_at, job_id) WHERE state = 'queued';
CREATE INDEX job_timer ON job (wake_at) WHERE state = 'parked' AND wake_at IS NOT NULL;
CREATE INDEX job_leased ON job (lease_owner) WHERE lease_owner IS NOT NULL;
CREATE INDEX job_parent ON job (parent_job_id) WHERE parent_job_id IS NOT NULL;

-- Months are partitions, made when the first row of a month is written, so that retention drops whole tables.
-- One row per fact. `content` stands outside of the seal, so that it can be erased while the fact stays.
CREATE TABLE event (
    job_id      TEXT NOT NULL,
    seq         BIGINT NOT NULL,
    tenant_id   TEXT NOT NULL,
    month       BIGINT NOT NULL,
    at          BIGINT NOT NULL,
    path        TEXT,
    ordinal     BIGINT,
    fingerprint TEXT,
    body        BYTEA NOT NULL,
    content     BYTEA,
    position    BIGINT,
    PRIMARY KEY (job_id, seq, month)
) PARTITION BY LIST (month);
CREATE INDEX event_fingerprint ON event (job_id, fingerprint) WHERE fingerprint IS NOT NULL AND path IS NULL;

CREATE TABLE seal (
    batch          BIGINT PRIMARY KEY,
    first_position BIGINT NOT NULL,
    last_position  BIGINT NOT NULL,
    previous_hash  BYTEA NOT NULL,
    hash           BYTEA NOT NULL,
    sealed_at      BIGINT NOT NULL
);

CREATE TABLE message (
    tenant_id TEXT NOT NULL,
    month     BIGINT NOT NULL,
    hash      BYTEA NOT NULL,
    body      BYTEA NOT NULL,
    PRIMARY KEY (tenant_id, month, hash)
) PARTITION BY LIST (month);

-- node = H(parent, message): a conversation of n turns stores each message once.
CREATE TABLE node (
    tenant_id TEXT NOT NULL,
    month     BIGINT NOT NULL,
    hash      BYTEA NOT NULL,
    parent    BYTEA NOT NULL,
    message   BYTEA NOT NULL,
    PRIMARY KEY (tenant_id, month, hash)
) PARTITION BY LIST (month);

CREATE TABLE blob (
    tenant_id TEXT NOT NULL,
    month     BIGINT NOT NULL,
    hash      BYTEA NOT NULL,
    body      BYTEA NOT NULL,
    PRIMARY KEY (tenant_id, month, hash)
) PARTITION BY LIST (month);

CREATE TABLE usage_day (
    tenant_id     TEXT NOT NULL,
    day           BIGINT NOT NULL,
    agent_id      TEXT NOT NULL,
    model         TEXT NOT NULL,
    stripe        TEXT NOT NULL,
    calls         BIGINT NOT NULL,
    input_tokens  BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cost_microusd BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, day, agent_id, model, stripe)
);

CREATE TABLE usage_job (
    job_id        TEXT NOT NULL,
    model         TEXT NOT NULL,
    calls         BIGINT NOT NULL,
    input_tokens  BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cost_microusd BIGINT NOT NULL,
    PRIMARY KEY (job_id, model)
);

CREATE TABLE budget (
    tenant_id         TEXT NOT NULL,
    scope             TEXT NOT NULL,
    scope_id          TEXT NOT NULL,
    limit_microusd    BIGINT,
    limit_calls       BIGINT,
    reserved_microusd BIGINT NOT NULL,
    spent_microusd    BIGINT NOT NULL,
    calls             BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, scope, scope_id)
) WITH (fillfactor = 50);

CREATE TABLE reservation (
    call_id         TEXT PRIMARY KEY,
    tenant_id       TEXT NOT NULL,
    job_id          TEXT NOT NULL,
    owner           TEXT NOT NULL,
    lease_epoch     BIGINT,
    amount_microusd BIGINT NOT NULL,
    estimate        TEXT NOT NULL,
    scopes          TEXT NOT NULL,
    expires_at      BIGINT NOT NULL
);
CREATE INDEX reservation_job ON reservation (job_id);
CREATE INDEX reservation_expiry ON reservation (expires_at);

CREATE TABLE effect (
    tenant_id        TEXT NOT NULL,
    effect_key       TEXT NOT NULL,
    job_id           TEXT NOT NULL,
    tool             TEXT NOT NULL,
    state            TEXT NOT NULL,
    arguments_sha256 TEXT NOT NULL,
    owner            TEXT NOT NULL,
    attempt          BIGINT NOT NULL,
    lease_epoch      BIGINT NOT NULL,
    provider_id      TEXT,
    result           BYTEA,
    error            TEXT,
    claimed_at       BIGINT NOT NULL,
    settled_at       BIGINT,
    PRIMARY KEY (tenant_id, effect_key)
);
CREATE INDEX effect_job ON effect (job_id);

CREATE TABLE review (
    review_id    TEXT PRIMARY KEY,
    tenant_id    TEXT NOT NULL,
    job_id       TEXT NOT NULL,
    kind         TEXT NOT NULL,
    path         TEXT NOT NULL,
    ordinal      BIGINT NOT NULL,
    question     TEXT NOT NULL,
    detail       TEXT NOT NULL,
    digest       TEXT NOT NULL,
    state        TEXT NOT NULL,
    decided_by   TEXT,
    note         TEXT,
    requested_at BIGINT NOT NULL,
    decided_at   BIGINT
);
CREATE INDEX review_open ON review (tenant_id, requested_at) WHERE state = 'open';
CREATE INDEX review_job ON review (job_id);

CREATE TABLE worker (
    worker_id  TEXT PRIMARY KEY,
    role       TEXT NOT NULL,
    host       TEXT NOT NULL,
    pid        BIGINT NOT NULL,
    started_at BIGINT NOT NULL,
    seen_at    BIGINT NOT NULL
);

CREATE TABLE brain_file (
    version TEXT NOT NULL,
    path    TEXT NOT NULL,
    body    BYTEA NOT NULL,
    PRIMARY KEY (version, path)
);
