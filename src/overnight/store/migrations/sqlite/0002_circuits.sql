-- One row per target (provider and model) that failed lately or is open; no row is a closed circuit without failures.
CREATE TABLE circuit (
    provider    TEXT NOT NULL,
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
    PRIMARY KEY (provider, model)
) STRICT, WITHOUT ROWID;
