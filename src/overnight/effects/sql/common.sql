-- name: insert_effect
INSERT INTO effect (tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id,
    result, error, claimed_at, settled_at, effect_id, claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id, approval_id,
    called_seq, about)
VALUES (:tenant_id, :effect_key, :job_id, :tool, :state, :arguments_sha256, :owner, :attempt, :lease_epoch, :provider_id,
    :result, :error, :claimed_at, :settled_at, :effect_id, :claim_digest, :expires_at, :done_sha256, :contract,
    :source, :key_id, :tool_class, :client_key, :asked_attempt, :review_id, :approval_id,
    :called_seq, :about)

-- name: update_effect
UPDATE effect SET job_id = :job_id, state = :state, arguments_sha256 = :arguments_sha256, owner = :owner, attempt = :attempt,
    lease_epoch = :lease_epoch, provider_id = :provider_id, result = :result, error = :error, claimed_at = :claimed_at,
    settled_at = :settled_at, claim_digest = :claim_digest, expires_at = :expires_at, done_sha256 = :done_sha256,
    contract = :contract, source = :source, key_id = :key_id, tool_class = :tool_class, client_key = :client_key,
    asked_attempt = :asked_attempt, review_id = :review_id, approval_id = :approval_id,
    called_seq = :called_seq, about = :about
WHERE tenant_id = :tenant_id AND effect_key = :effect_key

-- name: find_effect
SELECT effect_key FROM effect WHERE effect_id = :effect_id AND tenant_id = :tenant_id

-- name: read_arguments
SELECT content FROM event WHERE job_id = :job_id AND seq = :seq

-- name: list_expired_claims
SELECT effect_id, tenant_id, effect_key, job_id FROM effect
WHERE state = 'claimed' AND expires_at IS NOT NULL AND expires_at <= :now ORDER BY expires_at LIMIT :most

-- name: read_effect
SELECT effect.tenant_id, effect.effect_key, effect.job_id, effect.tool, effect.state, effect.arguments_sha256, effect.owner,
    effect.attempt, effect.lease_epoch, effect.provider_id, effect.result, effect.error, effect.claimed_at, effect.settled_at,
    effect.effect_id, effect.claim_digest, effect.expires_at, effect.done_sha256, effect.contract, effect.source, effect.key_id,
    effect.tool_class, effect.client_key, effect.asked_attempt, effect.review_id, effect.approval_id, effect.called_seq,
    effect.about, job.agent_id, job.workflow, coalesce(job.external_id, job.name)
FROM effect JOIN job ON job.job_id = effect.job_id WHERE effect.effect_id = :effect_id AND effect.tenant_id = :tenant_id

-- name: find_use
SELECT 1 FROM effect
WHERE tenant_id = :tenant_id AND tool = :tool AND key_id = :key_id AND called_seq IS NOT NULL AND effect_key <> :effect_key LIMIT 1
