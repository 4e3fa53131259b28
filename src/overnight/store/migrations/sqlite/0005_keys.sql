-- A virtual key is kept as hashes of its secret: the present one, and after a rotation the one before, for an overlap.
CREATE TABLE virtual_key (
    key_id          TEXT PRIMARY KEY,
    tenant_id       TEXT NOT NULL,
    name            TEXT NOT NULL,
    handle          TEXT NOT NULL UNIQUE,
    digest          BLOB NOT NULL,
    previous_handle TEXT,
    previous_digest BLOB,
    previous_until  INTEGER,
    scopes          TEXT NOT NULL,
    agent_id        TEXT,
    workflow        TEXT,
    models          TEXT NOT NULL,
    routes          TEXT NOT NULL,
    created_by      TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    expires_at      INTEGER,
    rotated_by      TEXT,
    rotated_at      INTEGER,
    revoked_by      TEXT,
    revoked_at      INTEGER,
    last_used_at    INTEGER,
    changed         INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX virtual_key_name ON virtual_key (tenant_id, name) WHERE revoked_at IS NULL;
CREATE INDEX virtual_key_changed ON virtual_key (changed);

-- A tenant's own key of a provider, sealed with the master key `master_id`; a row without `sealed` was deleted.
CREATE TABLE provider_key (
    tenant_id TEXT NOT NULL,
    provider  TEXT NOT NULL,
    master_id TEXT NOT NULL,
    sealed    BLOB,
    set_by    TEXT NOT NULL,
    set_at    INTEGER NOT NULL,
    changed   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, provider)
) STRICT, WITHOUT ROWID;
CREATE INDEX provider_key_changed ON provider_key (changed);

-- One row, locked by every change of a key: who has read up to its number has seen every change before it.
CREATE TABLE key_change (
    id     INTEGER PRIMARY KEY,
    number INTEGER NOT NULL
) STRICT;
INSERT INTO key_change VALUES (1, 0);
