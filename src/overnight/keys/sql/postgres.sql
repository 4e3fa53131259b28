-- name: lock_key
SELECT * FROM virtual_key WHERE key_id = ANY(:key_id) ORDER BY key_id FOR UPDATE

-- name: lock_provider_key
SELECT * FROM provider_key
WHERE (tenant_id, provider) IN (SELECT * FROM unnest(:tenant_id::text[], :provider::text[]))
ORDER BY tenant_id, provider FOR UPDATE

-- name: lock_key_change
SELECT * FROM key_change WHERE id = ANY(:id) ORDER BY id FOR UPDATE

-- The row of key_change is locked before: nobody else makes a key meanwhile.
-- name: lock_key_name
SELECT tenant_id, name FROM virtual_key
WHERE (tenant_id, name) IN (SELECT * FROM unnest(:tenant_id::text[], :name::text[])) AND revoked_at IS NULL
