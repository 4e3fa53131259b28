-- name: lock_entry
SELECT tenant_id, key, job_id, seq, month, expires_at, kept_until, leader, leader_job, lease_until FROM cache_entry
WHERE tenant_id = :tenant_id AND key = :key

-- name: lock_asked
SELECT job_id, fingerprint FROM event
WHERE job_id = :job_id AND fingerprint = :fingerprint AND path IS NULL LIMIT 1

-- name: insert_vector
INSERT INTO semantic_entry (tenant_id, realm, added_at, job_id, seq, month, expires_at, vector)
VALUES (:tenant_id, :realm, :added_at, :job_id, :seq, :month, :expires_at, :vector)

-- name: find_nearest
-- The inner limit bounds the search; the outer one leaves room for answers that were erased.
SELECT near.distance, answer.job_id, answer.seq, answer.at, answer.path, answer.ordinal, answer.fingerprint, answer.body,
    answer.content, answer.tenant_id, answer.texts
FROM (
    SELECT job_id, seq, month, vec_distance_cosine(vector, :vector) AS distance FROM (
        SELECT job_id, seq, month, vector FROM semantic_entry
        WHERE tenant_id = :tenant_id AND realm = :realm AND expires_at > :now AND job_id <> :job_id
        ORDER BY added_at DESC LIMIT :most
    ) ORDER BY distance LIMIT 4
) AS near
JOIN event AS answer ON answer.job_id = near.job_id AND answer.seq = near.seq AND answer.month = near.month
WHERE answer.tenant_id = :tenant_id ORDER BY near.distance LIMIT 1
