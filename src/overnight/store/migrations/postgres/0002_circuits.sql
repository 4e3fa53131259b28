-- One row per target (an account at a provider, and a model) that failed lately or is open; no row: closed, without failures.
CREATE TABLE circuit (
    account     TEXT NOT NULL,
    model       TEXT NOT NULL,
    failed_at   TEXT NOT NULL,
    not_before  BIGINT NOT NULL,
    opened_at   BIGINT,
    open_until  BIGINT NOT NULL,
    openings    BIGINT NOT NULL,
    probe       TEXT,
    probe_until BIGINT NOT NULL,
    why         TEXT NOT NULL,
    changed_at  BIGINT NOT NULL,
    PRIMARY KEY (account, model)
);
