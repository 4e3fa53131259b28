-- name: lock_address
SELECT address_id, tenant_id, name, kind, target, options, master_id, sealed, state, created_by, created_at, changed_at
FROM notification_address WHERE address_id = :address_id

-- name: lock_delivery
SELECT delivery_id, tenant_id, address_id, review_id, job_id, state, attempts, created_at, due_at,
    give_up_at, started_at, ended_at, owner, problem
FROM notification_delivery WHERE delivery_id = :delivery_id

-- name: lock_link
SELECT token_digest, tenant_id, review_id, review_digest, address_id, delivery_id, created_at, expires_at, answered_at
FROM review_link WHERE token_digest = :token_digest
