-- name: lock_circuit
SELECT provider, model, failed_at, not_before, opened_at, open_until, openings, probe, probe_until, why, changed_at
FROM circuit WHERE (provider, model) IN (SELECT * FROM unnest(:provider::text[], :model::text[]))
ORDER BY provider, model FOR UPDATE
