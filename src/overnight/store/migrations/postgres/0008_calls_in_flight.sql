-- A reservation lives as long as its call: its owner is a process of `worker`, and it ends with the call or with that process.
-- It names the request that it is for, so that a newer attempt of a job in another process finds the call in flight.
ALTER TABLE reservation ADD COLUMN fingerprint TEXT;
ALTER TABLE reservation ADD COLUMN attempt BIGINT NOT NULL DEFAULT 0;
ALTER TABLE reservation DROP COLUMN expires_at;
