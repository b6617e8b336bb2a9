-- Directories that are kept in step with a bucket (PRODUCT M). Each is a row of watches too: its downloads are jobs.

ALTER TABLE watches ADD COLUMN kind TEXT NOT NULL DEFAULT 'watch' CHECK (kind IN ('watch', 'mirror'));

-- Objects that were downloaded and verified, and are in use or wait to be. Path and tag are those of the object's job.
CREATE TABLE mirror_objects (
    watch_id    INTEGER NOT NULL REFERENCES watches (id),
    path        BLOB    NOT NULL,
    tag         INTEGER NOT NULL,                   -- jobs.inode: made of ETag and size
    job_id      INTEGER NOT NULL,
    target      BLOB    NOT NULL,                   -- its file: the path, without what compression had added
    size        INTEGER NOT NULL,                   -- of the file
    sha256      TEXT    NOT NULL,
    evidence    TEXT    NOT NULL,                   -- what the content was compared with
    file_inode  INTEGER NOT NULL,
    file_mtime  INTEGER NOT NULL,                   -- ns
    PRIMARY KEY (watch_id, path, tag)
) WITHOUT ROWID;

-- What is released as one: a version's directory, or a file by itself.
CREATE TABLE mirror_units (
    watch_id    INTEGER NOT NULL REFERENCES watches (id),
    path        BLOB    NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('none', 'releasing', 'released')),
    fingerprint TEXT    NOT NULL,                   -- of the objects that it was made of
    objects     TEXT    NOT NULL,                   -- JSON: their paths (in hex) and tags
    at          REAL    NOT NULL,
    old         TEXT    NOT NULL DEFAULT '',        -- what it replaced, until its server has taken it
    checked     INTEGER NOT NULL DEFAULT 0,         -- whether the model server and the command have been told
    gone_since  REAL,                               -- when it was first missing upstream
    refused     TEXT    NOT NULL DEFAULT '',        -- fingerprint of what was not taken, and is not tried again
    error       TEXT    NOT NULL DEFAULT '',        -- why
    PRIMARY KEY (watch_id, path)
) WITHOUT ROWID;
