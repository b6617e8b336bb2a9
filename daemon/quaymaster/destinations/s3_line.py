"""Bytes at speed: the two requests that carry them, PutObject and UploadPart, over connections that are kept.

The AWS library takes longer over a request than a small object takes over the wire, and copies what it sends. Here
requests are signed (AWS Signature Version 4) and sent with nothing in between: many small ones at once from one thread,
or a large one from the buffer that it was gathered in. What an answer means is left to others: here it is only told.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import quote

from quaymaster.destinations.s3_signature import UNSIGNED, Keys, Signer

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")

WIDEST = 64
"""Connections of one thread: with 30 ms of latency they carry 2,000 objects a second."""
_LONGEST_HEAD = 64 << 10
"""Bytes; whoever answers with more than that speaks another language."""
_AT_ONCE = 256 << 10
"""Bytes of a body that are worth a copy, to send it together with its head."""


@dataclass(frozen=True, slots=True)
class Road:
    """How a bucket is reached."""

    host: str
    port: int
    named: str
    """The Host header."""
    path: str
    """What stands before every key."""
    region: str
    keys: Callable[[], Keys | None]
    tls: ssl.SSLContext | None
    connect_timeout: float
    read_timeout: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes = b""
    """Of a refusal, as far as it is of a sane length."""


def put_head(road: Road, signer: Signer, key: str, size: int, headers: Mapping[str, str], query: str = "") -> bytes:
    """The head of a PutObject; ``key`` is the whole key, names in ``headers`` are in lower case, ``query`` is escaped
    and sorted."""
    path = road.path + quote(key, safe="/~")
    sent = signer.headers("PUT", path, query, headers, UNSIGNED)
    lines = "".join([f"{name}: {value}\r\n" for name, value in sent.items()])
    target = f"{path}?{query}" if query else path
    return f"PUT {target} HTTP/1.1\r\n{lines}content-length: {size}\r\n\r\n".encode()


class Line:
    """One connection. Used by one thread at a time."""

    def __init__(self, road: Road) -> None:
        plain = socket.create_connection((road.host, road.port), road.connect_timeout)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = road.tls.wrap_socket(plain, server_hostname=road.host) if road.tls else plain
        except BaseException:
            plain.close()
            raise
        self._socket.settimeout(road.read_timeout)
        self.number = self._socket.fileno()
        self.reusable = True

    def send(self, head: bytes, body: bytes | memoryview) -> None:
        if len(body) <= _AT_ONCE:
            self._socket.sendall(head + body)
            return
        self._socket.sendall(head)
        left = memoryview(body)
        while left:  # sendall() would give the whole body no longer than one wait for an answer
            left = left[self._socket.send(left) :]

    def answer(self) -> Answer:
        """Waits for it. Raises OSError when there is none, or it cannot be understood."""
        data = self._more(b"")
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _LONGEST_HEAD:
                raise ConnectionError("an answer without end")
            data = self._more(data)
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ConnectionError("not an answer in HTTP/1.1")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = self._body(headers, data[end + 4 :])
        self.reusable = self.reusable and version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        return Answer(int(rest[:3]), headers, body)

    def _body(self, headers: Mapping[str, str], data: bytes) -> bytes:
        """Errors come with a text, which the next request's answer must not begin with."""
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or not length.isdigit() or int(length) > _LONGEST_HEAD:
            self.reusable = False
            return b""
        while len(data) < int(length):
            data = self._more(data)
        self.reusable = self.reusable and len(data) == int(length)
        return data

    def _more(self, data: bytes) -> bytes:
        more = self._socket.recv(_LONGEST_HEAD)
        if not more:
            raise ConnectionResetError("closed without an answer")
        return data + more if data else more

    @property
    def quiet(self) -> bool:
        """Nothing has come since the last answer: not even the end of the connection."""
        poll = select.poll()
        poll.register(self.number, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()


@dataclass
class Lines(Generic[T]):
    """The connections of one bucket. Thread-safe."""

    road: Road
    most: int
    """Connections that one thread has at once."""
    clock: Callable[[], float] = time.time
    _idle: list[Line] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def signer(self) -> Signer | None:
        keys = self.road.keys()
        return Signer(keys, self.road.region, self.road.named, self.clock) if keys else None

    def exchange(self, requests: Iterable[tuple[T, bytes, bytes]]) -> Iterator[tuple[T, Answer | OSError]]:
        """Send each request (what it is called here, head, body) and tell each answer as it comes. After one that could
        not be sent at all, nothing more is taken from ``requests``."""
        turn = _Turn(self, iter(requests))
        try:
            yield from turn.run()
        finally:
            turn.close()

    def put(self, head: bytes, body: bytes | memoryview) -> Answer:
        """One request, and the answer to it. Raises OSError when there is none."""
        line = self.take()
        try:
            try:
                line.send(head, body)
            except ConnectionError:
                # Who refuses a request may say so, and hang up, before all of it has been sent.
                line.reusable = False
            answer = line.answer()
        except BaseException:
            line.close()
            raise
        self.give(line)
        return answer

    def take(self) -> Line:
        """A connection; a new one when none is idle. Raises OSError."""
        while True:
            with self._lock:
                line = self._idle.pop() if self._idle else None
            if line is None:
                return Line(self.road)
            if line.quiet:
                return line
            line.close()

    def give(self, line: Line) -> None:
        with self._lock:
            if line.reusable and len(self._idle) < self.most:
                self._idle.append(line)
                return
        line.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()


class _Turn(Generic[T]):
    """One run of :meth:`Lines.exchange`."""

    def __init__(self, lines: Lines[T], requests: Iterator[tuple[T, bytes, bytes]]) -> None:
        self._lines, self._requests = lines, requests
        self._poll = select.poll()
        self._under_way: dict[int, tuple[T, Line, float]] = {}
        self._ended = False

    def run(self) -> Iterator[tuple[T, Answer | OSError]]:
        while True:
            # A further connection only when those there are have nothing to say: on a fast way a few are enough.
            ready = self._poll.poll(0) if self._under_way else []
            if not ready and not self._ended and len(self._under_way) < self._lines.most:
                yield from self._begin(None)
                continue
            if not self._under_way:
                return
            ready = ready or self._poll.poll(1000)
            for number, _ in ready:
                yield from self._answered(number)
            if not ready:
                yield from self._give_up_late()

    def _begin(self, line: Line | None) -> Iterator[tuple[T, OSError]]:
        """Send the next request, if there is one."""
        request = None if self._ended else next(self._requests, None)
        if request is None:
            self._ended = True
            if line is not None:
                self._lines.give(line)
            return
        name, head, body = request
        try:
            line = line or self._lines.take()
        except OSError as error:
            self._ended = True  # nobody is there
            yield name, error
            return
        try:
            line.send(head, body)
        except OSError as error:
            line.close()
            yield name, error
            return
        self._under_way[line.number] = name, line, time.monotonic()
        self._poll.register(line.number, select.POLLIN)

    def _answered(self, number: int) -> Iterator[tuple[T, Answer | OSError]]:
        name, line, _ = self._under_way.pop(number)
        self._poll.unregister(number)
        try:
            answer = line.answer()
        except OSError as error:
            line.close()
            yield name, error
            return
        if line.reusable:
            yield from self._begin(line)
        else:
            line.close()
        yield name, answer

    def _give_up_late(self) -> Iterator[tuple[T, OSError]]:
        now = time.monotonic()
        for number, (name, line, began) in list(self._under_way.items()):
            if now - began > self._lines.road.read_timeout:
                del self._under_way[number]
                self._poll.unregister(number)
                line.close()
                yield name, TimeoutError("no answer")

    def close(self) -> None:
        for _, line, _ in self._under_way.values():
            line.close()
        self._under_way.clear()
