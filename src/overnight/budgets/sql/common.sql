-- name: insert_budget
INSERT INTO budget (tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls)
VALUES (:tenant_id, :scope, :scope_id, :limit_microusd, :limit_calls, :reserved_microusd, :spent_microusd, :calls)

-- name: update_budget
UPDATE budget SET limit_microusd = :limit_microusd, limit_calls = :limit_calls, reserved_microusd = :reserved_microusd,
    spent_microusd = :spent_microusd, calls = :calls
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: insert_reservation
INSERT INTO reservation (call_id, tenant_id, job_id, owner, lease_epoch, amount_microusd, estimate, scopes, expires_at)
VALUES (:call_id, :tenant_id, :job_id, :owner, :lease_epoch, :amount_microusd, :estimate, :scopes, :expires_at)

-- name: delete_reservation
DELETE FROM reservation WHERE call_id = :call_id

-- name: read_budget
SELECT tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls FROM budget
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: list_reservations
SELECT call_id, job_id FROM reservation WHERE job_id = :job_id AND (lease_epoch IS NULL OR lease_epoch < :lease_epoch)

-- name: list_owned_reservations
SELECT call_id, job_id FROM reservation WHERE owner = :owner LIMIT 1000

-- name: list_expired_reservations
SELECT call_id, job_id FROM reservation WHERE expires_at < :now LIMIT 1000
