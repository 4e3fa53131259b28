-- name: list_marked
SELECT seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts FROM event
WHERE job_id = :job_id AND fingerprint IS NOT NULL AND path IS NULL ORDER BY seq

-- name: read_created
SELECT body FROM event WHERE job_id = :job_id AND seq = 1

-- name: list_ended_jobs
SELECT job.job_id, job.tenant_id, coalesce(job.workflow, job.name), job.finished_at, budget.spent_microusd,
    CASE WHEN job.runtime = 'foreign' AND job.workflow IS NULL
        THEN (SELECT event.body FROM event WHERE event.job_id = job.job_id AND event.seq = 2) END
FROM job JOIN budget ON budget.tenant_id = job.tenant_id AND budget.scope = 'job' AND budget.scope_id = job.job_id
WHERE job.finished_at >= :after AND job.finished_at IS NOT NULL AND job.unattributed = 0
ORDER BY job.finished_at LIMIT :most

-- name: count_same
SELECT body FROM event WHERE job_id = :job_id AND fingerprint = :fingerprint AND path IS NULL AND at > :since
ORDER BY seq DESC LIMIT :most

-- name: count_same_at
SELECT body FROM event WHERE job_id = :job_id AND fingerprint = :fingerprint AND path IS NOT NULL AND at > :since
ORDER BY seq DESC LIMIT :most

-- name: list_latest
SELECT seq, at, path, ordinal, fingerprint, body, content, tenant_id, texts FROM event
WHERE job_id = :job_id AND at > :since ORDER BY seq DESC LIMIT :most

-- name: list_abandoned
SELECT job.job_id, job.parent_job_id FROM job
WHERE job.runtime = 'foreign' AND job.state = 'running'
    AND (job.unattributed = 0 OR job.external_id IS NOT NULL) AND job.active_at < :before
    AND NOT EXISTS (SELECT 1 FROM reservation WHERE reservation.job_id = job.job_id)
LIMIT 1000
