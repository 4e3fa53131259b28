-- name: insert_circuit
INSERT INTO circuit (account, model, failed_at, not_before, opened_at, open_until, openings, probe, probe_until, why, changed_at)
VALUES (:account, :model, :failed_at, :not_before, :opened_at, :open_until, :openings, :probe, :probe_until, :why, :changed_at)

-- name: update_circuit
UPDATE circuit SET failed_at = :failed_at, not_before = :not_before, opened_at = :opened_at, open_until = :open_until,
    openings = :openings, probe = :probe, probe_until = :probe_until, why = :why, changed_at = :changed_at
WHERE account = :account AND model = :model

-- name: delete_circuit
DELETE FROM circuit WHERE account = :account AND model = :model

-- name: list_circuits
SELECT account, model, failed_at, not_before, opened_at, open_until, openings, probe, probe_until, why, changed_at
FROM circuit WHERE account NOT LIKE '%&%' OR account LIKE '%&%&%'
ORDER BY account, model LIMIT 10000

-- name: list_open_circuits
SELECT account, model, failed_at, not_before, opened_at, open_until, openings, probe, probe_until, why, changed_at
FROM circuit WHERE opened_at IS NOT NULL

-- name: list_stale_circuits
SELECT account, model FROM circuit
WHERE (opened_at IS NULL AND changed_at < :closed_before) OR (changed_at < :open_before AND open_until < :open_before)
LIMIT 1000
