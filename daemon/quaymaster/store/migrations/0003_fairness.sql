-- Whose turn it is, and how much there is of everything, in constant time however long the queue and the history are.

-- How far each watch has come in the common order: bytes that it was served, an idle watch put forward to the others
-- when it has work again (start-time fair queueing; Goyal, Vin, Cheng, SIGCOMM 1996).
ALTER TABLE watches ADD COLUMN served INTEGER NOT NULL DEFAULT 0;

CREATE TABLE turns (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    clock INTEGER NOT NULL,                         -- where the watch stood that was served last
    past  INTEGER NOT NULL                          -- turns since one of a lower priority had its own
);
INSERT INTO turns VALUES (1, 0, 0);

CREATE INDEX jobs_smallest ON jobs (watch_id, size, id) WHERE state = 'queued';
CREATE INDEX jobs_open_since ON jobs (queued_at) WHERE ended_at IS NULL;

-- How many jobs of each watch are in each state, and their bytes.
CREATE TABLE tallies (
    watch_id INTEGER NOT NULL REFERENCES watches (id),
    state    TEXT    NOT NULL,
    jobs     INTEGER NOT NULL DEFAULT 0,
    bytes    INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (watch_id, state)
) WITHOUT ROWID;

CREATE TRIGGER watches_tallied AFTER INSERT ON watches BEGIN
    INSERT INTO tallies (watch_id, state) VALUES (new.id, 'queued'), (new.id, 'running'), (new.id, 'waiting'),
        (new.id, 'parked'), (new.id, 'done'), (new.id, 'superseded'), (new.id, 'dropped');
END;

INSERT INTO tallies (watch_id, state)
    SELECT watches.id, states.column1 FROM watches, (VALUES ('queued'), ('running'), ('waiting'), ('parked'),
        ('done'), ('superseded'), ('dropped')) AS states;
UPDATE tallies SET (jobs, bytes) = (now.number, now.size) FROM
    (SELECT watch_id, state, count(*) AS number, sum(size) AS size FROM jobs GROUP BY watch_id, state) AS now
    WHERE (now.watch_id, now.state) = (tallies.watch_id, tallies.state);

CREATE TRIGGER jobs_added AFTER INSERT ON jobs BEGIN
    UPDATE tallies SET jobs = jobs + 1, bytes = bytes + new.size WHERE watch_id = new.watch_id AND state = new.state;
END;
CREATE TRIGGER jobs_moved AFTER UPDATE OF state ON jobs WHEN new.state <> old.state BEGIN
    UPDATE tallies SET jobs = jobs - 1, bytes = bytes - old.size WHERE watch_id = old.watch_id AND state = old.state;
    UPDATE tallies SET jobs = jobs + 1, bytes = bytes + new.size WHERE watch_id = new.watch_id AND state = new.state;
END;
CREATE TRIGGER jobs_removed AFTER DELETE ON jobs BEGIN
    UPDATE tallies SET jobs = jobs - 1, bytes = bytes - old.size WHERE watch_id = old.watch_id AND state = old.state;
END;
