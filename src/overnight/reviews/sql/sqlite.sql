-- name: lock_review
SELECT review_id, tenant_id, job_id, kind, path, ordinal, question, detail, digest, state, decided_by, note, requested_at,
    decided_at, digest_key, expires_at, rule_digest, effect_key, answer, arguments_sha256, key_id, deciders
FROM review WHERE review_id = :review_id

-- name: read_open
SELECT job_id, json_group_array(review_id) AS review_ids FROM review WHERE job_id = :job_id AND state = 'open' GROUP BY job_id

-- name: find_pending
SELECT review.review_id, review.tenant_id, review.job_id, review.kind, review.path, review.ordinal, review.question,
    review.detail, review.digest, review.state, review.decided_by, review.note, review.requested_at,
    review.decided_at, review.digest_key, review.expires_at, review.rule_digest, review.effect_key, review.answer,
    review.arguments_sha256, review.key_id, review.deciders
FROM review JOIN job ON job.job_id = review.job_id
WHERE review.tenant_id = :tenant_id AND review.state = 'open' AND review.review_id > :after
    AND (:kind = '' OR review.kind = :kind) AND (:job_id = '' OR review.job_id = :job_id)
    AND (:agent_id = '' OR job.agent_id = :agent_id) AND (:workflow = '' OR job.workflow = :workflow)
    AND (:names = '[]' OR EXISTS (
        SELECT 1 FROM json_each(:names) WHERE coalesce(job.external_id, job.name) GLOB value
    ))
ORDER BY review.review_id LIMIT :most

-- name: find_reviews
SELECT review.review_id, review.tenant_id, review.job_id, review.kind, review.path, review.ordinal, review.question,
    review.detail, review.digest, review.state, review.decided_by, review.note, review.requested_at,
    review.decided_at, review.digest_key, review.expires_at, review.rule_digest, review.effect_key, review.answer,
    review.arguments_sha256, review.key_id, review.deciders
FROM review JOIN job ON job.job_id = review.job_id
WHERE review.tenant_id = :tenant_id AND (:state_0 = '' OR review.state IN (:state_0, :state_1, :state_2)) AND review.review_id > :after
    AND (:kind = '' OR review.kind = :kind) AND (:job_id = '' OR review.job_id = :job_id)
    AND (:agent_id = '' OR job.agent_id = :agent_id) AND (:workflow = '' OR job.workflow = :workflow)
    AND (:names = '[]' OR EXISTS (
        SELECT 1 FROM json_each(:names) WHERE coalesce(job.external_id, job.name) GLOB value
    ))
ORDER BY review.review_id LIMIT :most
