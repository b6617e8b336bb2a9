"""From a claimed job to a proven copy: compress, verify, upload, record, dispose."""
