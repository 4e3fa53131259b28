-- name: list_tree
WITH RECURSIVE tree (job_id) AS (
    SELECT CAST(:job_id AS TEXT)
    UNION
    SELECT job.job_id FROM tree JOIN job ON job.parent_job_id = tree.job_id
)
SELECT job.job_id, job.state, job.runtime, job.code_ref FROM tree JOIN job ON job.job_id = tree.job_id
ORDER BY job.job_id LIMIT :most

-- name: list_agent_jobs
SELECT job_id FROM job
WHERE tenant_id = :tenant_id AND agent_id = :agent_id AND created_at >= :begin AND created_at < :until
ORDER BY job_id LIMIT :most

-- name: list_effects_of_key
SELECT tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id,
    NULL AS result, error, claimed_at, settled_at, effect_id, NULL AS claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id, approval_id, called_seq, about
FROM effect WHERE tenant_id = :tenant_id AND (effect_key = :key OR client_key = :key) ORDER BY claimed_at LIMIT :most
