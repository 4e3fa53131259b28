-- name: insert_budget
INSERT INTO budget (tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls,
    reserved_tokens, spent_tokens, tool_calls, extra_microusd, extra_tokens, extra_calls, extra_tool_calls,
    extra_wall_clock_s, top_ups, resets_at, alarmed_at)
VALUES (:tenant_id, :scope, :scope_id, :limit_microusd, :limit_calls, :reserved_microusd, :spent_microusd, :calls,
    :reserved_tokens, :spent_tokens, :tool_calls, :extra_microusd, :extra_tokens, :extra_calls, :extra_tool_calls,
    :extra_wall_clock_s, :top_ups, :resets_at, :alarmed_at)

-- name: update_budget
UPDATE budget SET limit_microusd = :limit_microusd, limit_calls = :limit_calls, reserved_microusd = :reserved_microusd,
    spent_microusd = :spent_microusd, calls = :calls, reserved_tokens = :reserved_tokens, spent_tokens = :spent_tokens,
    tool_calls = :tool_calls, extra_microusd = :extra_microusd, extra_tokens = :extra_tokens, extra_calls = :extra_calls,
    extra_tool_calls = :extra_tool_calls, extra_wall_clock_s = :extra_wall_clock_s, top_ups = :top_ups,
    alarmed_at = :alarmed_at
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: touch_budget
UPDATE budget SET reserved_microusd = :reserved_microusd, spent_microusd = :spent_microusd, calls = :calls,
    reserved_tokens = :reserved_tokens, spent_tokens = :spent_tokens
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: insert_rate
INSERT INTO rate (tenant_id, scope, scope_id, requests_at, tokens_at, in_flight)
VALUES (:tenant_id, :scope, :scope_id, :requests_at, :tokens_at, :in_flight)

-- name: update_rate
UPDATE rate SET requests_at = :requests_at, tokens_at = :tokens_at, in_flight = :in_flight
WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: insert_reservation
INSERT INTO reservation (call_id, tenant_id, job_id, owner, lease_epoch, amount_microusd, estimate, scopes, expires_at,
    tokens, rates)
VALUES (:call_id, :tenant_id, :job_id, :owner, :lease_epoch, :amount_microusd, :estimate, :scopes, :expires_at,
    :tokens, :rates)

-- name: delete_reservation
DELETE FROM reservation WHERE call_id = :call_id

-- name: read_budget
SELECT tenant_id, scope, scope_id, limit_microusd, limit_calls, reserved_microusd, spent_microusd, calls,
    reserved_tokens, spent_tokens, tool_calls, extra_microusd, extra_tokens, extra_calls, extra_tool_calls,
    extra_wall_clock_s, top_ups, resets_at, alarmed_at
FROM budget WHERE tenant_id = :tenant_id AND scope = :scope AND scope_id = :scope_id

-- name: list_reservations
SELECT call_id, job_id FROM reservation WHERE job_id = :job_id AND (lease_epoch IS NULL OR lease_epoch < :lease_epoch)

-- name: list_owned_reservations
SELECT call_id, job_id FROM reservation WHERE owner = :owner LIMIT 1000

-- name: list_expired_reservations
SELECT call_id, job_id FROM reservation WHERE expires_at < :now LIMIT 1000
