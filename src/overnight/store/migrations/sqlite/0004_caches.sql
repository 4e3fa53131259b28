-- Where the answer to a question stands in the ledger, and who is asking it right now. Never the answer itself.
CREATE TABLE cache_entry (
    tenant_id   TEXT NOT NULL,
    key         BLOB NOT NULL,
    job_id      TEXT,
    seq         INTEGER,
    month       INTEGER,
    expires_at  INTEGER NOT NULL,
    kept_until  INTEGER NOT NULL,
    leader      TEXT,
    leader_job  TEXT,
    lease_until INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX cache_entry_end ON cache_entry (kept_until);
CREATE INDEX cache_entry_tenant ON cache_entry (tenant_id, kept_until);

-- `realm` is a hash of all that must be the same before likeness counts; vectors are only compared within it.
CREATE TABLE semantic_entry (
    tenant_id  TEXT NOT NULL,
    realm      BLOB NOT NULL,
    added_at   INTEGER NOT NULL,
    job_id     TEXT NOT NULL,
    seq        INTEGER NOT NULL,
    month      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    vector     BLOB NOT NULL,
    PRIMARY KEY (tenant_id, realm, added_at, job_id, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX semantic_entry_end ON semantic_entry (expires_at);
CREATE INDEX semantic_entry_tenant ON semantic_entry (tenant_id, expires_at);

CREATE TABLE cache_day (
    tenant_id        TEXT NOT NULL,
    day              INTEGER NOT NULL,
    agent_id         TEXT NOT NULL,
    kind             TEXT NOT NULL,
    stripe           TEXT NOT NULL,
    asked            INTEGER NOT NULL,
    hits             INTEGER NOT NULL,
    same             INTEGER NOT NULL,
    agreed           INTEGER NOT NULL,
    overlap_permille INTEGER NOT NULL,
    saved_microusd   INTEGER NOT NULL,
    spent_microusd   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, day, agent_id, kind, stripe)
) STRICT, WITHOUT ROWID;
