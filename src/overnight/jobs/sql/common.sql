-- name: list_due
SELECT job_id FROM job WHERE state = 'queued' AND runtime = 'python' AND (wake_at IS NULL OR wake_at <= :now)
    AND (:root = '' OR root_job_id = :root)
ORDER BY job_id LIMIT :most

-- name: list_timers
SELECT job_id FROM job WHERE state = 'parked' AND wake_at IS NOT NULL AND wake_at <= :now
    AND (:root = '' OR root_job_id = :root)
ORDER BY wake_at LIMIT :most

-- name: list_lost
SELECT job_id, lease_owner FROM job
WHERE lease_owner IS NOT NULL AND lease_expires_at < :now AND runtime = 'python' AND (:root = '' OR root_job_id = :root)
LIMIT :most

-- name: list_leasing_workers
SELECT worker_id, host, pid FROM worker WHERE worker_id IN (SELECT lease_owner FROM job WHERE lease_owner IS NOT NULL)

-- name: list_owned
SELECT job_id FROM job WHERE lease_owner = :owner LIMIT 1000

-- name: list_called
SELECT job_id, lease_epoch, cancel_requested_at FROM job
WHERE lease_owner = :owner AND (wake_at IS NOT NULL OR cancel_requested_at IS NOT NULL)

-- name: extend_leases
UPDATE job SET lease_expires_at = :expires_at WHERE lease_owner = :owner AND lease_expires_at > :seen_at

-- name: upsert_worker
INSERT INTO worker (worker_id, role, host, pid, started_at, seen_at)
VALUES (:worker_id, :role, :host, :pid, :started_at, :seen_at)
ON CONFLICT (worker_id) DO UPDATE SET
    host = excluded.host, pid = excluded.pid, started_at = excluded.started_at, seen_at = excluded.seen_at

-- name: delete_worker
DELETE FROM worker WHERE worker_id = :worker_id

-- name: list_workers
SELECT worker_id, role, host, pid, started_at, seen_at FROM worker WHERE role = 'worker' AND seen_at > :since
