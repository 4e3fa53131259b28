-- Where a response stands in the log of its job: its request and its answer. One that the client wants kept has a row.
CREATE TABLE response (
    tenant_id    TEXT NOT NULL,
    response_id  TEXT NOT NULL,
    job_id       TEXT NOT NULL,
    called_seq   BIGINT NOT NULL,
    answered_seq BIGINT NOT NULL,
    created_at   BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, response_id)
);
