-- One row per target (an account at a provider, and a model) that failed lately or is open; no row: closed, without failures.
CREATE TABLE circuit (
    account     TEXT NOT NULL,
    model       TEXT NOT NULL,
    failed_at   TEXT NOT NULL,
    not_before  INTEGER NOT NULL,
    opened_at   INTEGER,
    open_until  INTEGER NOT NULL,
    openings    INTEGER NOT NULL,
    probe       TEXT,
    probe_until INTEGER NOT NULL,
    why         TEXT NOT NULL,
    changed_at  INTEGER NOT NULL,
    PRIMARY KEY (account, model)
) STRICT, WITHOUT ROWID;
