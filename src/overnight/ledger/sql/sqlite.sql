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

-- name: list_job_heads
SELECT job_id, last_seq, state FROM job WHERE job_id IN (SELECT value FROM json_each(:job_ids))
