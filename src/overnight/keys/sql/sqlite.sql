-- name: lock_key
SELECT key_id, tenant_id, name, handle, digest, previous_handle, previous_digest, previous_until, scopes, agent_id,
    workflow, models, routes, created_by, created_at, expires_at, rotated_by, rotated_at, revoked_by, revoked_at, last_used_at, changed,
    coalesce((SELECT tools FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]') AS tools,
    coalesce((SELECT jobs FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]') AS jobs
FROM virtual_key WHERE key_id = :key_id

-- name: lock_provider_key
SELECT tenant_id, provider, master_id, sealed, set_by, set_at, changed
FROM provider_key WHERE tenant_id = :tenant_id AND provider = :provider

-- name: lock_key_change
SELECT id, number FROM key_change WHERE id = :id

-- name: lock_key_name
SELECT tenant_id, name FROM virtual_key WHERE tenant_id = :tenant_id AND name = :name AND revoked_at IS NULL
