-- name: lock_budget
SELECT tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls FROM budget
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: lock_reservation
SELECT call_id, tenant_id, job_id, owner, lease_epoch, amount_microusd, estimate, scopes, expires_at FROM reservation
WHERE call_id = :call_id
