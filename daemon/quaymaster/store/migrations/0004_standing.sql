-- What is held up by which error, without looking at each job.

CREATE INDEX jobs_stuck ON jobs (state, error_code, retry_at, size) WHERE state IN ('waiting', 'parked');
