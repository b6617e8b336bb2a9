"""A place that takes objects as fast as they come and keeps none: what sending costs, without what storing costs.

    python -m bench.sink PORT [--latency SECONDS] [--certificate FILE --key FILE]

It answers as S3 does, also for uploads in parts, and says of each object the checksum that came with it. With latency
every answer comes that much later. One thread for http, one a connection for https.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import heapq
import itertools
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from quaymaster.destinations import crc64

PIECE = 1 << 20
_PLAIN = re.compile(rb"PUT ([^ ?]+) HTTP/1.1\r\n")
_LENGTH = re.compile(rb"\r\n[cC]ontent-[lL]ength: *(\d+)\r\n")
_CHECKSUM = re.compile(rb"\r\n(x-amz-checksum-(?:sha256|crc64nvme)): *([^\r ]+)\r\n")
_NAMES = ("x-amz-checksum-sha256", "x-amz-checksum-crc64nvme")
_UNKNOWN = 1 << 60
NOWHERE = bytearray(4 * PIECE)
ETAG = '"d41d8cd98f00b204e9800998ecf8427e"'


class Bucket:
    """What is said of the objects."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[int, dict[str, str]]] = {}
        self.parts: dict[str, dict[int, tuple[int, dict[str, str]]]] = {}
        self.numbers = itertools.count(1)

    def answer(self, method: str, target: str, headers: dict[str, str], size: int) -> bytes:
        url = urlsplit(target)
        query = parse_qs(url.query, keep_blank_values=True)
        checksum = {name: headers[name] for name in _NAMES if name in headers}
        if method == "PUT" and "partNumber" in query:
            self.parts[query["uploadId"][0]][int(query["partNumber"][0])] = size, checksum
            return reply(200, {"ETag": ETAG, **checksum})
        if method == "PUT":
            self.objects[url.path] = size, checksum
            return reply(200, {"ETag": ETAG, **checksum})
        if method == "POST" and "uploads" in query:
            number = f"upload-{next(self.numbers)}"
            self.parts[number] = {}
            name = "InitiateMultipartUploadResult"
            return reply(200, {}, f"<{name}><UploadId>{number}</UploadId></{name}>")
        if method == "POST":
            self._complete(url.path, [part for _, part in sorted(self.parts.pop(query["uploadId"][0]).items())])
            return reply(200, {}, f"<CompleteMultipartUploadResult><ETag>{ETAG}</ETag></CompleteMultipartUploadResult>")
        if method == "HEAD" and url.path in self.objects:
            length, told = self.objects[url.path]
            return reply(200, {"ETag": ETAG, **told}, length=length)
        if method == "HEAD" and url.path.count("/") > 1:
            return reply(404, {})
        return reply(200, {})

    def _complete(self, path: str, parts: list[tuple[int, dict[str, str]]]) -> None:
        told: dict[str, str] = {}
        for name in _NAMES:
            sums = [base64.b64decode(checksums.get(name, "")) for _, checksums in parts]
            if all(sums) and name == "x-amz-checksum-sha256":
                told[name] = f"{base64.b64encode(hashlib.sha256(b''.join(sums)).digest()).decode()}-{len(parts)}"
            elif all(sums):
                whole = 0
                for (size, _), part in zip(parts, sums, strict=True):
                    whole = crc64.joined(whole, int.from_bytes(part), size)
                told[name] = crc64.text(whole)
        self.objects[path] = sum(size for size, _ in parts), told


def reply(status: int, headers: dict[str, str], body: str = "", *, length: int = -1) -> bytes:
    lines = [f"HTTP/1.1 {status} said"] + [f"{name}: {value}" for name, value in headers.items() if value]
    lines += [f"Content-Length: {len(body) if length < 0 else length}", "", body]
    return "\r\n".join(lines).encode()


class Connection:
    """Bytes in, answers out; ``body`` is what is still to come of the request's body."""

    def __init__(self, bucket: Bucket, send: Callable[[bytes], None]) -> None:
        self.bucket, self.send = bucket, send
        self.held = b""
        self.body = 0
        self.chunked = False
        self._told, self._tail = b"", b""

    def passed(self, size: int) -> None:
        """So many bytes of the body have come."""
        self.body -= size
        if self.body <= 0:
            self.send(self._told)

    def feed(self, data: bytes) -> None:
        self.held += data
        end = self.held.find(b"\r\n\r\n")
        if end < 0:
            return
        if plain := _PLAIN.match(self.held[: end + 2]):
            # The head of a PutObject, which there are thousands of: looked at as cheaply as can be.
            path, lines_of = plain[1], self.held[: end + 2]
            size, checksum = _LENGTH.search(lines_of), _CHECKSUM.search(lines_of)
            if size and b"xpect:" not in lines_of:
                had, self.held, self.body = len(self.held) - end - 4, b"", int(size[1])
                told = {checksum[1].decode(): checksum[2].decode()} if checksum else {}
                self.bucket.objects[path.decode()] = self.body, told
                self._told = reply(200, {"ETag": ETAG, **told})
                self.passed(had)
                return
        first, *lines = self.held[:end].decode("latin-1").split("\r\n")
        had, rest = len(self.held) - end - 4, self.held[end + 4 :]
        self.held = b""
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", 0))
        self._told = self.bucket.answer(method, target, headers, size)
        if headers.get("expect", "").lower() == "100-continue" and not had:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.body = size
        if headers.get("transfer-encoding", "").lower() == "chunked":
            self.body, self.chunked = _UNKNOWN, True
            self.unpacked(rest)
        else:
            self.passed(had)

    def unpacked(self, data: bytes) -> None:
        """Bytes of a body in chunks have come. Its end (RFC 9112, 7.1) is not looked for inside: that nothing but the
        end of a body ends what is received with these five bytes is as good as certain."""
        self._tail = (self._tail + data[-5:])[-5:]
        if self._tail == b"0\r\n\r\n":
            self.body, self.chunked, self._tail = 0, False, b""
            self.send(self._told)


def plainly(listener: socket.socket, latency: float) -> None:
    bucket, poll, connections = Bucket(), select.epoll(), dict[int, tuple[socket.socket, Connection]]()
    late: list[tuple[float, int, socket.socket, bytes]] = []
    order = itertools.count()
    listener.setblocking(False)
    poll.register(listener.fileno(), select.EPOLLIN)

    def sender(to: socket.socket) -> Callable[[bytes], None]:
        if latency:
            return lambda data: heapq.heappush(late, (time.monotonic() + latency, next(order), to, data))
        return to.sendall

    while True:
        for number, _ in poll.poll(max(0.0, late[0][0] - time.monotonic()) if late else -1):
            if number == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[client.fileno()] = client, Connection(bucket, sender(client))
                poll.register(client.fileno(), select.EPOLLIN)
                continue
            client, connection = connections[number]
            if not received(client, connection):
                poll.unregister(number)
                del connections[number]
                client.close()
        while late and late[0][0] <= time.monotonic():
            _, _, to, data = heapq.heappop(late)
            if to.fileno() >= 0:
                to.sendall(data)


def received(client: socket.socket, connection: Connection) -> bool:
    """False at the end of the connection."""
    try:
        if connection.body > 0:
            # tcp(7): with MSG_TRUNC the kernel throws the bytes away instead of copying them.
            size = client.recv_into(NOWHERE, min(connection.body, len(NOWHERE)), socket.MSG_TRUNC)
            if size:
                connection.passed(size)
            return size > 0
        data = client.recv(64 << 10)
    except OSError:
        return False
    if data:
        connection.feed(data)
    return bool(data)


def secretly(listener: socket.socket, context: ssl.SSLContext) -> None:
    bucket = Bucket()

    def serve(client: socket.socket) -> None:
        buffer = bytearray(PIECE)
        try:
            with context.wrap_socket(client, server_side=True) as secure:
                connection = Connection(bucket, secure.sendall)
                while size := secure.recv_into(buffer, min(connection.body, PIECE) if connection.body > 0 else PIECE):
                    if connection.chunked:
                        connection.unpacked(bytes(buffer[max(0, size - 5) : size]))
                    elif connection.body > 0:
                        connection.passed(size)
                    else:
                        connection.feed(bytes(buffer[:size]))
        except OSError:
            pass

    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=serve, args=(client,), daemon=True).start()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("port", type=int)
    options.add_argument("--latency", type=float, default=0.0)
    options.add_argument("--certificate")
    options.add_argument("--key")
    chosen = options.parse_args()
    listener = socket.create_server(("127.0.0.1", chosen.port), backlog=512)
    if chosen.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chosen.certificate, chosen.key)
        secretly(listener, context)
    plainly(listener, chosen.latency)


if __name__ == "__main__":
    main()
