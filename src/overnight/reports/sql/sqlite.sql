-- name: count_effects
SELECT state, source, count(*) FROM effect WHERE job_id IN (SELECT value FROM json_each(:job_ids)) GROUP BY state, source

-- Those that can still change come first, so that a bounded list has them.
-- name: list_effects_of_jobs
SELECT tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id,
    NULL AS result, error, claimed_at, settled_at, effect_id, NULL AS claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id
FROM effect WHERE job_id IN (SELECT value FROM json_each(:job_ids))
ORDER BY CASE WHEN state IN ('waiting', 'approved', 'claimed', 'unknown') THEN 0 ELSE 1 END, claimed_at, effect_key
LIMIT :most

-- name: list_effects_of_keys
SELECT tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id,
    NULL AS result, error, claimed_at, settled_at, effect_id, NULL AS claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id
FROM effect WHERE tenant_id = :tenant_id AND effect_key IN (SELECT value FROM json_each(:keys))

-- name: list_reviews_of_jobs
SELECT review_id, job_id, kind, state, question, detail, decided_by, note, requested_at, decided_at, expires_at, effect_key, deciders
FROM review WHERE job_id IN (SELECT value FROM json_each(:job_ids)) AND (requested_at, review_id) > (:after_at, :after_id)
ORDER BY requested_at, review_id LIMIT :most

-- name: list_tool_events
SELECT seq, at, path, ordinal, fingerprint, body, CASE WHEN substr(body, 1, 22) = CAST('{"event":"tool_called"' AS BLOB) THEN content END, tenant_id, texts
FROM event WHERE job_id = :job_id AND seq > :after AND substr(body, 1, 15) = CAST('{"event":"tool_' AS BLOB)
ORDER BY seq LIMIT :most

-- name: list_requests
SELECT seq, at, body FROM event WHERE job_id = :job_id AND seq > :after AND instr(body, CAST('"input_ref"' AS BLOB)) > 0
ORDER BY seq LIMIT :most

-- name: list_tool_answers
SELECT seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts
FROM event WHERE job_id = :job_id AND seq > :after AND substr(body, 1, 26) = CAST('{"event":"model_succeeded"' AS BLOB)
    AND (content IS NULL OR instr(content, CAST('tool' AS BLOB)) > 0 OR instr(content, CAST('_call' AS BLOB)) > 0 OR instr(content, CAST('functionCall' AS BLOB)) > 0)
ORDER BY seq LIMIT :most

-- name: read_last_answer
SELECT seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts
FROM event WHERE job_id = :job_id AND substr(body, 1, 26) = CAST('{"event":"model_succeeded"' AS BLOB) ORDER BY seq DESC LIMIT 1

-- name: list_chain_messages
WITH RECURSIVE chain (hash) AS (
    SELECT unhex(value) FROM json_each(:hashes)
    UNION
    SELECT node.parent FROM chain JOIN node ON node.tenant_id = :tenant_id AND node.month = :month AND node.hash = chain.hash
)
SELECT DISTINCT node.message FROM chain
JOIN node ON node.tenant_id = :tenant_id AND node.month = :month AND node.hash = chain.hash LIMIT :most

-- name: list_result_messages
SELECT message.body FROM message
WHERE message.tenant_id = :tenant_id AND message.month = :month AND message.hash IN (SELECT unhex(value) FROM json_each(:hashes))
    AND (instr(message.body, CAST('tool' AS BLOB)) > 0 OR instr(message.body, CAST('_call_output' AS BLOB)) > 0 OR instr(message.body, CAST('functionResponse' AS BLOB)) > 0 OR instr(message.body, CAST('"function"' AS BLOB)) > 0)
