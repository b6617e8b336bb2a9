-- Telling others (PRODUCT O4). The custody log is the source of all events: a hook is how far it has come in that log,
-- and the few events that it is busy with.

CREATE TABLE hooks (
    name          TEXT PRIMARY KEY,
    wants         TEXT    NOT NULL,                 -- JSON: {"on": [event, …], "watches": [name, …] (empty: all)}
    since         INTEGER NOT NULL,                 -- the newest custody entry when it was first configured
    cursor        INTEGER NOT NULL,                 -- custody entries up to this one were looked at
    confirmed     INTEGER NOT NULL DEFAULT 0,       -- events, ever
    failures      INTEGER NOT NULL DEFAULT 0,       -- since the last success
    failing_since REAL,
    last_success  REAL,
    last_error    TEXT    NOT NULL DEFAULT '',
    last_error_at REAL,
    tested        TEXT    NOT NULL DEFAULT '{}'     -- JSON: what came of the last test
) WITHOUT ROWID;

-- Events that were taken from the log and are not confirmed; a bounded number for each hook.
CREATE TABLE outbox (
    id        INTEGER PRIMARY KEY,
    hook      TEXT    NOT NULL,
    entry     INTEGER NOT NULL,                     -- of the custody log; 0: a test
    event     TEXT    NOT NULL,
    subject   TEXT    NOT NULL,                     -- events of one subject are told in order
    job_id    INTEGER,
    since     REAL    NOT NULL,                     -- when it happened
    body      TEXT,                                 -- of a test
    attempts  INTEGER NOT NULL DEFAULT 0,
    retry_at  REAL,
    error     TEXT    NOT NULL DEFAULT '',
    parked_at REAL                                  -- given up, until an operator says otherwise
);
CREATE INDEX outbox_subject ON outbox (hook, subject, id) WHERE parked_at IS NULL;
CREATE INDEX outbox_entry ON outbox (entry, hook);
