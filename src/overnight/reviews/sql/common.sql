-- name: insert_review
INSERT INTO review (review_id, tenant_id, job_id, kind, path, ordinal, question, detail, digest, state, decided_by, note,
    requested_at, decided_at, digest_key)
VALUES (:review_id, :tenant_id, :job_id, :kind, :path, :ordinal, :question, :detail, :digest, :state, :decided_by, :note,
    :requested_at, :decided_at, :digest_key)

-- name: update_review
UPDATE review SET state = :state, decided_by = :decided_by, note = :note, decided_at = :decided_at WHERE review_id = :review_id

-- name: read_review
SELECT review_id, tenant_id, job_id, kind, path, ordinal, question, detail, digest, state, decided_by, note, requested_at,
    decided_at, digest_key
FROM review WHERE review_id = :review_id

-- name: list_reviews
SELECT review_id, tenant_id, job_id, kind, path, ordinal, question, detail, digest, state, decided_by, note, requested_at,
    decided_at, digest_key
FROM review
WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND (:state = '' OR state = :state) AND (:job_id = '' OR job_id = :job_id)
ORDER BY requested_at LIMIT :most
