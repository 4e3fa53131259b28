-- name: lock_key
SELECT * FROM virtual_key WHERE key_id = :key_id

-- name: lock_provider_key
SELECT * FROM provider_key WHERE tenant_id = :tenant_id AND provider = :provider

-- name: lock_key_change
SELECT * FROM key_change WHERE id = :id

-- name: lock_key_name
SELECT tenant_id, name FROM virtual_key WHERE tenant_id = :tenant_id AND name = :name AND revoked_at IS NULL
