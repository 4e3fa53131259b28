-- All events of a transaction share its position; the order is (position, job_id, seq).
-- name: insert_event_before
UPDATE feed_epoch SET position = position + 1

-- name: insert_event
INSERT INTO event (job_id, seq, tenant_id, month, at, path, ordinal, fingerprint, body, content, content_key, texts, position)
VALUES (:job_id, :seq, :tenant_id, :month, :at, :path, :ordinal, :fingerprint, :body, :content, :content_key, :texts,
    (SELECT position FROM feed_epoch))

-- name: lock_job
SELECT job_id, tenant_id, external_id, parent_job_id, root_job_id, runtime, name, agent_id, workflow, session_id, code_ref,
    code_fingerprint, brain_version, parent_path, parent_ordinal, state, waiting, attempt, lease_epoch, lease_owner,
    lease_expires_at, wake_at, recoveries, last_seq, input, result, error, unattributed, created_at, started_at, finished_at,
    active_at, cancel_requested_at
FROM job WHERE job_id = :job_id

-- name: lock_external
SELECT tenant_id, external_id, job_id FROM job WHERE tenant_id = :tenant_id AND external_id = :external_id

-- name: known_nodes
SELECT hash FROM node WHERE tenant_id = :tenant_id AND month = :month AND hash IN (SELECT unhex(value) FROM json_each(:hashes))

-- name: list_jobs_cost
SELECT job_id, sum(calls), sum(cost_microusd), sum(bound_microusd) FROM usage_job
WHERE job_id IN (SELECT value FROM json_each(:job_ids)) GROUP BY job_id

-- name: list_last_messages
SELECT node.hash, message.body FROM node
JOIN message ON message.tenant_id = node.tenant_id AND message.month = node.month AND message.hash = node.message
WHERE node.tenant_id = :tenant_id AND node.month = :month AND node.hash IN (SELECT unhex(value) FROM json_each(:hashes))

-- name: list_last_events
SELECT event.job_id, event.at, event.body FROM job JOIN event ON event.job_id = job.job_id AND event.seq > job.last_seq - :most
WHERE job.job_id IN (SELECT value FROM json_each(:job_ids)) ORDER BY event.job_id, event.seq DESC

-- name: list_job_heads
SELECT job_id, last_seq, state FROM job WHERE job_id IN (SELECT value FROM json_each(:job_ids))

-- A page has the places of all tenants' events, and reads the facts of the wanted ones only.
-- name: read_feed
SELECT position, job_id, :tenant_id = '' OR tenant_id = :tenant_id AS is_wanted, seq, at, path, ordinal, fingerprint,
    CASE WHEN :tenant_id = '' OR tenant_id = :tenant_id THEN body END,
    CASE WHEN :tenant_id = '' OR tenant_id = :tenant_id THEN content END, tenant_id,
    CASE WHEN :tenant_id = '' OR tenant_id = :tenant_id THEN texts END
FROM event
WHERE position >= :position AND (position, job_id, seq) > (:position, :job_id, :seq)
ORDER BY position, job_id, seq LIMIT :most

-- name: read_feed_end
SELECT position, job_id, seq FROM event ORDER BY position DESC, job_id DESC, seq DESC LIMIT 1

-- name: read_feed_next
SELECT at FROM event WHERE position >= :position AND (position, job_id, seq) > (:position, :job_id, :seq)
ORDER BY position, job_id, seq LIMIT 1

-- name: lock_cursor
SELECT sink, position, job_id, seq, owner, beat FROM feed_cursor WHERE sink = :sink

-- name: list_jobs
SELECT job_id, tenant_id, external_id, parent_job_id, root_job_id, runtime, name, agent_id, workflow, session_id, code_ref,
    code_fingerprint, brain_version, parent_path, parent_ordinal, state, waiting, attempt, lease_epoch, lease_owner,
    lease_expires_at, wake_at, recoveries, last_seq, input, result, error, unattributed, created_at, started_at, finished_at,
    active_at, cancel_requested_at
FROM job
WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND (:state = '' OR state = :state)
    AND (:agent_id = '' OR agent_id = :agent_id) AND (:workflow = '' OR workflow = :workflow)
    AND (:names = '[]' OR EXISTS (SELECT 1 FROM json_each(:names) WHERE coalesce(external_id, name) GLOB value))
    AND (:before = '' OR job_id < :before)
ORDER BY job_id DESC LIMIT :most
