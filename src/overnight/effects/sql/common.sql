-- name: insert_effect
INSERT INTO effect (tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id,
    result, error, claimed_at, settled_at, effect_id, claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id, approval_id)
VALUES (:tenant_id, :effect_key, :job_id, :tool, :state, :arguments_sha256, :owner, :attempt, :lease_epoch, :provider_id,
    :result, :error, :claimed_at, :settled_at, :effect_id, :claim_digest, :expires_at, :done_sha256, :contract,
    :source, :key_id, :tool_class, :client_key, :asked_attempt, :review_id, :approval_id)

-- name: update_effect
UPDATE effect SET job_id = :job_id, state = :state, arguments_sha256 = :arguments_sha256, owner = :owner, attempt = :attempt,
    lease_epoch = :lease_epoch, provider_id = :provider_id, result = :result, error = :error, claimed_at = :claimed_at,
    settled_at = :settled_at, claim_digest = :claim_digest, expires_at = :expires_at, done_sha256 = :done_sha256,
    contract = :contract, source = :source, key_id = :key_id, tool_class = :tool_class, client_key = :client_key,
    asked_attempt = :asked_attempt, review_id = :review_id, approval_id = :approval_id
WHERE tenant_id = :tenant_id AND effect_key = :effect_key

-- name: find_effect
SELECT effect_key FROM effect WHERE effect_id = :effect_id AND tenant_id = :tenant_id
