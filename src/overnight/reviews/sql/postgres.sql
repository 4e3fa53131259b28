-- name: lock_review
SELECT review_id, tenant_id, job_id, kind, path, ordinal, question, detail, digest, state, decided_by, note, requested_at,
    decided_at, digest_key, expires_at, rule_digest, effect_key, answer, arguments_sha256, key_id, deciders
FROM review WHERE review_id = ANY(:review_id) ORDER BY review_id FOR UPDATE
