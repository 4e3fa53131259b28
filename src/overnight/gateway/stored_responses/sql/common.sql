-- name: insert_response
INSERT INTO response (tenant_id, response_id, job_id, called_seq, answered_seq, created_at)
VALUES (:tenant_id, :response_id, :job_id, :called_seq, :answered_seq, :created_at)

-- name: delete_response
DELETE FROM response WHERE tenant_id = :tenant_id AND response_id = :response_id

-- name: find_response
SELECT job.agent_id, job.workflow, coalesce(job.external_id, job.name)
FROM response
JOIN job ON job.job_id = response.job_id
WHERE response.tenant_id = :tenant_id AND response.response_id = :response_id

-- name: read_response
SELECT job.agent_id, job.workflow, coalesce(job.external_id, job.name), response.job_id, called.body, answered.seq, answered.at, answered.path, answered.ordinal,
    answered.fingerprint, answered.body, answered.content, answered.tenant_id,
    answered.texts
FROM response
JOIN job ON job.job_id = response.job_id
JOIN event AS called ON called.job_id = response.job_id AND called.seq = response.called_seq
JOIN event AS answered ON answered.job_id = response.job_id AND answered.seq = response.answered_seq
WHERE response.tenant_id = :tenant_id AND response.response_id = :response_id
