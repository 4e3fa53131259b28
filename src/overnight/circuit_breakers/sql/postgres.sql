-- name: lock_circuit
SELECT account, model, failed_at, not_before, opened_at, open_until, openings, probe, probe_until, why, changed_at
FROM circuit WHERE (account, model) IN (SELECT * FROM unnest(:account::text[], :model::text[]))
ORDER BY account, model FOR UPDATE
