-- What a call really cost and what it can have cost at most are two columns, never added up: `bound_microusd` is booked where
-- nobody told the cost. Budgets count both. `spent_microusd` of rows from before may hold bounds: nothing says which.
-- `corrections` rises with each correction that makes room.
ALTER TABLE budget ADD COLUMN bound_microusd BIGINT NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN corrections BIGINT NOT NULL DEFAULT 0;
ALTER TABLE usage_day ADD COLUMN bound_microusd BIGINT NOT NULL DEFAULT 0;
ALTER TABLE usage_job ADD COLUMN bound_microusd BIGINT NOT NULL DEFAULT 0;

-- A call that was booked at a bound, with all that a correction needs: the budgets it drew on (with their day or month), the
-- day, agent and model of the rollups, and what is booked now. `call` is JSON of its attribution.
CREATE TABLE booked_bound (
    call_id         TEXT PRIMARY KEY,
    tenant_id       TEXT NOT NULL,
    job_id          TEXT NOT NULL,
    scopes          TEXT NOT NULL,
    call            TEXT NOT NULL,
    why             TEXT NOT NULL,
    day             BIGINT NOT NULL,
    cost_microusd   BIGINT NOT NULL,
    bound_microusd  BIGINT NOT NULL,
    tokens          BIGINT NOT NULL,
    booked_microusd BIGINT NOT NULL,
    booked_at       BIGINT NOT NULL,
    source          TEXT,
    corrected_at    BIGINT
);
CREATE INDEX booked_bound_open ON booked_bound (tenant_id, booked_at) WHERE bound_microusd > 0;
CREATE INDEX booked_bound_job ON booked_bound (job_id);
CREATE INDEX booked_bound_corrected ON booked_bound (corrected_at) WHERE corrected_at IS NOT NULL;

-- The bounds of a budget, so that a job that is stopped can say which calls are in its way.
CREATE TABLE booked_bound_scope (
    tenant_id TEXT NOT NULL,
    scope     TEXT NOT NULL,
    scope_id  TEXT NOT NULL,
    call_id   TEXT NOT NULL,
    PRIMARY KEY (tenant_id, scope, scope_id, call_id)
);

-- Rollups from before: the events say which of their costs were bounds.
CREATE TEMP TABLE told_bound ON COMMIT DROP AS
    SELECT job_id, tenant_id, to_char(to_timestamp(at / 1000000) AT TIME ZONE 'UTC', 'YYYYMMDD')::bigint AS day,
        coalesce(body ->> 'agent_id', '') AS agent_id, body ->> 'model' AS model,
        (body ->> 'cost_microusd')::bigint AS amount
    FROM (SELECT job_id, tenant_id, at, convert_from(body, 'UTF8')::json AS body FROM event
        WHERE position('"estimated":true'::bytea IN body) > 0 OFFSET 0) AS told
    WHERE body -> 'detail' ->> 'estimated' = 'true' AND (body ->> 'cost_microusd')::bigint > 0;
UPDATE usage_job SET bound_microusd = moved.amount, cost_microusd = cost_microusd - moved.amount
FROM (SELECT job_id, model, sum(amount)::bigint AS amount FROM told_bound GROUP BY job_id, model) AS moved
WHERE usage_job.job_id = moved.job_id AND usage_job.model = moved.model;
INSERT INTO usage_day (tenant_id, day, agent_id, model, stripe, calls, input_tokens, cached_tokens, output_tokens,
    cost_microusd, bound_microusd)
SELECT tenant_id, day, agent_id, model, 'moved by 0007', 0, 0, 0, 0, -sum(amount), sum(amount)
FROM told_bound GROUP BY tenant_id, day, agent_id, model;
