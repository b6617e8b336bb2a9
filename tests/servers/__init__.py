"""Servers that tests talk to: a real S3 server, and what may stand between it and the client."""
