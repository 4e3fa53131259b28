-- name: lock_key
SELECT key_id, tenant_id, name, handle, digest, previous_handle, previous_digest, previous_until, scopes, agent_id,
    workflow, models, routes, created_by, created_at, expires_at, rotated_by, rotated_at, revoked_by, revoked_at, last_used_at, changed,
    coalesce((SELECT tools FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]') AS tools,
    coalesce((SELECT jobs FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]') AS jobs
FROM virtual_key WHERE key_id = ANY(:key_id) ORDER BY key_id FOR UPDATE

-- name: lock_provider_key
SELECT tenant_id, provider, master_id, sealed, set_by, set_at, changed
FROM provider_key
WHERE (tenant_id, provider) IN (SELECT * FROM unnest(:tenant_id::text[], :provider::text[]))
ORDER BY tenant_id, provider FOR UPDATE

-- name: lock_key_change
SELECT id, number FROM key_change WHERE id = ANY(:id) ORDER BY id FOR UPDATE

-- The row of key_change is locked before: no other transaction creates a key meanwhile.
-- name: lock_key_name
SELECT tenant_id, name FROM virtual_key
WHERE (tenant_id, name) IN (SELECT * FROM unnest(:tenant_id::text[], :name::text[])) AND revoked_at IS NULL
