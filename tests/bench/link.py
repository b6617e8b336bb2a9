"""A slow way to a server: each connection carries so many bytes a second, and each answer comes so much later."""

from __future__ import annotations

import socket
import threading
import time
from urllib.parse import urlsplit

_PIECE = 256 << 10


class Link:
    """``rate`` in bytes a second, of each connection towards the server; ``latency`` in seconds, of each answer."""

    def __init__(self, rate: float, latency: float) -> None:
        self._rate, self._latency = rate, latency
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._server: tuple[str, int] = ("", 0)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def lead_to(self, endpoint: str) -> str:
        """The endpoint by which the given one is reached slowly."""
        url = urlsplit(endpoint)
        self._server = (url.hostname or "", url.port or 80)
        threading.Thread(target=self._accept, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
            except OSError:
                return
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # What the kernel holds on the way would arrive at once.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
            threading.Thread(target=self._carry, args=(client, server, self._rate, 0.0), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, 0.0, self._latency), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, rate: float, latency: float) -> None:
        due = time.monotonic()
        try:
            while data := source.recv(_PIECE):
                if latency:
                    time.sleep(latency)
                if rate:
                    # An idle time is not saved up.
                    due = max(due, time.monotonic() - 0.05) + len(data) / rate
                    time.sleep(max(0.0, due - time.monotonic()))
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                one.close()
