-- name: lock_effect
SELECT tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id, result, error,
    claimed_at, settled_at, effect_id, claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id, approval_id
FROM effect WHERE tenant_id = :tenant_id AND effect_key = :effect_key
