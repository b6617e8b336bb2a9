-- When a copy at a destination was last verified, and how (PRODUCT I7).

CREATE TABLE verified (
    ledger_id INTEGER PRIMARY KEY REFERENCES ledger (id) ON DELETE CASCADE,
    good_at   REAL,                                 -- last found as it was recorded
    level     TEXT CHECK (level IN ('listing', 'checksum', 'readback')),
    read_at   REAL,                                 -- its bytes were last read, whatever came of it
    proven_at REAL,                                 -- its bytes were last read and found right
    CHECK ((good_at IS NULL) = (level IS NULL))
);
