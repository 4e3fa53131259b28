-- What a call really cost and what it can have cost at most are two columns, never added up: `bound_microusd` is booked where
-- nobody told the cost. Budgets count both. `spent_microusd` of rows from before may hold bounds: nothing says which.
-- `corrections` rises with each correction that makes room.
ALTER TABLE budget ADD COLUMN bound_microusd INTEGER NOT NULL DEFAULT 0;
ALTER TABLE budget ADD COLUMN corrections INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_day ADD COLUMN bound_microusd INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_job ADD COLUMN bound_microusd INTEGER NOT NULL DEFAULT 0;

-- A call that was booked at a bound, with all that a correction needs: the budgets it drew on (with their day or month), the
-- day, agent and model of the rollups, and what is booked now. `call` is JSON of its attribution.
CREATE TABLE booked_bound (
    call_id         TEXT PRIMARY KEY,
    tenant_id       TEXT NOT NULL,
    job_id          TEXT NOT NULL,
    scopes          TEXT NOT NULL,
    call            TEXT NOT NULL,
    why             TEXT NOT NULL,
    day             INTEGER NOT NULL,
    cost_microusd   INTEGER NOT NULL,
    bound_microusd  INTEGER NOT NULL,
    tokens          INTEGER NOT NULL,
    booked_microusd INTEGER NOT NULL,
    booked_at       INTEGER NOT NULL,
    source          TEXT,
    corrected_at    INTEGER
) STRICT, WITHOUT ROWID;
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
) STRICT, WITHOUT ROWID;

-- Rollups from before: the events say which of their costs were bounds.
CREATE TEMP TABLE told_bound AS
    SELECT job_id, tenant_id, CAST(strftime('%Y%m%d', at / 1000000, 'unixepoch') AS INTEGER) AS day,
        coalesce(json_extract(body, '$.agent_id'), '') AS agent_id, json_extract(body, '$.model') AS model,
        json_extract(body, '$.cost_microusd') AS amount
    FROM (SELECT job_id, tenant_id, at, CAST(body AS TEXT) AS body FROM event
        WHERE instr(body, CAST('"estimated":true' AS BLOB)) > 0)
    WHERE json_extract(body, '$.detail.estimated') AND json_extract(body, '$.cost_microusd') > 0;
UPDATE usage_job SET bound_microusd = moved.amount, cost_microusd = cost_microusd - moved.amount
FROM (SELECT job_id, model, sum(amount) AS amount FROM told_bound GROUP BY job_id, model) AS moved
WHERE usage_job.job_id = moved.job_id AND usage_job.model = moved.model;
INSERT INTO usage_day (tenant_id, day, agent_id, model, stripe, calls, input_tokens, cached_tokens, output_tokens,
    cost_microusd, bound_microusd)
SELECT tenant_id, day, agent_id, model, 'moved by 0007', 0, 0, 0, 0, -sum(amount), sum(amount)
FROM told_bound GROUP BY tenant_id, day, agent_id, model;
DROP TABLE told_bound;
