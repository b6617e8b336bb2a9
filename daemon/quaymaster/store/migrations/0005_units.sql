-- Directories of a watch that count as delivered only when they are whole (PRODUCT W5). The files of a unit are the jobs
-- and deliveries whose path begins with its own.

CREATE TABLE units (
    id           INTEGER PRIMARY KEY,
    watch_id     INTEGER NOT NULL REFERENCES watches (id),
    path         BLOB    NOT NULL,
    generation   INTEGER NOT NULL DEFAULT 1,
    state        TEXT    NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'complete', 'published', 'abandoned')),
    changes      INTEGER NOT NULL DEFAULT 0,        -- times that something of it was queued or asked for
    released     INTEGER NOT NULL DEFAULT 0,        -- its files may travel (upload = "unit")
    publishing   INTEGER NOT NULL DEFAULT 0,        -- its manifests may be visible
    opened_at    REAL    NOT NULL,                  -- this generation
    changed_at   REAL    NOT NULL,
    completed_at REAL,
    published_at REAL,
    published_entry INTEGER NOT NULL DEFAULT 0,     -- of the custody log: what says so
    complete_by  TEXT    NOT NULL DEFAULT '',       -- what said that it is whole
    forced_by    TEXT    NOT NULL DEFAULT '',       -- the operator who asked for what there is
    files        INTEGER NOT NULL DEFAULT 0,        -- of the newest manifest, as are the next three
    bytes        INTEGER NOT NULL DEFAULT 0,
    missing      INTEGER NOT NULL DEFAULT 0,
    digest       TEXT    NOT NULL DEFAULT '',
    why          TEXT    NOT NULL DEFAULT '',       -- what it waits for
    UNIQUE (watch_id, path)
);
CREATE INDEX units_open ON units (watch_id, state) WHERE state IN ('open', 'complete');
