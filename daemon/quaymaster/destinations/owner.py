"""Who made a temporary thing at a destination: a part of its name, so that what a dead process left can be told."""

from __future__ import annotations

import hashlib
import os
import re
import socket

TAG = r"([0-9a-f]{8})-(\d{1,10})-(\d{1,20})"


def own_tag() -> str:
    """Host, process and its start time."""
    return f"{_host()}-{os.getpid()}-{_started(os.getpid())}"


def is_dead(tag: str) -> bool:
    """Whether the tag begins a name that a process of this host made which does not run any more. False for those of
    other hosts: they are theirs to tell."""
    found = re.match(TAG, tag)
    return found is not None and found[1] == _host() and _started(int(found[2])) != int(found[3])


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _started(process: int) -> int:
    """Start time of a process in clock ticks since boot (proc_pid_stat(5), field 22), 0 if there is none."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
