-- name: lock_effect
SELECT tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id, result, error,
    claimed_at, settled_at
FROM effect WHERE tenant_id = :tenant_id AND effect_key = :effect_key
