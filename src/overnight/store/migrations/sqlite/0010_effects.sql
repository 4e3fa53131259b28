-- The public id of an effect. `tool_class` is read, write or destructive; `client_key` the key that a caller over HTTP gave;
-- `asked_attempt` the attempt of the job that asked last; `review_id` the review that it waits for.
ALTER TABLE effect ADD COLUMN effect_id TEXT;
ALTER TABLE effect ADD COLUMN tool_class TEXT;
ALTER TABLE effect ADD COLUMN client_key TEXT;
ALTER TABLE effect ADD COLUMN asked_attempt INTEGER;
ALTER TABLE effect ADD COLUMN review_id TEXT;
UPDATE effect SET effect_id = 'eff_' || lower(hex(randomblob(16)));
UPDATE effect SET source = 'executed' WHERE state = 'committed';
-- Processes of an earlier version give no id.
CREATE TRIGGER effect_id AFTER INSERT ON effect WHEN NEW.effect_id IS NULL
BEGIN
    UPDATE effect SET effect_id = 'eff_' || lower(hex(randomblob(16)))
    WHERE tenant_id = NEW.tenant_id AND effect_key = NEW.effect_key;
END;
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

-- The event `tool_called` of the last claim, which has the arguments.
ALTER TABLE effect ADD COLUMN called_seq INTEGER;

-- Pages of effects over HTTP, newest first.
CREATE INDEX effect_tenant ON effect (tenant_id, effect_id);
