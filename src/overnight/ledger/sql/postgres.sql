-- The two statements of every commit have a form that takes arrays: one execution writes a large batch.
-- name: touch_job_bulk
UPDATE job SET last_seq = touched.last_seq, active_at = touched.active_at
FROM unnest(:last_seq::bigint[], :active_at::bigint[], :job_id::text[]) AS touched (last_seq, active_at, job_id)
WHERE job.job_id = touched.job_id

-- name: insert_event_bulk
INSERT INTO event (job_id, seq, tenant_id, month, at, path, ordinal, fingerprint, body, content)
SELECT * FROM unnest(:job_id::text[], :seq::bigint[], :tenant_id::text[], :month::bigint[], :at::bigint[], :path::text[],
    :ordinal::bigint[], :fingerprint::text[], :body::bytea[], :content::bytea[])

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

-- name: list_job_heads
SELECT job_id, last_seq, state FROM job WHERE job_id IN (SELECT value FROM jsonb_array_elements_text(:job_ids::jsonb))
