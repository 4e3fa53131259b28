-- name: list_marked
SELECT seq, at, path, ordinal, fingerprint, body, content, tenant_id FROM event
WHERE job_id = :job_id AND fingerprint IS NOT NULL AND path IS NULL ORDER BY seq
