-- A budget also counts tokens and tool calls; what a person added stands beside what it was set to. `resets_at` is the end of
-- a day or a month; `scope_id` then ends with it: `support[2026-11-21]`.
ALTER TABLE budget ADD COLUMN reserved_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN spent_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN tool_calls BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_microusd BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_calls BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_tool_calls BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN extra_wall_clock_s BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN top_ups BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN resets_at BIGINT;
ALTER TABLE budget ADD COLUMN alarmed_at BIGINT;

ALTER TABLE reservation ADD COLUMN tokens BIGINT NOT NULL DEFAULT 0;
ALTER TABLE reservation ADD COLUMN rates TEXT NOT NULL DEFAULT '[]';

-- A speed: when the bucket of requests and the bucket of tokens are full again, and how many calls are in flight.
CREATE TABLE rate (
    tenant_id   TEXT NOT NULL,
    scope       TEXT NOT NULL,
    scope_id    TEXT NOT NULL,
    requests_at BIGINT NOT NULL,
    tokens_at   BIGINT NOT NULL,
    in_flight   BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, scope, scope_id)
) WITH (fillfactor = 50);

CREATE TABLE top_up (
    top_up_id    TEXT PRIMARY KEY,
    tenant_id    TEXT NOT NULL,
    scope        TEXT NOT NULL,
    scope_id     TEXT NOT NULL,
    microusd     BIGINT NOT NULL,
    tokens       BIGINT NOT NULL,
    calls        BIGINT NOT NULL,
    tool_calls   BIGINT NOT NULL,
    wall_clock_s BIGINT NOT NULL,
    actor        TEXT NOT NULL,
    why          TEXT NOT NULL,
    at           BIGINT NOT NULL
);
CREATE INDEX top_up_at ON top_up (at);

CREATE INDEX job_parked ON job (tenant_id) WHERE state = 'parked';
CREATE INDEX job_ended ON job (finished_at) WHERE finished_at IS NOT NULL AND unattributed = 0;
