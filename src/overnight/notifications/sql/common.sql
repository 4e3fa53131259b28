-- name: insert_address
INSERT INTO notification_address (address_id, tenant_id, name, kind, target, options, master_id, sealed, state, created_by,
    created_at, changed_at)
VALUES (:address_id, :tenant_id, :name, :kind, :target, :options, :master_id, :sealed, :state, :created_by, :created_at,
    :changed_at)

-- name: update_address
UPDATE notification_address SET options = :options, master_id = :master_id, sealed = :sealed, state = :state,
    changed_at = :changed_at
WHERE address_id = :address_id

-- name: list_addresses
SELECT address_id, tenant_id, name, kind, target, options, master_id, sealed, state, created_by, created_at, changed_at
FROM notification_address
WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND state <> 'removed' ORDER BY tenant_id, name

-- name: read_address
SELECT address_id, tenant_id, name, kind, target, options, master_id, sealed, state, created_by, created_at, changed_at
FROM notification_address
WHERE address_id = :address_id

-- name: find_address
SELECT address_id, tenant_id, name, kind, target, options, master_id, sealed, state, created_by, created_at, changed_at
FROM notification_address
WHERE tenant_id = :tenant_id AND (name = :name OR address_id = :name) AND state <> 'removed'

-- name: has_addresses
SELECT 1 FROM notification_address WHERE state = 'active' LIMIT 1

-- name: insert_delivery
INSERT INTO notification_delivery (delivery_id, tenant_id, address_id, review_id, job_id, state, attempts, created_at, due_at,
    give_up_at, started_at, ended_at, owner, problem)
VALUES (:delivery_id, :tenant_id, :address_id, :review_id, :job_id, :state, :attempts, :created_at, :due_at,
    :give_up_at, :started_at, :ended_at, :owner, :problem)

-- name: update_delivery
UPDATE notification_delivery SET state = :state, attempts = :attempts, due_at = :due_at, give_up_at = :give_up_at,
    started_at = :started_at, ended_at = :ended_at, owner = :owner, problem = :problem
WHERE delivery_id = :delivery_id

-- A review was renewed: what was withdrawn at its expiry is sent.
-- name: renew_deliveries
UPDATE notification_delivery SET state = 'waiting', due_at = :due_at, give_up_at = :give_up_at, ended_at = NULL, problem = NULL
WHERE review_id = :review_id AND state = 'withdrawn'

-- name: read_delivery
SELECT delivery_id, tenant_id, address_id, review_id, job_id, state, attempts, created_at, due_at,
    give_up_at, started_at, ended_at, owner, problem
FROM notification_delivery WHERE delivery_id = :delivery_id

-- name: list_deliveries
SELECT delivery_id, tenant_id, address_id, review_id, job_id, state, attempts, created_at, due_at,
    give_up_at, started_at, ended_at, owner, problem,
    (SELECT name FROM notification_address WHERE notification_address.address_id = notification_delivery.address_id)
FROM notification_delivery
WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND (:state = '' OR state = :state) AND (:review_id = '' OR review_id = :review_id)
    AND (:job_id = '' OR job_id = :job_id) AND (:before = '' OR delivery_id < :before)
ORDER BY delivery_id DESC LIMIT :most

-- name: list_due_addresses
SELECT DISTINCT address_id FROM notification_delivery WHERE state = 'waiting' AND due_at <= :now

-- name: list_due
SELECT delivery_id, job_id, review_id FROM notification_delivery
WHERE state = 'waiting' AND address_id = :address_id AND due_at <= :now ORDER BY due_at LIMIT :most

-- name: list_begun
SELECT delivery_id, job_id, address_id FROM notification_delivery WHERE state = 'sending'

-- name: insert_link
INSERT INTO review_link (token_digest, tenant_id, review_id, review_digest, address_id, delivery_id, created_at, expires_at,
    answered_at)
VALUES (:token_digest, :tenant_id, :review_id, :review_digest, :address_id, :delivery_id, :created_at, :expires_at,
    :answered_at)

-- name: update_link
UPDATE review_link SET answered_at = :answered_at WHERE token_digest = :token_digest

-- name: read_link
SELECT token_digest, tenant_id, review_id, review_digest, address_id, delivery_id, created_at, expires_at, answered_at
FROM review_link WHERE token_digest = :token_digest
