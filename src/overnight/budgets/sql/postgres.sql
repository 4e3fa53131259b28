-- name: lock_budget
SELECT tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls,
    reserved_tokens, spent_tokens, tool_calls, extra_microusd, extra_tokens, extra_calls, extra_tool_calls,
    extra_wall_clock_s, top_ups, resets_at, alarmed_at, bound_microusd, corrections
FROM budget
WHERE (tenant_id, scope, scope_id) IN (SELECT * FROM unnest(:tenant_id::text[], :scope::text[], :scope_id::text[]))
ORDER BY tenant_id, scope, scope_id FOR UPDATE

-- name: lock_rate
SELECT tenant_id, scope, scope_id, requests_at, tokens_at, in_flight FROM rate
WHERE (tenant_id, scope, scope_id) IN (SELECT * FROM unnest(:tenant_id::text[], :scope::text[], :scope_id::text[]))
ORDER BY tenant_id, scope, scope_id FOR UPDATE

-- name: lock_reservation
SELECT call_id, tenant_id, job_id, owner, lease_epoch, amount_microusd, estimate, scopes, tokens, rates,
    fingerprint, attempt
FROM reservation WHERE call_id = ANY(:call_id) ORDER BY call_id FOR UPDATE

-- name: lock_bound
SELECT call_id, tenant_id, job_id, scopes, call, why, day, cost_microusd, bound_microusd, tokens, booked_microusd, booked_at,
    source, corrected_at
FROM booked_bound WHERE call_id = ANY(:call_id) ORDER BY call_id FOR UPDATE

-- name: list_jobs_to_wake
SELECT budget.tenant_id, budget.scope, budget.scope_id, job.job_id, coalesce((wait ->> 'top_ups')::bigint, 0)
FROM job CROSS JOIN LATERAL json_array_elements(job.waiting::json) AS wait
JOIN budget ON budget.tenant_id = job.tenant_id
    AND budget.scope = wait ->> 'scope' AND budget.scope_id = wait ->> 'row'
WHERE job.state = 'parked' AND job.waiting LIKE '%"for":"budget"%' AND wait ->> 'for' = 'budget'
    AND (budget.top_ups > coalesce((wait ->> 'top_ups')::bigint, 0)
        OR budget.corrections > coalesce((wait ->> 'corrections')::bigint, 0))
LIMIT 1000
