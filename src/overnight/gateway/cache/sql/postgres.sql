-- name: lock_entry
SELECT tenant_id, key, job_id, seq, month, expires_at, kept_until, leader, leader_job, lease_until FROM cache_entry
WHERE (tenant_id, key) IN (SELECT * FROM unnest(:tenant_id::text[], :key::bytea[]))
ORDER BY tenant_id, key FOR UPDATE

-- name: lock_asked
SELECT DISTINCT job_id, fingerprint FROM event
WHERE (job_id, fingerprint) IN (SELECT * FROM unnest(:job_id::text[], :fingerprint::text[])) AND path IS NULL

-- name: insert_vector
INSERT INTO semantic_entry (tenant_id, realm, added_at, job_id, seq, month, expires_at, vector)
VALUES (:tenant_id, :realm, :added_at, :job_id, :seq, :month, :expires_at, :numbers)

-- name: find_nearest
-- The inner limit bounds the search; the outer one leaves room for answers that were erased.
SELECT near.distance, answer.job_id, answer.seq, answer.at, answer.path, answer.ordinal, answer.fingerprint, answer.body,
    answer.content, answer.tenant_id, answer.texts
FROM (
    SELECT job_id, seq, month, (vector::vector <=> :numbers::real[]::vector) AS distance FROM (
        SELECT job_id, seq, month, vector FROM semantic_entry
        WHERE tenant_id = :tenant_id AND realm = :realm AND expires_at > :now AND job_id <> :job_id
        ORDER BY added_at DESC LIMIT :most
    ) AS latest ORDER BY distance LIMIT 4
) AS near
JOIN event AS answer ON answer.job_id = near.job_id AND answer.seq = near.seq AND answer.month = near.month
WHERE answer.tenant_id = :tenant_id ORDER BY near.distance LIMIT 1
