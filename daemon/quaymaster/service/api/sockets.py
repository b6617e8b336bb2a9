"""The API's sockets, and the thread that serves them. At the start they are only listened on: the web libraries are
imported when the first connection comes, so that a service that nobody asks stays as small and starts as fast as ever.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quaymaster.service.api.server import Serving

BACKLOG = 128


class InUse(Exception):
    """Another process answers on that socket."""


def listen_unix(path: str) -> socket.socket:
    """A socket that the service's user and group may connect to. One that nobody serves any more is replaced. Raises
    InUse, or OSError when it cannot be made."""
    folder, name = os.path.split(path)
    os.makedirs(folder, mode=0o750, exist_ok=True)
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{directory}/{name}"  # unix(7) has room for 107 bytes of a path
        _remove_stale(short)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            before = os.umask(0o177)  # nobody may connect before its mode is right
            try:
                listening.bind(short)
            finally:
                os.umask(before)
            os.chmod(short, 0o660)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
    finally:
        os.close(directory)
    return listening


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            raise FileExistsError(errno.EEXIST, "something that is not a socket is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # somebody is there, and busy
    raise InUse


def listen_tcp(host: str, port: int) -> socket.socket:
    """Raises InUse, or OSError, e.g. when this machine does not have that address."""
    address = ipaddress.ip_address(host)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise InUse from None
        raise
    return listening


class Door:
    """Listens on sockets, which it owns, and serves them from the first connection on. ``prepare`` imports what serving
    needs. Nothing but :meth:`close` stops it."""

    def __init__(self, sockets: Sequence[socket.socket], prepare: Callable[[], Serving]) -> None:
        self._sockets = list(sockets)
        self._prepare = prepare
        self._serving: Serving | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = select.poll()
        for descriptor in (*(each.fileno() for each in self._sockets), self._wake):
            poller.register(descriptor, select.POLLIN)
        poller.poll()
        if not self._closing.is_set():
            serving = self._prepare()
            with self._lock:
                self._serving = serving
            if not self._closing.is_set():
                serving.run(self._sockets)

    def close(self, timeout: float) -> None:
        """Answer nobody any more. A thread that does not end within ``timeout`` seconds is left behind."""
        self._closing.set()
        with suppress(OSError):
            os.eventfd_write(self._wake, 1)
        with self._lock:
            if self._serving is not None:
                self._serving.stop()
        self._thread.join(timeout)
        for each in self._sockets:
            each.close()
        if not self._thread.is_alive():
            os.close(self._wake)
