-- name: insert_effect
INSERT INTO effect (tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id,
    result, error, claimed_at, settled_at)
VALUES (:tenant_id, :effect_key, :job_id, :tool, :state, :arguments_sha256, :owner, :attempt, :lease_epoch, :provider_id,
    :result, :error, :claimed_at, :settled_at)

-- name: update_effect
UPDATE effect SET state = :state, arguments_sha256 = :arguments_sha256, owner = :owner, attempt = :attempt,
    lease_epoch = :lease_epoch, provider_id = :provider_id, result = :result, error = :error, claimed_at = :claimed_at,
    settled_at = :settled_at
WHERE tenant_id = :tenant_id AND effect_key = :effect_key
