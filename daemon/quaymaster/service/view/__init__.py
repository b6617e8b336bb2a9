"""The read model: what commands and the HTTP API show, from the same functions (snapshot, file, records)."""
