-- name: count_effects
SELECT state, source, count(*) FROM effect WHERE job_id IN (SELECT value FROM json_each(:job_ids)) GROUP BY state, source

-- Those that can still change come first, so that a bounded list has them.
-- name: list_effects_of_jobs
SELECT tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id,
    NULL AS result, error, claimed_at, settled_at, effect_id, NULL AS claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id, approval_id, called_seq, about
FROM effect WHERE job_id IN (SELECT value FROM json_each(:job_ids))
ORDER BY CASE WHEN state IN ('waiting', 'approved', 'claimed', 'unknown') THEN 0 ELSE 1 END, claimed_at, effect_key
LIMIT :most

-- name: list_effects_of_keys
SELECT tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id,
    NULL AS result, error, claimed_at, settled_at, effect_id, NULL AS claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id, approval_id, called_seq, about
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

-- A page is found by time alone, so that no filter makes its query long.
-- name: list_audited_effects
SELECT page.tenant_id, page.effect_key, page.job_id, page.tool, page.state, page.arguments_sha256, page.owner,
    page.attempt, page.lease_epoch, page.provider_id, page.result, page.error, page.claimed_at, page.settled_at,
    page.effect_id, page.claim_digest, page.expires_at, page.done_sha256, page.contract, page.source, page.key_id,
    page.tool_class, page.client_key, page.asked_attempt, page.review_id, page.approval_id, page.called_seq, page.about, job.agent_id, job.workflow, job.external_id, job.runtime,
    (SELECT json_group_array(DISTINCT decided_by) FROM review
     WHERE review.tenant_id = page.tenant_id AND review.effect_key = page.effect_key AND review.decided_by IS NOT NULL)
FROM (
    SELECT tenant_id, effect_key, job_id, tool, state, arguments_sha256, owner, attempt, lease_epoch, provider_id,
    NULL AS result, error, claimed_at, settled_at, effect_id, NULL AS claim_digest, expires_at, done_sha256, contract,
    source, key_id, tool_class, client_key, asked_attempt, review_id, approval_id, called_seq, about
    FROM effect
    WHERE tenant_id = :tenant_id AND claimed_at >= :since AND (claimed_at, effect_key) > (:after_at, :after_key)
    ORDER BY claimed_at, effect_key LIMIT :most
) AS page JOIN job ON job.job_id = page.job_id
ORDER BY page.claimed_at, page.effect_key

-- name: list_effect_tenants
SELECT DISTINCT tenant_id FROM effect ORDER BY tenant_id

-- name: list_result_messages
SELECT message.body FROM message
WHERE message.tenant_id = :tenant_id AND message.month = :month AND message.hash IN (SELECT unhex(value) FROM json_each(:hashes))
    AND (instr(message.body, CAST('tool' AS BLOB)) > 0 OR instr(message.body, CAST('_call_output' AS BLOB)) > 0 OR instr(message.body, CAST('functionResponse' AS BLOB)) > 0 OR instr(message.body, CAST('"function"' AS BLOB)) > 0)
