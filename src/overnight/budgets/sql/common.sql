-- name: insert_budget
INSERT INTO budget (tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls,
    reserved_tokens, spent_tokens, tool_calls, extra_microusd, extra_tokens, extra_calls, extra_tool_calls,
    extra_wall_clock_s, top_ups, resets_at, alarmed_at, bound_microusd, corrections)
VALUES (:tenant_id, :scope, :scope_id, :limit_microusd, :limit_calls, :reserved_microusd, :spent_microusd, :calls,
    :reserved_tokens, :spent_tokens, :tool_calls, :extra_microusd, :extra_tokens, :extra_calls, :extra_tool_calls,
    :extra_wall_clock_s, :top_ups, :resets_at, :alarmed_at, :bound_microusd, :corrections)

-- name: update_budget
UPDATE budget SET limit_microusd = :limit_microusd, limit_calls = :limit_calls, reserved_microusd = :reserved_microusd,
    spent_microusd = :spent_microusd, calls = :calls, reserved_tokens = :reserved_tokens, spent_tokens = :spent_tokens,
    tool_calls = :tool_calls, extra_microusd = :extra_microusd, extra_tokens = :extra_tokens, extra_calls = :extra_calls,
    extra_tool_calls = :extra_tool_calls, extra_wall_clock_s = :extra_wall_clock_s, top_ups = :top_ups,
    alarmed_at = :alarmed_at, bound_microusd = :bound_microusd, corrections = :corrections
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: touch_budget
UPDATE budget SET reserved_microusd = :reserved_microusd, spent_microusd = :spent_microusd, calls = :calls,
    reserved_tokens = :reserved_tokens, spent_tokens = :spent_tokens, bound_microusd = :bound_microusd
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: insert_rate
INSERT INTO rate (tenant_id, scope, scope_id, requests_at, tokens_at, in_flight)
VALUES (:tenant_id, :scope, :scope_id, :requests_at, :tokens_at, :in_flight)

-- name: update_rate
UPDATE rate SET requests_at = :requests_at, tokens_at = :tokens_at, in_flight = :in_flight
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: insert_reservation
INSERT INTO reservation (call_id, tenant_id, job_id, owner, lease_epoch, amount_microusd, estimate, scopes,
    tokens, rates, fingerprint, attempt)
VALUES (:call_id, :tenant_id, :job_id, :owner, :lease_epoch, :amount_microusd, :estimate, :scopes,
    :tokens, :rates, :fingerprint, :attempt)

-- name: delete_reservation
DELETE FROM reservation WHERE call_id = :call_id

-- name: read_budget
SELECT tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls,
    reserved_tokens, spent_tokens, tool_calls, extra_microusd, extra_tokens, extra_calls, extra_tool_calls,
    extra_wall_clock_s, top_ups, resets_at, alarmed_at, bound_microusd, corrections
FROM budget WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: list_reservations
SELECT call_id, job_id FROM reservation
WHERE job_id = :job_id AND fingerprint IS NULL AND (lease_epoch IS NULL OR lease_epoch < :lease_epoch)

-- name: list_owned_reservations
SELECT call_id, job_id FROM reservation WHERE owner = :owner AND call_id > :after ORDER BY call_id LIMIT 1000

-- name: list_reservation_owners
SELECT owned.owner, worker.host, worker.pid, worker.seen_at
FROM (SELECT owner FROM reservation UNION SELECT CAST(:owner AS TEXT)) AS owned
LEFT JOIN worker ON worker.worker_id = owned.owner

-- name: sum_renewals_of_others
SELECT count(*), CAST(coalesce(sum(seen_at), 0) AS TEXT) FROM worker WHERE worker_id <> :owner

-- name: read_owner_seen_at
SELECT seen_at FROM worker WHERE worker_id = :owner

-- name: count_in_flight
SELECT count(*) FROM reservation
WHERE job_id = :job_id AND fingerprint = :fingerprint AND attempt < :attempt

-- name: insert_top_up
INSERT INTO top_up (top_up_id, tenant_id, scope, scope_id, microusd, tokens, calls, tool_calls, wall_clock_s, actor, why, at)
VALUES (:top_up_id, :tenant_id, :scope, :scope_id, :microusd, :tokens, :calls, :tool_calls, :wall_clock_s, :actor, :why, :at)

-- name: list_top_ups
SELECT tenant_id, scope, scope_id, actor, why, microusd, tokens, calls, tool_calls, wall_clock_s, at FROM top_up
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id ORDER BY at

-- name: list_stopped_jobs
SELECT job_id, waiting FROM job
WHERE state = 'parked' AND tenant_id = :tenant_id AND job_id > :after AND waiting LIKE '%"for":"budget"%'
ORDER BY job_id LIMIT 500

-- name: list_budgets
SELECT tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls,
    reserved_tokens, spent_tokens, tool_calls, extra_microusd, extra_tokens, extra_calls, extra_tool_calls,
    extra_wall_clock_s, top_ups, resets_at, alarmed_at, bound_microusd, corrections
FROM budget
WHERE scope IN ('agent', 'key', 'session', 'tenant', 'workflow') AND (:tenant_id = '' OR tenant_id = :tenant_id)
    AND (resets_at IS NULL OR resets_at > :now)
ORDER BY tenant_id, scope, scope_id LIMIT 2000

-- name: list_job_budgets
SELECT budget.tenant_id, budget.scope, budget.scope_id, budget.limit_microusd, budget.limit_calls,
    budget.reserved_microusd, budget.spent_microusd, budget.calls, budget.reserved_tokens, budget.spent_tokens,
    budget.tool_calls, budget.extra_microusd, budget.extra_tokens, budget.extra_calls, budget.extra_tool_calls,
    budget.extra_wall_clock_s, budget.top_ups, budget.resets_at, budget.alarmed_at,
    budget.bound_microusd, budget.corrections,
    coalesce(job.workflow, job.name), job.started_at, coalesce(job.external_id, job.name)
FROM (
    SELECT job_id, tenant_id, external_id, workflow, name, started_at FROM job
    WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND (:job_id = '' OR job_id = :job_id)
        AND (:agent_id = '' OR agent_id = :agent_id) AND (:workflow = '' OR workflow = :workflow)
        AND (:job_id <> '' OR (state IN ('queued', 'running', 'parked') AND unattributed = 0))
    ORDER BY job_id DESC LIMIT :most
) AS job
JOIN budget ON budget.tenant_id = job.tenant_id
    AND (budget.scope = 'job' OR budget.scope = 'step') AND budget.scope_id >= job.job_id AND budget.scope_id < job.job_id || 'z'
WHERE budget.resets_at IS NULL OR budget.resets_at > :now
ORDER BY job.job_id DESC, budget.scope, budget.scope_id

-- name: insert_bound
INSERT INTO booked_bound (call_id, tenant_id, job_id, scopes, call, why, day, cost_microusd, bound_microusd, tokens,
    booked_microusd, booked_at, source, corrected_at)
VALUES (:call_id, :tenant_id, :job_id, :scopes, :call, :why, :day, :cost_microusd, :bound_microusd, :tokens,
    :booked_microusd, :booked_at, :source, :corrected_at)

-- name: update_bound
UPDATE booked_bound SET cost_microusd = :cost_microusd, bound_microusd = :bound_microusd, tokens = :tokens,
    source = :source, corrected_at = :corrected_at
WHERE call_id = :call_id

-- name: insert_bound_scope
INSERT INTO booked_bound_scope (tenant_id, scope, scope_id, call_id) VALUES (:tenant_id, :scope, :scope_id, :call_id)

-- name: delete_bound_scope
DELETE FROM booked_bound_scope
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id AND call_id = :call_id

-- name: read_bound
SELECT call_id, tenant_id, job_id, scopes, call, why, day, cost_microusd, bound_microusd, tokens, booked_microusd, booked_at,
    source, corrected_at
FROM booked_bound WHERE call_id = :call_id AND tenant_id = :tenant_id

-- name: read_reservation
SELECT call_id FROM reservation WHERE call_id = :call_id AND tenant_id = :tenant_id

-- name: list_bounds
SELECT call_id, tenant_id, job_id, scopes, call, why, day, cost_microusd, bound_microusd, tokens, booked_microusd, booked_at,
    source, corrected_at
FROM booked_bound
WHERE bound_microusd > 0 AND (:tenant_id = '' OR tenant_id = :tenant_id) AND (:job_id = '' OR job_id = :job_id)
ORDER BY booked_at DESC, call_id LIMIT :most

-- name: list_bounds_of_budget
SELECT booked_bound.call_id, booked_bound.job_id, booked_bound.bound_microusd, booked_bound.why
FROM booked_bound_scope JOIN booked_bound ON booked_bound.call_id = booked_bound_scope.call_id
WHERE booked_bound_scope.tenant_id = :tenant_id AND booked_bound_scope.scope = :scope
    AND booked_bound_scope.scope_id = :scope_id AND booked_bound.bound_microusd > 0
ORDER BY booked_bound.bound_microusd DESC, booked_bound.call_id LIMIT :most

-- name: list_corrected_bounds
SELECT call_id, tenant_id, job_id, scopes, call, why, day, cost_microusd, bound_microusd, tokens, booked_microusd, booked_at,
    source, corrected_at
FROM booked_bound WHERE corrected_at IS NOT NULL AND tenant_id = :tenant_id ORDER BY corrected_at
