"""An HTTP proxy between client and server that damages, drops and delays what a test tells it to."""

from __future__ import annotations

import http.client
import io
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes = b""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def operation(self) -> str:
        """The S3 operation, as far as tests need to tell them apart."""
        query = self.query
        if "partNumber" in query:
            return "UploadPart"
        if "uploads" in query:
            return "CreateMultipartUpload" if self.method == "POST" else "ListMultipartUploads"
        if "uploadId" in query:
            return {"POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}.get(self.method, "ListParts")
        return {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}[self.method]


@dataclass
class Response:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pace: float = 0.0
    """Seconds before each of the first 40 bytes on the wire (a "slow loris")."""
    cut: float = 1.0
    """The share of the answer after which the connection is reset; 1 is all of it, and no reset."""


class Reset(Exception):
    """Raised by a rule: the client's connection is reset (RST) here and now."""


@dataclass
class _Rule:
    operation: str
    times: int
    head: Callable[[Request], int | None] | None
    request: Callable[[Request], Response | None] | None
    response: Callable[[Request, Response], None] | None
    only: Callable[[Request], bool]


class FaultProxy:
    """Forwards to ``upstream`` (http://host:port) unchanged, but for what :meth:`inject` asks for.

    The Host header is kept, so that signatures stay valid as long as no signed header is touched.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.seen: list[tuple[str, str]] = []
        """(operation, path) of every request that arrived."""
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultProxy:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="faultproxy")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def inject(
        self,
        operation: str,
        *,
        head: Callable[[Request], int | None] | None = None,
        request: Callable[[Request], Response | None] | None = None,
        response: Callable[[Request, Response], None] | None = None,
        times: int = 1,
        only: Callable[[Request], bool] = lambda request: True,
    ) -> None:
        """For the next ``times`` requests of ``operation`` (``*``: any) that ``only`` accepts:

        ``head`` is called before the body is read; what it returns is how many bytes to read before a reset.
        ``request`` may change the request, answer in the server's place, or raise Reset before it is forwarded.
        ``response`` may change the answer, or raise Reset after the server has done its work.
        """
        with self._lock:
            self._rules.append(_Rule(operation, times, head, request, response, only))

    def clear(self) -> None:
        with self._lock:
            self._rules.clear()

    def count(self, operation: str) -> int:
        return sum(1 for seen, _ in self.seen if seen == operation)

    def take(self, request: Request) -> list[_Rule]:
        with self._lock:
            self.seen.append((request.operation, request.path))
            taken = []
            for rule in self._rules:
                if rule.times > 0 and rule.operation in ("*", request.operation) and rule.only(request):
                    rule.times -= 1
                    taken.append(rule)
            return taken


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away in the middle are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle_expect_100(self) -> bool:
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _relay(self) -> None:
        request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        rules = self.owner.take(request)
        try:
            self._respond(request, self._exchange(request, rules))
        except Reset:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _relay

    def _exchange(self, request: Request, rules: list[_Rule]) -> Response:
        length = int(request.headers.get("content-length", 0))
        for rule in rules:
            if rule.head:
                short = rule.head(request)
                if short is not None:
                    self.rfile.read(min(short, length))
                    raise Reset
        request.body = self.rfile.read(length)
        for rule in rules:
            if rule.request:
                answer = rule.request(request)
                if answer:
                    return answer
        response = self._forward(request)
        for rule in rules:
            if rule.response:
                rule.response(request, response)
        return response

    def _forward(self, request: Request) -> Response:
        connection = http.client.HTTPConnection(self.owner.upstream, timeout=60)
        try:
            headers = {name: value for name, value in request.headers.items() if name not in ("expect", "connection")}
            if request.body or request.method in ("PUT", "POST"):
                headers["content-length"] = str(len(request.body))
            connection.request(request.method, request.target, request.body or None, headers)
            reply = connection.getresponse()
            body = reply.read()
            names = {name.lower(): value for name, value in reply.getheaders()}
            return Response(reply.status, names, body)
        finally:
            connection.close()

    def _respond(self, request: Request, response: Response) -> None:
        if response.cut == 1.0 and not response.pace:
            self._write(request, response)
            return
        wire, self.wfile = self.wfile, io.BytesIO()
        try:
            self._write(request, response)
            data = self.wfile.getvalue()
        finally:
            self.wfile = wire
        data, whole = data[: int(len(data) * response.cut)], response.cut == 1.0
        slow = 40 if response.pace else 0
        for byte in data[:slow]:
            time.sleep(response.pace)
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
        self.wfile.write(data[slow:])
        self.wfile.flush()
        if not whole:
            raise Reset

    def _write(self, request: Request, response: Response) -> None:
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            if name not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        told = response.headers.get("content-length") if request.method == "HEAD" else None
        if response.status != 204:
            self.send_header("content-length", told or str(len(response.body)))
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(response.body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def unavailable(retry_after: int = 1) -> Callable[[Request], Response]:
    """A ``request`` rule: 503 SlowDown."""
    body = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
    headers = {"content-type": "application/xml", "retry-after": str(retry_after)}
    return lambda request: Response(503, headers, body)


def flip(data: bytes, at: int = -1) -> bytes:
    """``data`` with one bit of one byte turned over (the middle one unless told)."""
    position = len(data) // 2 if at < 0 else at
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
