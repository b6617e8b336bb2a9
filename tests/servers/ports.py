"""Ports for servers of tests, which stay theirs while a server is down.

Below the range from which the kernel takes the ports of outgoing connections (net.ipv4.ip_local_port_range): one of
those could sit on the port between two starts of a server, or before the first.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile

_FIRST, _BLOCK, _BLOCKS = 20_000, 16, 750
_held: list[int] = []
"""Descriptors of the locks that keep other test processes out of our blocks, until this process ends."""


def free_ports(count: int) -> list[int]:
    """So many ports (at most 16) of 127.0.0.1 for this process alone."""
    assert count <= _BLOCK
    folder = os.path.join(tempfile.gettempdir(), "quaymaster-test-ports")
    os.makedirs(folder, exist_ok=True)
    for block in random.sample(range(_BLOCKS), _BLOCKS):
        lock = os.open(os.path.join(folder, str(block)), os.O_RDWR | os.O_CREAT, 0o666)
        ports = range(_FIRST + block * _BLOCK, _FIRST + block * _BLOCK + count)
        if _ours(lock) and all(_free(port) for port in ports):
            _held.append(lock)
            return list(ports)
        os.close(lock)
    raise RuntimeError("no free ports between 20000 and 32000")


def _ours(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
