-- name: lock_circuit
SELECT account, model, failed_at, not_before, opened_at, open_until, openings, probe, probe_until, why, changed_at
FROM circuit WHERE account = :account AND model = :model
