-- A budget also counts tokens and tool calls; what a person added stands beside what it was set to. `resets_at` is the end of
-- a day or a month; `scope_id` then ends with it: `support[2026-11-21]`.
ALTER TABLE budget ADD COLUMN reserved_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN spent_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN tool_calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_microusd INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_tool_calls INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_wall_clock_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN top_ups INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN resets_at INTEGER;
ALTER TABLE budget ADD COLUMN alarmed_at INTEGER;

ALTER TABLE reservation ADD COLUMN tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE reservation ADD COLUMN rates TEXT NOT NULL DEFAULT '[]';

-- A speed: when the bucket of requests and the bucket of tokens are full again, and how many calls are in flight.
CREATE TABLE rate (
    tenant_id   TEXT NOT NULL,
    scope       TEXT NOT NULL,
    scope_id    TEXT NOT NULL,
    requests_at INTEGER NOT NULL,
    tokens_at   INTEGER NOT NULL,
    in_flight   INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, scope, scope_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE top_up (
    top_up_id    TEXT PRIMARY KEY,
    tenant_id    TEXT NOT NULL,
    scope        TEXT NOT NULL,
    scope_id     TEXT NOT NULL,
    microusd     INTEGER NOT NULL,
    tokens       INTEGER NOT NULL,
    calls        INTEGER NOT NULL,
    tool_calls   INTEGER NOT NULL,
    wall_clock_s INTEGER NOT NULL,
    actor        TEXT NOT NULL,
    why          TEXT NOT NULL,
    at           INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX top_up_at ON top_up (at);

CREATE INDEX job_parked ON job (tenant_id) WHERE state = 'parked';
CREATE INDEX job_ended ON job (finished_at) WHERE finished_at IS NOT NULL AND unattributed = 0;
