-- name: lock_effect
SELECT tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id, result, error,
    claimed_at, settled_at, effect_id, claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id, approval_id, called_seq, about
FROM effect WHERE tenant_id = :tenant_id AND effect_key = :effect_key

-- name: list_effects
SELECT effect.tenant_id, effect.effect_key, effect.job_id, effect.tool, effect.state, effect.arguments_sha256, effect.owner,
    effect.attempt, effect.lease_epoch, effect.provider_id, effect.result, effect.error, effect.claimed_at, effect.settled_at,
    effect.effect_id, effect.claim_digest, effect.expires_at, effect.done_sha256, effect.contract, effect.source, effect.key_id,
    effect.tool_class, effect.client_key, effect.asked_attempt, effect.review_id, effect.approval_id, effect.called_seq,
    effect.about
FROM effect JOIN job ON job.job_id = effect.job_id
WHERE effect.tenant_id = :tenant_id AND (:before = '' OR effect.effect_id < :before)
    AND (:job_id = '' OR effect.job_id = :job_id) AND (:state = '' OR effect.state = :state) AND (:tool = '' OR effect.tool = :tool)
    AND (:agent_id = '' OR job.agent_id = :agent_id) AND (:workflow = '' OR job.workflow = :workflow)
    AND (:names = '[]' OR EXISTS (
        SELECT 1 FROM json_each(:names) WHERE coalesce(job.external_id, job.name) GLOB value
    ))
ORDER BY effect.effect_id DESC LIMIT :most

-- name: list_effect_states
SELECT effect_id, state FROM effect WHERE effect_id IN (SELECT value FROM json_each(:effect_ids))
