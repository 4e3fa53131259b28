-- A virtual key is kept as hashes of its secret: the present one, and after a rotation the one before, for an overlap.
CREATE TABLE virtual_key (
    key_id          TEXT PRIMARY KEY,
    tenant_id       TEXT NOT NULL,
    name            TEXT NOT NULL,
    handle          TEXT NOT NULL UNIQUE,
    digest          BYTEA NOT NULL,
    previous_handle TEXT,
    previous_digest BYTEA,
    previous_until  BIGINT,
    scopes          TEXT NOT NULL,
    agent_id        TEXT,
    workflow        TEXT,
    models          TEXT NOT NULL,
    routes          TEXT NOT NULL,
    created_by      TEXT NOT NULL,
    created_at      BIGINT NOT NULL,
    expires_at      BIGINT,
    rotated_by      TEXT,
    rotated_at      BIGINT,
    revoked_by      TEXT,
    revoked_at      BIGINT,
    last_used_at    BIGINT,
    changed         BIGINT NOT NULL
);
CREATE UNIQUE INDEX virtual_key_name ON virtual_key (tenant_id, name) WHERE revoked_at IS NULL;
CREATE INDEX virtual_key_changed ON virtual_key (changed);

-- A tenant's own key of a provider, sealed with the master key `master_id`; a row without `sealed` was deleted.
CREATE TABLE provider_key (
    tenant_id TEXT NOT NULL,
    provider  TEXT NOT NULL,
    master_id TEXT NOT NULL,
    sealed    BYTEA,
    set_by    TEXT NOT NULL,
    set_at    BIGINT NOT NULL,
    changed   BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, provider)
);
CREATE INDEX provider_key_changed ON provider_key (changed);

-- One row, locked by every change of a key: who has read up to its number has seen every change before it.
CREATE TABLE key_change (
    id     BIGINT PRIMARY KEY,
    number BIGINT NOT NULL
);
INSERT INTO key_change VALUES (1, 0);
