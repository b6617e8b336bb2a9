-- The queue, the ledger and the custody log.

CREATE TABLE watches (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- One row for each version of each file (PRODUCT Q2). Inodes are kept as signed 64-bit numbers.
CREATE TABLE jobs (
    id         INTEGER PRIMARY KEY,
    watch_id   INTEGER NOT NULL REFERENCES watches (id),
    path       BLOB    NOT NULL,
    inode      INTEGER NOT NULL,
    size       INTEGER NOT NULL CHECK (size >= 0),
    mtime_ns   INTEGER NOT NULL,
    state      TEXT    NOT NULL DEFAULT 'queued'
               CHECK (state IN ('queued', 'running', 'waiting', 'parked', 'done', 'superseded', 'dropped')),
    stage      TEXT    CHECK (stage IN ('fetch', 'transfer', 'publish', 'record', 'dispose')),
    attempts   INTEGER NOT NULL DEFAULT 0,          -- times it failed
    strikes    INTEGER NOT NULL DEFAULT 0,          -- of these, failures of a kind that is tried 3 times
    retry_at   REAL,
    error_code TEXT,
    error      TEXT,
    queued_at  REAL    NOT NULL,
    started_at REAL,
    ended_at   REAL,
    checkpoint TEXT,                                -- JSON: what the finished steps left behind
    UNIQUE (watch_id, path, inode, size, mtime_ns),
    CHECK ((state = 'waiting') = (retry_at IS NOT NULL))
);
CREATE INDEX jobs_queued ON jobs (watch_id, id) WHERE state = 'queued';
CREATE INDEX jobs_waiting ON jobs (retry_at) WHERE state = 'waiting';
CREATE INDEX jobs_held ON jobs (state) WHERE state IN ('running', 'parked');

-- Uploads that have begun and are neither published nor aborted.
CREATE TABLE uploads (
    job_id      INTEGER NOT NULL REFERENCES jobs (id),
    destination TEXT    NOT NULL,
    token       TEXT    NOT NULL,
    begun_at    REAL    NOT NULL,
    PRIMARY KEY (job_id, destination, token)
) WITHOUT ROWID;

-- Which version is where, with what proof. Rows are never changed but for what became of the copy and the source.
CREATE TABLE ledger (
    id               INTEGER PRIMARY KEY,
    job_id           INTEGER NOT NULL,
    watch_id         INTEGER NOT NULL REFERENCES watches (id),
    path             BLOB    NOT NULL,
    inode            INTEGER NOT NULL,
    size             INTEGER NOT NULL,
    mtime_ns         INTEGER NOT NULL,
    destination      TEXT    NOT NULL,
    key              TEXT    NOT NULL,
    source_sha256    TEXT    NOT NULL,
    source_others    TEXT    NOT NULL,              -- JSON object
    stored_size      INTEGER NOT NULL,
    stored_sha256    TEXT    NOT NULL,
    stored_others    TEXT    NOT NULL,
    compression      TEXT    NOT NULL CHECK (compression IN ('none', 'zstd', 'gzip')),
    compression_note TEXT    NOT NULL,
    etag             TEXT    NOT NULL,
    version_id       TEXT    NOT NULL,
    checksum         TEXT    NOT NULL,
    evidence         TEXT    NOT NULL,
    delivered_at     REAL    NOT NULL,
    replaced_by      INTEGER REFERENCES ledger (id),
    disposal         TEXT,
    disposed_at      REAL,
    UNIQUE (job_id, destination)
);
CREATE UNIQUE INDEX ledger_current ON ledger (destination, key) WHERE replaced_by IS NULL;
CREATE INDEX ledger_path ON ledger (watch_id, path);

-- Append-only; each entry's digest covers the one before it (PRODUCT I8). body is canonical JSON on one line, and
-- sha256 = SHA-256(previous entry's sha256 in hex, a newline, body, a newline).
CREATE TABLE custody (
    seq    INTEGER PRIMARY KEY,
    job_id INTEGER,
    body   TEXT NOT NULL,
    sha256 TEXT NOT NULL
);
CREATE INDEX custody_job ON custody (job_id) WHERE job_id IS NOT NULL;

-- What the running service last said of its parts, for commands in other processes. JSON.
CREATE TABLE reports (
    name TEXT PRIMARY KEY,
    body TEXT NOT NULL,
    at   REAL NOT NULL
) WITHOUT ROWID;
