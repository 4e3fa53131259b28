-- name: insert_review
INSERT INTO review (review_id, tenant_id, job_id, kind, path, ordinal, question, detail, digest, state, decided_by, note,
    requested_at, decided_at, digest_key, expires_at, rule_digest, effect_key, answer, arguments_sha256, key_id, deciders)
VALUES (:review_id, :tenant_id, :job_id, :kind, :path, :ordinal, :question, :detail, :digest, :state, :decided_by, :note,
    :requested_at, :decided_at, :digest_key, :expires_at, :rule_digest, :effect_key, :answer, :arguments_sha256, :key_id, :deciders)

-- name: update_review
UPDATE review SET state = :state, decided_by = :decided_by, note = :note, decided_at = :decided_at,
    expires_at = :expires_at, answer = :answer, rule_digest = :rule_digest WHERE review_id = :review_id

-- name: read_review
SELECT review_id, tenant_id, job_id, kind, path, ordinal, question, detail, digest, state, decided_by, note, requested_at,
    decided_at, digest_key, expires_at, rule_digest, effect_key, answer, arguments_sha256, key_id, deciders
FROM review WHERE review_id = :review_id

-- name: list_reviews
SELECT review_id, tenant_id, job_id, kind, path, ordinal, question, detail, digest, state, decided_by, note, requested_at,
    decided_at, digest_key, expires_at, rule_digest, effect_key, answer, arguments_sha256, key_id, deciders
FROM review
WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND (:state = '' OR state = :state) AND (:job_id = '' OR job_id = :job_id)
ORDER BY requested_at LIMIT :most

-- name: list_expired
SELECT review_id, job_id, tenant_id, effect_key FROM review
WHERE state = 'open' AND expires_at IS NOT NULL AND expires_at <= :now ORDER BY expires_at LIMIT :most
