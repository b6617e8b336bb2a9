"""quaymaster takes files the moment they land and proves what became of every byte.

The journey of one file, and the room that each step lives in:

1. ``intake``        a hint (inotify, polling) or the directory scan notices it,
2. ``intake``        and it settles: whole, quiet, no writer left;
3. ``store``         its version becomes one durable job;
4. ``pipeline``      a worker claims the job, reads the source once,
5. ``pipeline``      hashes, compresses, expands again and compares;
6. ``destinations``  the bytes go up in parts, and become visible in one step;
7. ``store``         the proof is recorded in the ledger and the custody log;
8. ``pipeline``      only then is the source kept, moved or removed.
"""

__version__ = "0.1.0"
