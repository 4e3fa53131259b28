-- name: lock_budget
SELECT tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls,
    reserved_tokens, spent_tokens, tool_calls, extra_microusd, extra_tokens, extra_calls, extra_tool_calls,
    extra_wall_clock_s, top_ups, resets_at, alarmed_at, bound_microusd, corrections
FROM budget WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: lock_rate
SELECT tenant_id, scope, scope_id, requests_at, tokens_at, in_flight FROM rate
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: lock_reservation
SELECT call_id, tenant_id, job_id, owner, lease_epoch, amount_microusd, estimate, scopes, tokens, rates,
    fingerprint, attempt
FROM reservation WHERE call_id = :call_id

-- name: lock_bound
SELECT call_id, tenant_id, job_id, scopes, call, why, day, cost_microusd, bound_microusd, tokens, booked_microusd, booked_at,
    source, corrected_at
FROM booked_bound WHERE call_id = :call_id

-- name: list_jobs_to_wake
SELECT budget.tenant_id, budget.scope, budget.scope_id, job.job_id, coalesce(json_extract(wait.value, '$.top_ups'), 0)
FROM job JOIN json_each(job.waiting) AS wait
JOIN budget ON budget.tenant_id = job.tenant_id
    AND budget.scope = json_extract(wait.value, '$.scope') AND budget.scope_id = json_extract(wait.value, '$.row')
WHERE job.state = 'parked' AND job.waiting LIKE '%"for":"budget"%' AND json_extract(wait.value, '$.for') = 'budget'
    AND (budget.top_ups > coalesce(json_extract(wait.value, '$.top_ups'), 0)
        OR budget.corrections > coalesce(json_extract(wait.value, '$.corrections'), 0))
LIMIT 1000
