-- name: insert_entry
INSERT INTO cache_entry (tenant_id, key, job_id, seq, month, expires_at, kept_until, leader, leader_job, lease_until)
VALUES (:tenant_id, :key, :job_id, :seq, :month, :expires_at, :kept_until, :leader, :leader_job, :lease_until)

-- name: update_entry
UPDATE cache_entry SET job_id = :job_id, seq = :seq, month = :month, expires_at = :expires_at, kept_until = :kept_until,
    leader = :leader, leader_job = :leader_job, lease_until = :lease_until
WHERE tenant_id = :tenant_id AND key = :key

-- name: delete_entry
DELETE FROM cache_entry WHERE tenant_id = :tenant_id AND key = :key

-- name: look_up
-- The answer is read where it was recorded, within the tenant; where it was erased, there is no answer.
SELECT answer.job_id, answer.seq, answer.at, answer.path, answer.ordinal, answer.fingerprint, answer.body, answer.content,
    answer.tenant_id, answer.texts
FROM cache_entry AS entry
JOIN event AS answer ON answer.job_id = entry.job_id AND answer.seq = entry.seq AND answer.month = entry.month
WHERE entry.tenant_id = :tenant_id AND entry.key = :key AND entry.expires_at > :now AND answer.tenant_id = :tenant_id

-- name: look_up_older
SELECT answer.job_id, answer.seq, answer.at, answer.path, answer.ordinal, answer.fingerprint, answer.body, answer.content,
    answer.tenant_id, answer.texts
FROM cache_entry AS entry
JOIN event AS answer ON answer.job_id = entry.job_id AND answer.seq = entry.seq AND answer.month = entry.month
WHERE entry.tenant_id = :tenant_id AND entry.key = :key AND entry.kept_until > :now AND answer.tenant_id = :tenant_id

-- name: read_answer
SELECT seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts FROM event
WHERE job_id = :job_id AND seq = :seq AND month = :month AND tenant_id = :tenant_id

-- name: read_standing
SELECT job_id, runtime, attempt,
    (SELECT min(seq) FROM event WHERE event.job_id = job.job_id AND event.fingerprint = :mark AND event.path IS NULL)
FROM job WHERE job_id = :job_id AND tenant_id = :tenant_id

-- name: read_standing_external
SELECT job_id, runtime, attempt,
    (SELECT min(seq) FROM event WHERE event.job_id = job.job_id AND event.fingerprint = :mark AND event.path IS NULL)
FROM job WHERE tenant_id = :tenant_id AND external_id = :external_id

-- name: drop_old_entries
DELETE FROM cache_entry WHERE (tenant_id, key) IN (
    SELECT tenant_id, key FROM cache_entry WHERE kept_until <= :now AND lease_until <= :now LIMIT :batch
) RETURNING 1

-- name: drop_more_entries
DELETE FROM cache_entry WHERE (tenant_id, key) IN (
    SELECT tenant_id, key FROM cache_entry
    WHERE tenant_id = :tenant_id AND lease_until <= :now AND kept_until <= (
        SELECT kept_until FROM cache_entry WHERE tenant_id = :tenant_id ORDER BY kept_until DESC LIMIT 1 OFFSET :most
    ) LIMIT :batch
) RETURNING 1

-- name: drop_old_vectors
DELETE FROM semantic_entry WHERE (tenant_id, realm, added_at, job_id, seq) IN (
    SELECT tenant_id, realm, added_at, job_id, seq FROM semantic_entry WHERE expires_at <= :now LIMIT :batch
) RETURNING 1

-- name: drop_more_vectors
DELETE FROM semantic_entry WHERE (tenant_id, realm, added_at, job_id, seq) IN (
    SELECT tenant_id, realm, added_at, job_id, seq FROM semantic_entry
    WHERE tenant_id = :tenant_id AND expires_at <= (
        SELECT expires_at FROM semantic_entry WHERE tenant_id = :tenant_id ORDER BY expires_at DESC LIMIT 1 OFFSET :most
    ) LIMIT :batch
) RETURNING 1

-- name: add_cache_day
INSERT INTO cache_day (tenant_id, day, agent_id, kind, stripe, asked, hits, same, agreed, overlap_permille, saved_microusd,
    spent_microusd)
VALUES (:tenant_id, :day, :agent_id, :kind, :stripe, :asked, :hits, :same, :agreed, :overlap_permille, :saved_microusd,
    :spent_microusd)
ON CONFLICT (tenant_id, day, agent_id, kind, stripe) DO UPDATE SET
    asked = cache_day.asked + excluded.asked,
    hits = cache_day.hits + excluded.hits,
    same = cache_day.same + excluded.same,
    agreed = cache_day.agreed + excluded.agreed,
    overlap_permille = cache_day.overlap_permille + excluded.overlap_permille,
    saved_microusd = cache_day.saved_microusd + excluded.saved_microusd,
    spent_microusd = cache_day.spent_microusd + excluded.spent_microusd

-- name: sum_cache_days
SELECT tenant_id, agent_id, kind, CAST(sum(asked) AS BIGINT), CAST(sum(hits) AS BIGINT), CAST(sum(same) AS BIGINT),
    CAST(sum(agreed) AS BIGINT), CAST(sum(overlap_permille) AS BIGINT), CAST(sum(saved_microusd) AS BIGINT),
    CAST(sum(spent_microusd) AS BIGINT)
FROM cache_day WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND day BETWEEN :first AND :last
GROUP BY tenant_id, agent_id, kind ORDER BY tenant_id, agent_id, kind

-- name: read_claim
SELECT expires_at, lease_until FROM cache_entry WHERE tenant_id = :tenant_id AND key = :key
