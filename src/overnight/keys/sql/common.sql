-- name: insert_key
INSERT INTO virtual_key (key_id, tenant_id, name, handle, digest, previous_handle, previous_digest, previous_until, scopes, agent_id,
    workflow, models, routes, created_by, created_at, expires_at, rotated_by, rotated_at, revoked_by, revoked_at, last_used_at, changed)
VALUES (:key_id, :tenant_id, :name, :handle, :digest, :previous_handle, :previous_digest, :previous_until, :scopes, :agent_id,
    :workflow, :models, :routes, :created_by, :created_at, :expires_at, :rotated_by, :rotated_at, :revoked_by, :revoked_at,
    :last_used_at, :changed)

-- name: update_key
UPDATE virtual_key SET scopes = :scopes, handle = :handle, digest = :digest, previous_handle = :previous_handle,
    previous_digest = :previous_digest, previous_until = :previous_until, expires_at = :expires_at, rotated_by = :rotated_by, rotated_at = :rotated_at,
    revoked_by = :revoked_by, revoked_at = :revoked_at, changed = :changed
WHERE key_id = :key_id

-- name: set_allowance
INSERT INTO key_allowance (key_id, tools, jobs) VALUES (:key_id, :tools, :jobs)
ON CONFLICT (key_id) DO UPDATE SET tools = excluded.tools, jobs = excluded.jobs

-- name: touch_key
UPDATE virtual_key SET last_used_at = :last_used_at WHERE key_id = :key_id

-- name: read_key
SELECT key_id, tenant_id, name, handle, digest, previous_handle, previous_digest, previous_until, scopes, agent_id,
    workflow, models, routes, created_by, created_at, expires_at, rotated_by, rotated_at, revoked_by, revoked_at, last_used_at, changed,
    coalesce((SELECT tools FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]'),
    coalesce((SELECT jobs FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]')
FROM virtual_key
WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND (key_id = :name OR handle = :name OR previous_handle = :name)

-- name: read_named_keys
SELECT key_id, tenant_id, name, handle, digest, previous_handle, previous_digest, previous_until, scopes, agent_id,
    workflow, models, routes, created_by, created_at, expires_at, rotated_by, rotated_at, revoked_by, revoked_at, last_used_at, changed,
    coalesce((SELECT tools FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]'),
    coalesce((SELECT jobs FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]')
FROM virtual_key WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND name = :name
ORDER BY key_id DESC LIMIT :most

-- name: list_keys
SELECT key_id, tenant_id, name, handle, digest, previous_handle, previous_digest, previous_until, scopes, agent_id,
    workflow, models, routes, created_by, created_at, expires_at, rotated_by, rotated_at, revoked_by, revoked_at, last_used_at, changed,
    coalesce((SELECT tools FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]'),
    coalesce((SELECT jobs FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]')
FROM virtual_key
WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND (:before = '' OR key_id < :before)
ORDER BY key_id DESC LIMIT :most

-- name: list_changed_keys
SELECT key_id, tenant_id, name, handle, digest, previous_handle, previous_digest, previous_until, scopes, agent_id,
    workflow, models, routes, created_by, created_at, expires_at, rotated_by, rotated_at, revoked_by, revoked_at, last_used_at, changed,
    coalesce((SELECT tools FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]'),
    coalesce((SELECT jobs FROM key_allowance WHERE key_allowance.key_id = virtual_key.key_id), '[]')
FROM virtual_key WHERE changed > :changed ORDER BY changed LIMIT :most

-- name: insert_provider_key
INSERT INTO provider_key (tenant_id, provider, master_id, sealed, set_by, set_at, changed)
VALUES (:tenant_id, :provider, :master_id, :sealed, :set_by, :set_at, :changed)

-- name: update_provider_key
UPDATE provider_key SET master_id = :master_id, sealed = :sealed, set_by = :set_by, set_at = :set_at, changed = :changed
WHERE tenant_id = :tenant_id AND provider = :provider

-- name: list_provider_keys
SELECT tenant_id, provider, master_id, sealed, set_by, set_at, changed
FROM provider_key
WHERE (:tenant_id = '' OR tenant_id = :tenant_id) AND sealed IS NOT NULL ORDER BY tenant_id, provider

-- name: list_changed_provider_keys
SELECT tenant_id, provider, master_id, sealed, set_by, set_at, changed
FROM provider_key WHERE changed > :changed ORDER BY changed LIMIT :most

-- name: read_key_change
SELECT number FROM key_change WHERE id = 1

-- name: update_key_change
UPDATE key_change SET number = :number WHERE id = :id
