-- The two statements of every commit have a form that takes arrays: one execution writes a large batch.
-- name: touch_job_bulk
UPDATE job SET last_seq = touched.last_seq, active_at = touched.active_at
FROM unnest(:last_seq::bigint[], :active_at::bigint[], :job_id::text[]) AS touched (last_seq, active_at, job_id)
WHERE job.job_id = touched.job_id

-- `position` is the column's default: the id of the transaction.
-- name: insert_event
INSERT INTO event (job_id, seq, tenant_id, month, at, path, ordinal, fingerprint, body, content, content_key, texts)
VALUES (:job_id, :seq, :tenant_id, :month, :at, :path, :ordinal, :fingerprint, :body, :content, :content_key, :texts)

-- name: insert_event_bulk
INSERT INTO event (job_id, seq, tenant_id, month, at, path, ordinal, fingerprint, body, content, content_key, texts)
SELECT * FROM unnest(:job_id::text[], :seq::bigint[], :tenant_id::text[], :month::bigint[], :at::bigint[], :path::text[],
    :ordinal::bigint[], :fingerprint::text[], :body::bytea[], :content::bytea[], :content_key::bytea[], :texts::bytea[])

-- name: lock_job
SELECT job_id, tenant_id, external_id, parent_job_id, root_job_id, runtime, name, agent_id, workflow, session_id, code_ref,
    code_fingerprint, brain_version, parent_path, parent_ordinal, state, waiting, attempt, lease_epoch, lease_owner,
    lease_expires_at, wake_at, recoveries, last_seq, input, result, error, unattributed, created_at, started_at, finished_at,
    active_at, cancel_requested_at
FROM job WHERE job_id = ANY(:job_id) ORDER BY job_id FOR UPDATE

-- name: lock_external
SELECT tenant_id, external_id, job_id FROM job
WHERE (tenant_id, external_id) IN (SELECT * FROM unnest(:tenant_id::text[], :external_id::text[]))

-- name: known_nodes
SELECT hash FROM node WHERE tenant_id = :tenant_id AND month = :month
    AND hash IN (SELECT decode(value, 'hex') FROM jsonb_array_elements_text(:hashes::jsonb))

-- name: list_jobs_cost
SELECT job_id, sum(calls)::bigint, sum(cost_microusd)::bigint, sum(bound_microusd)::bigint FROM usage_job
WHERE job_id IN (SELECT value FROM jsonb_array_elements_text(:job_ids::jsonb)) GROUP BY job_id

-- name: list_last_messages
SELECT node.hash, message.body FROM node
JOIN message ON message.tenant_id = node.tenant_id AND message.month = node.month AND message.hash = node.message
WHERE node.tenant_id = :tenant_id AND node.month = :month
    AND node.hash IN (SELECT decode(value, 'hex') FROM jsonb_array_elements_text(:hashes::jsonb))

-- name: list_last_events
SELECT event.job_id, event.at, event.body FROM job JOIN event ON event.job_id = job.job_id AND event.seq > job.last_seq - :most
WHERE job.job_id IN (SELECT value FROM jsonb_array_elements_text(:job_ids::jsonb)) ORDER BY event.job_id, event.seq DESC

-- name: list_job_heads
SELECT job_id, last_seq, state FROM job WHERE job_id IN (SELECT value FROM jsonb_array_elements_text(:job_ids::jsonb))

-- A transaction that is under way may still add events below those of later ones, so the page ends before it.
-- name: read_feed
SELECT position, job_id, is_wanted, seq, at, path, ordinal, fingerprint, CASE WHEN is_wanted THEN body END,
    CASE WHEN is_wanted THEN content END, tenant_id, CASE WHEN is_wanted THEN texts END
FROM (
    SELECT position, job_id, seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts,
        :tenant_id::text = '' OR tenant_id = :tenant_id::text AS is_wanted
    FROM event
    WHERE (position, job_id, seq) > (:position::bigint, :job_id::text, :seq::bigint)
        AND position < pg_snapshot_xmin(pg_current_snapshot())::text::bigint + (SELECT shift FROM feed_epoch)
    ORDER BY position, job_id, seq LIMIT :most
) AS page ORDER BY position, job_id, seq

-- name: read_feed_end
SELECT position, job_id, seq FROM event
WHERE position < pg_snapshot_xmin(pg_current_snapshot())::text::bigint + (SELECT shift FROM feed_epoch)
ORDER BY position DESC, job_id DESC, seq DESC LIMIT 1

-- name: read_feed_next
SELECT at FROM event WHERE (position, job_id, seq) > (:position::bigint, :job_id::text, :seq::bigint)
ORDER BY position, job_id, seq LIMIT 1

-- name: lock_cursor
SELECT sink, position, job_id, seq, owner, beat FROM feed_cursor WHERE sink = ANY(:sink) ORDER BY sink FOR UPDATE

-- name: list_jobs
SELECT job_id, tenant_id, external_id, parent_job_id, root_job_id, runtime, name, agent_id, workflow, session_id, code_ref,
    code_fingerprint, brain_version, parent_path, parent_ordinal, state, waiting, attempt, lease_epoch, lease_owner,
    lease_expires_at, wake_at, recoveries, last_seq, input, result, error, unattributed, created_at, started_at, finished_at,
    active_at, cancel_requested_at
FROM job
WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND (:state = '' OR state = :state)
    AND (:agent_id = '' OR agent_id = :agent_id) AND (:workflow = '' OR workflow = :workflow)
    AND (:names = '[]' OR EXISTS (
        SELECT 1 FROM jsonb_array_elements_text(:names::jsonb) AS glob
        WHERE coalesce(external_id, name)
            LIKE replace(replace(replace(replace(replace(glob, '\', '\\'), '_', '\_'), '%', '\%'), '*', '%'), '?', '_')
    ))
    AND (:before = '' OR job_id < :before)
ORDER BY job_id DESC LIMIT :most
