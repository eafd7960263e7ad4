-- One text for SQLite and PostgreSQL. A landed file is never edited.

-- The one counter: every accepted change takes the next number in its own transaction.
CREATE TABLE revision (
    id BIGINT PRIMARY KEY,
    timeline BIGINT NOT NULL,
    number BIGINT NOT NULL
);

CREATE TABLE change (
    timeline BIGINT NOT NULL,
    number BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    actor TEXT NOT NULL,
    what TEXT NOT NULL,
    subject TEXT NOT NULL,
    PRIMARY KEY (timeline, number)
);

-- Small facts: trust domain, manifest chain, versions of lists.
CREATE TABLE fact (
    name TEXT PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE manifest (
    version BIGINT PRIMARY KEY,
    signed BYTEA NOT NULL
);

CREATE TABLE site (
    name TEXT PRIMARY KEY,
    number BIGINT NOT NULL UNIQUE,
    zone TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);

-- IPv4 blocks of the pool and the sites they belong to.
CREATE TABLE site_block (
    block BIGINT PRIMARY KEY,
    site TEXT NOT NULL,
    closed_until_secs BIGINT NOT NULL
);

CREATE TABLE address (
    v4 BIGINT PRIMARY KEY,
    device BYTEA NOT NULL,
    free_after_secs BIGINT
);

CREATE TABLE token (
    id BYTEA PRIMARY KEY,
    public_key BYTEA NOT NULL,
    site TEXT NOT NULL,
    labels TEXT NOT NULL,
    name TEXT,
    approve BIGINT NOT NULL,
    uses_max BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    expires_ms BIGINT NOT NULL,
    revoked_ms BIGINT
);

-- Which key spent which use, and for which device: the same key gets the same answer.
CREATE TABLE token_use (
    token BYTEA NOT NULL,
    key_hash BYTEA NOT NULL,
    device BYTEA,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (token, key_hash)
);

CREATE TABLE device (
    id BYTEA PRIMARY KEY,
    name TEXT NOT NULL,
    site TEXT NOT NULL,
    labels TEXT NOT NULL,
    identity_key BYTEA NOT NULL,
    key_hash BYTEA NOT NULL,
    introduction_key BYTEA NOT NULL,
    v6 BYTEA NOT NULL,
    v4 BIGINT,
    epoch BIGINT NOT NULL,
    state BIGINT,
    flagged BIGINT NOT NULL,
    not_after_secs BIGINT NOT NULL,
    ticket BYTEA NOT NULL,
    chain BYTEA NOT NULL,
    generation BIGINT NOT NULL,
    enrolled_ms BIGINT NOT NULL,
    ended_ms BIGINT,
    ended_by TEXT
);

CREATE UNIQUE INDEX device_name ON device (site, name) WHERE ended_ms IS NULL;
CREATE UNIQUE INDEX device_key ON device (key_hash);

CREATE TABLE pending (
    key_hash BYTEA PRIMARY KEY,
    csr BYTEA NOT NULL,
    introduction_key BYTEA NOT NULL,
    hostname TEXT NOT NULL,
    source TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    token BYTEA,
    site TEXT,
    labels TEXT NOT NULL,
    name TEXT,
    decision TEXT NOT NULL,
    device BYTEA,
    created_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL
);

CREATE TABLE revocation (
    what BYTEA PRIMARY KEY,
    at_secs BIGINT NOT NULL,
    drop_after_secs BIGINT NOT NULL,
    reason TEXT NOT NULL
);

CREATE TABLE min_epoch (
    device BYTEA PRIMARY KEY,
    epoch BIGINT NOT NULL,
    drop_after_secs BIGINT NOT NULL
);

CREATE TABLE policy (
    timeline BIGINT NOT NULL,
    number BIGINT NOT NULL,
    source TEXT NOT NULL,
    hash BYTEA NOT NULL,
    parent BYTEA,
    author TEXT NOT NULL,
    note TEXT NOT NULL,
    signature BYTEA NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (timeline, number)
);

CREATE TABLE event (
    seq BIGINT PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    kind TEXT NOT NULL,
    device BYTEA,
    peer BYTEA,
    reporter BYTEA,
    body BYTEA NOT NULL
);
