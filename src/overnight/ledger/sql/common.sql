-- name: touch_job
UPDATE job SET last_seq = :last_seq, active_at = :active_at WHERE job_id = :job_id

-- name: insert_job
INSERT INTO job (job_id, tenant_id, external_id, parent_job_id, root_job_id, runtime, name, agent_id, workflow, session_id,
    code_ref, code_fingerprint, brain_version, parent_path, parent_ordinal, state, waiting, attempt, lease_epoch, lease_owner,
    lease_expires_at, wake_at, recoveries, last_seq, input, result, error, unattributed, created_at, started_at, finished_at,
    active_at, cancel_requested_at)
VALUES (:job_id, :tenant_id, :external_id, :parent_job_id, :root_job_id, :runtime, :name, :agent_id, :workflow, :session_id,
    :code_ref, :code_fingerprint, :brain_version, :parent_path, :parent_ordinal, :state, :waiting, :attempt, :lease_epoch,
    :lease_owner, :lease_expires_at, :wake_at, :recoveries, :last_seq, :input, :result, :error, :unattributed, :created_at,
    :started_at, :finished_at, :active_at, :cancel_requested_at)

-- name: update_job
UPDATE job SET code_fingerprint = :code_fingerprint, brain_version = :brain_version, state = :state, waiting = :waiting,
    attempt = :attempt, lease_epoch = :lease_epoch, lease_owner = :lease_owner, lease_expires_at = :lease_expires_at,
    wake_at = :wake_at, recoveries = :recoveries, last_seq = :last_seq, result = :result, error = :error,
    started_at = :started_at, finished_at = :finished_at, active_at = :active_at, cancel_requested_at = :cancel_requested_at
WHERE job_id = :job_id

-- name: insert_message
INSERT INTO message (tenant_id, month, hash, body) VALUES (:tenant_id, :month, :hash, :body) ON CONFLICT DO NOTHING

-- name: insert_node
INSERT INTO node (tenant_id, month, hash, parent, message)
VALUES (:tenant_id, :month, :hash, :parent, :message) ON CONFLICT DO NOTHING

-- name: insert_blob
INSERT INTO blob (tenant_id, month, hash, body) VALUES (:tenant_id, :month, :hash, :body) ON CONFLICT DO NOTHING

-- name: add_usage_day
INSERT INTO usage_day (tenant_id, day, agent_id, model, stripe, calls, input_tokens, cached_tokens, output_tokens, cost_microusd,
    bound_microusd)
VALUES (:tenant_id, :day, :agent_id, :model, :stripe, :calls, :input_tokens, :cached_tokens, :output_tokens, :cost_microusd,
    :bound_microusd)
ON CONFLICT (tenant_id, day, agent_id, model, stripe) DO UPDATE SET
    calls = usage_day.calls + excluded.calls,
    input_tokens = usage_day.input_tokens + excluded.input_tokens,
    cached_tokens = usage_day.cached_tokens + excluded.cached_tokens,
    output_tokens = usage_day.output_tokens + excluded.output_tokens,
    cost_microusd = usage_day.cost_microusd + excluded.cost_microusd,
    bound_microusd = usage_day.bound_microusd + excluded.bound_microusd

-- name: add_usage_job
INSERT INTO usage_job (job_id, model, calls, input_tokens, cached_tokens, output_tokens, cost_microusd,
    bound_microusd)
VALUES (:job_id, :model, :calls, :input_tokens, :cached_tokens, :output_tokens, :cost_microusd,
    :bound_microusd)
ON CONFLICT (job_id, model) DO UPDATE SET
    calls = usage_job.calls + excluded.calls,
    input_tokens = usage_job.input_tokens + excluded.input_tokens,
    cached_tokens = usage_job.cached_tokens + excluded.cached_tokens,
    output_tokens = usage_job.output_tokens + excluded.output_tokens,
    cost_microusd = usage_job.cost_microusd + excluded.cost_microusd,
    bound_microusd = usage_job.bound_microusd + excluded.bound_microusd

-- name: read_job
SELECT job_id, tenant_id, external_id, parent_job_id, root_job_id, runtime, name, agent_id, workflow, session_id, code_ref,
    code_fingerprint, brain_version, parent_path, parent_ordinal, state, waiting, attempt, lease_epoch, lease_owner,
    lease_expires_at, wake_at, recoveries, last_seq, input, result, error, unattributed, created_at, started_at, finished_at,
    active_at, cancel_requested_at
FROM job WHERE job_id = :job_id AND (:tenant_id = '' OR tenant_id = :tenant_id)

-- name: read_job_external
SELECT job_id, tenant_id, external_id, parent_job_id, root_job_id, runtime, name, agent_id, workflow, session_id, code_ref,
    code_fingerprint, brain_version, parent_path, parent_ordinal, state, waiting, attempt, lease_epoch, lease_owner,
    lease_expires_at, wake_at, recoveries, last_seq, input, result, error, unattributed, created_at, started_at, finished_at,
    active_at, cancel_requested_at
FROM job WHERE tenant_id = :tenant_id AND external_id = :external_id

-- name: list_children
SELECT job_id, tenant_id, external_id, parent_job_id, root_job_id, runtime, name, agent_id, workflow, session_id, code_ref,
    code_fingerprint, brain_version, parent_path, parent_ordinal, state, waiting, attempt, lease_epoch, lease_owner,
    lease_expires_at, wake_at, recoveries, last_seq, input, result, error, unattributed, created_at, started_at, finished_at,
    active_at, cancel_requested_at
FROM job WHERE parent_job_id = :job_id ORDER BY job_id

-- name: read_events
SELECT seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts FROM event
WHERE job_id = :job_id AND seq > :after ORDER BY seq LIMIT :most

-- name: read_last_events
SELECT at, body FROM event WHERE job_id = :job_id ORDER BY seq DESC LIMIT :most

-- name: read_answers
SELECT seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts FROM event
WHERE job_id = :job_id AND fingerprint = :fingerprint AND path IS NULL ORDER BY seq

-- name: read_blob
SELECT body FROM blob WHERE tenant_id = :tenant_id AND month = :month AND hash = :hash

-- name: read_chain
WITH RECURSIVE chain (depth, parent, message) AS (
    SELECT 0, parent, message FROM node WHERE tenant_id = :tenant_id AND month = :month AND hash = :hash
    UNION ALL
    SELECT chain.depth + 1, node.parent, node.message FROM chain
    JOIN node ON node.tenant_id = :tenant_id AND node.month = :month AND node.hash = chain.parent
)
SELECT message.body FROM chain
JOIN message ON message.tenant_id = :tenant_id AND message.month = :month AND message.hash = chain.message
ORDER BY chain.depth DESC

-- name: sum_usage_jobs
SELECT model, CAST(sum(calls) AS BIGINT), CAST(sum(input_tokens) AS BIGINT), CAST(sum(cached_tokens) AS BIGINT), CAST(sum(output_tokens) AS BIGINT), CAST(sum(cost_microusd) AS BIGINT),
    CAST(sum(bound_microusd) AS BIGINT)
FROM usage_job WHERE job_id = :job_id GROUP BY model ORDER BY model

-- name: sum_usage_days
SELECT day, agent_id, model, CAST(sum(calls) AS BIGINT), CAST(sum(input_tokens) AS BIGINT), CAST(sum(cached_tokens) AS BIGINT), CAST(sum(output_tokens) AS BIGINT), CAST(sum(cost_microusd) AS BIGINT),
    CAST(sum(bound_microusd) AS BIGINT)
FROM usage_day WHERE tenant_id = :tenant_id AND day BETWEEN :first AND :last
GROUP BY day, agent_id, model ORDER BY day, agent_id, model

-- name: count_job_states
SELECT state, count(*) FROM job WHERE (:tenant_id = '' OR tenant_id = :tenant_id) GROUP BY state

-- name: upsert_process
INSERT INTO worker (worker_id, role, host, pid, started_at, seen_at)
VALUES (:worker_id, :role, :host, :pid, :started_at, :seen_at)
ON CONFLICT (worker_id) DO UPDATE SET seen_at = excluded.seen_at

-- name: delete_process
DELETE FROM worker WHERE worker_id = :worker_id

-- name: list_old_processes
SELECT worker_id, host, pid FROM worker WHERE seen_at < :before ORDER BY seen_at LIMIT 1000

-- name: delete_old_process
DELETE FROM worker WHERE worker_id = :worker_id AND seen_at < :before
    AND NOT EXISTS (SELECT 1 FROM reservation WHERE owner = :worker_id)
    AND NOT EXISTS (SELECT 1 FROM job WHERE lease_owner = :worker_id)

-- name: read_feed_epoch
SELECT epoch, cursor_key FROM feed_epoch

-- name: read_event_time
SELECT at FROM event WHERE job_id = :job_id AND seq = :seq AND position = :position

-- name: insert_cursor
INSERT INTO feed_cursor (sink, position, job_id, seq, owner, beat) VALUES (:sink, :position, :job_id, :seq, :owner, :beat)

-- name: update_cursor
UPDATE feed_cursor SET position = :position, job_id = :job_id, seq = :seq, owner = :owner, beat = :beat WHERE sink = :sink

-- name: list_cursors
SELECT sink, position, job_id, seq FROM feed_cursor ORDER BY sink

-- name: read_cursor_owner
SELECT feed_cursor.owner, feed_cursor.beat, worker.host, worker.pid
FROM feed_cursor LEFT JOIN worker ON worker.worker_id = feed_cursor.owner
WHERE feed_cursor.sink = :sink

-- name: insert_audit_entry
INSERT INTO audit_entry (audit_id, tenant_id, at, actor, key_id, action, subject, detail)
VALUES (:audit_id, :tenant_id, :at, :actor, :key_id, :action, :subject, :detail)

-- name: list_audit_entries
SELECT audit_id, tenant_id, at, actor, key_id, action, subject, detail FROM audit_entry
WHERE (:tenant_id = '' OR tenant_id = :tenant_id OR tenant_id = :instance) AND at >= :since ORDER BY at DESC, audit_id DESC LIMIT :most

-- name: insert_brain_file
INSERT INTO brain_file (version, path, body) VALUES (:version, :path, :body) ON CONFLICT DO NOTHING

-- name: upsert_brain_version
INSERT INTO brain_version (version, files, stored_at, activated_at) VALUES (:version, :files, :at, :at)
ON CONFLICT (version) DO UPDATE SET activated_at = excluded.activated_at

-- name: request_reload
UPDATE brain_version SET reload = (SELECT coalesce(max(reload), 0) + 1 FROM brain_version) WHERE version = :version

-- name: read_reload
SELECT version, reload FROM brain_version WHERE reload IS NOT NULL ORDER BY reload DESC LIMIT 1

-- name: read_brain_version
SELECT version, files, (SELECT count(*) FROM brain_file WHERE brain_file.version = brain_version.version) AS stored
FROM brain_version WHERE version = :version

-- name: read_active_version
SELECT version FROM brain_version ORDER BY activated_at DESC, version LIMIT 1

-- name: list_versions_of_prefix
SELECT version FROM brain_version WHERE version LIKE :pattern ORDER BY version LIMIT 2

-- name: read_brain_files
SELECT path, body FROM brain_file WHERE version = :version ORDER BY path

-- name: read_brain_file
SELECT body FROM brain_file WHERE version = :version AND path = :path

-- name: list_brain_versions
SELECT brain_version.version, brain_version.files, brain_version.stored_at, brain_version.activated_at,
    CAST(coalesce(named.jobs, 0) AS BIGINT)
FROM brain_version LEFT JOIN (
    SELECT brain_version AS version, count(*) AS jobs FROM job WHERE brain_version IS NOT NULL GROUP BY brain_version
) AS named ON named.version = brain_version.version
ORDER BY brain_version.stored_at DESC, brain_version.version LIMIT :most

-- name: list_changed_files
SELECT DISTINCT path FROM (
    SELECT path FROM brain_file WHERE version = :before OR version = :after GROUP BY path, body HAVING count(*) = 1
) AS changed ORDER BY path
