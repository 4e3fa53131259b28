-- The public id of an effect. `tool_class` is read, write or destructive; `client_key` the key that a caller over HTTP gave;
-- `asked_attempt` the attempt of the job that asked last; `review_id` the review that it waits for. Processes of an earlier
-- version give no id.
ALTER TABLE effect ADD COLUMN effect_id TEXT NOT NULL DEFAULT ('eff_' || replace(gen_random_uuid()::text, '-', ''));
ALTER TABLE effect ADD COLUMN tool_class TEXT;
ALTER TABLE effect ADD COLUMN client_key TEXT;
ALTER TABLE effect ADD COLUMN asked_attempt BIGINT;
ALTER TABLE effect ADD COLUMN review_id TEXT;
UPDATE effect SET source = 'executed' WHERE state = 'committed';
CREATE UNIQUE INDEX effect_public ON effect (effect_id);
CREATE INDEX effect_expiry ON effect (expires_at) WHERE state = 'claimed' AND expires_at IS NOT NULL;

-- `key_id` is the API key whose request asked for the review; `deciders` the names that its rule permits, as JSON.
ALTER TABLE review ADD COLUMN arguments_sha256 TEXT;
ALTER TABLE review ADD COLUMN key_id TEXT;
ALTER TABLE review ADD COLUMN deciders TEXT;
CREATE INDEX review_expiry ON review (expires_at) WHERE state = 'open' AND expires_at IS NOT NULL;

-- The review that permits an effect, also after its claim.
ALTER TABLE effect ADD COLUMN approval_id TEXT;

-- Pages of reviews, in the order of their requests.
CREATE INDEX review_pending ON review (tenant_id, review_id) WHERE state = 'open';
CREATE INDEX review_tenant ON review (tenant_id, review_id);

-- Where people are told about reviews. `target` is what may be shown; the URL, signing secrets and passwords are in `sealed`, by
-- the master key `master_id`. `options` is JSON. `state` is active, disabled (the receiver is gone) or removed.
CREATE TABLE notification_address (
    address_id TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL,
    name       TEXT NOT NULL,
    kind       TEXT NOT NULL,
    target     TEXT NOT NULL,
    options    TEXT NOT NULL,
    master_id  TEXT NOT NULL,
    sealed     BYTEA,
    state      TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX notification_address_name ON notification_address (tenant_id, name) WHERE state <> 'removed';

-- The outbox: one row for each review and address. `owner` is the process that made the last attempt.
CREATE TABLE notification_delivery (
    delivery_id TEXT PRIMARY KEY,
    tenant_id   TEXT NOT NULL,
    address_id  TEXT NOT NULL,
    review_id   TEXT NOT NULL,
    job_id      TEXT NOT NULL,
    state       TEXT NOT NULL,
    attempts    BIGINT NOT NULL,
    created_at  BIGINT NOT NULL,
    due_at      BIGINT NOT NULL,
    give_up_at  BIGINT NOT NULL,
    started_at  BIGINT,
    ended_at    BIGINT,
    owner       TEXT,
    problem     TEXT
);
CREATE UNIQUE INDEX notification_delivery_once ON notification_delivery (review_id, address_id);
CREATE INDEX notification_delivery_due ON notification_delivery (address_id, due_at) WHERE state = 'waiting';
CREATE INDEX notification_delivery_begun ON notification_delivery (delivery_id) WHERE state = 'sending';
CREATE INDEX notification_delivery_tenant ON notification_delivery (tenant_id, delivery_id);

-- One-time links, by the SHA-256 of their token. `review_digest` is the digest of the review that the link was made for.
CREATE TABLE review_link (
    token_digest  BYTEA PRIMARY KEY,
    tenant_id     TEXT NOT NULL,
    review_id     TEXT NOT NULL,
    review_digest TEXT NOT NULL,
    address_id    TEXT NOT NULL,
    delivery_id   TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    expires_at    BIGINT NOT NULL,
    answered_at   BIGINT
);
CREATE INDEX review_link_expiry ON review_link (expires_at);
-- The event `tool_called` of the last claim, which has the arguments.
ALTER TABLE effect ADD COLUMN called_seq BIGINT;

-- Pages of effects over HTTP, newest first.
CREATE INDEX effect_tenant ON effect (tenant_id, effect_id);

-- The record that an effect is about. The indexes serve the audit of effects, and receipts by key and by agent.
ALTER TABLE effect ADD COLUMN about TEXT;
CREATE INDEX effect_time ON effect (tenant_id, claimed_at, effect_key);
CREATE INDEX effect_client_key ON effect (tenant_id, client_key) WHERE client_key IS NOT NULL;
CREATE INDEX review_of_effect ON review (tenant_id, effect_key) WHERE effect_key IS NOT NULL;
CREATE INDEX job_agent ON job (tenant_id, agent_id, created_at) WHERE agent_id IS NOT NULL;
-- The first use of a tool with an API key.
CREATE INDEX effect_use ON effect (tenant_id, tool, key_id) WHERE key_id IS NOT NULL AND called_seq IS NOT NULL;
