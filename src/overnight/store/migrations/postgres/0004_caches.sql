-- Where the answer to a question stands in the ledger, and who is asking it right now. Never the answer itself.
CREATE TABLE cache_entry (
    tenant_id   TEXT NOT NULL,
    key         BYTEA NOT NULL,
    job_id      TEXT,
    seq         BIGINT,
    month       BIGINT,
    expires_at  BIGINT NOT NULL,
    kept_until  BIGINT NOT NULL,
    leader      TEXT,
    leader_job  TEXT,
    lease_until BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, key)
);
CREATE INDEX cache_entry_end ON cache_entry (kept_until);
CREATE INDEX cache_entry_tenant ON cache_entry (tenant_id, kept_until);

-- `realm` is a hash of all that must be the same before likeness counts; vectors are only compared within it.
CREATE TABLE semantic_entry (
    tenant_id  TEXT NOT NULL,
    realm      BYTEA NOT NULL,
    added_at   BIGINT NOT NULL,
    job_id     TEXT NOT NULL,
    seq        BIGINT NOT NULL,
    month      BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    vector     REAL[] NOT NULL,
    PRIMARY KEY (tenant_id, realm, added_at, job_id, seq)
);
CREATE INDEX semantic_entry_end ON semantic_entry (expires_at);
CREATE INDEX semantic_entry_tenant ON semantic_entry (tenant_id, expires_at);

CREATE TABLE cache_day (
    tenant_id        TEXT NOT NULL,
    day              BIGINT NOT NULL,
    agent_id         TEXT NOT NULL,
    kind             TEXT NOT NULL,
    stripe           TEXT NOT NULL,
    asked            BIGINT NOT NULL,
    hits             BIGINT NOT NULL,
    same             BIGINT NOT NULL,
    agreed           BIGINT NOT NULL,
    overlap_permille BIGINT NOT NULL,
    saved_microusd   BIGINT NOT NULL,
    spent_microusd   BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, day, agent_id, kind, stripe)
);
