-- name: read_last_loop
SELECT review_id, tenant_id, job_id, kind, path, ordinal, question, detail, digest, state, decided_by, note, requested_at,
    decided_at, digest_key
FROM review WHERE job_id = :job_id AND kind = 'loop' ORDER BY requested_at DESC, review_id DESC LIMIT 1

-- name: search_log
SELECT seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts FROM event
WHERE job_id = :job_id AND instr(body, :text) > 0 ORDER BY seq DESC LIMIT :most
