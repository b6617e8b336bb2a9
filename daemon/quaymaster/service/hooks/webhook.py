"""Tells something by HTTP: POST of the JSON; a status from 200 to 299 says that it was taken.

Signed, when the hook has a secret: X-Quaymaster-Signature is "sha256=" and HMAC-SHA-256 (RFC 2104), in hex, of
X-Quaymaster-Timestamp, a full stop and the body. TLS is verified, redirects are not followed, of an answer little is
read, and every try ends within its time, however slowly the other side drips.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from quaymaster import __version__
from quaymaster.model import plain
from quaymaster.service.hooks.answer import Answer

if TYPE_CHECKING:
    import socket
    import ssl
    from http.client import HTTPConnection, HTTPResponse

_READ = 4096
"""Bytes of an answer that are read."""
_LONGEST_WAIT = 15 * 60.0
_GONE = 410
_TRUSTED_FOR = 300.0
"""Seconds for which certificate authorities are kept in memory."""


class Webhook:
    """Thread-safe. ``url`` and ``secret`` are asked for at each try, for the files behind them may change; they raise
    ConfigError."""

    def __init__(
        self,
        url: Callable[[], str],
        secret: Callable[[], str] | None,
        *,
        ca_file: str | None,
        connect_timeout: float,
        timeout: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url, self._secret, self._ca_file = url, secret, ca_file
        self._connect_timeout, self._timeout, self._clock = connect_timeout, timeout, clock
        self._lock = threading.Lock()
        self._open: set[_Try] = set()
        self._cut = False
        self._trust: tuple[float, ssl.SSLContext] | None = None

    def cut_off(self) -> None:
        """End what is under way, and all that is begun after this."""
        with self._lock:
            self._cut = True
            under_way = list(self._open)
        for each in under_way:
            each.shut()

    def send(self, event: str, number: str, body: bytes) -> Answer:
        """Never raises."""
        from http.client import HTTPException

        from quaymaster.errors import ConfigError

        late = threading.Event()
        try:
            return self._post(event, number, body, late)
        except ConfigError as error:
            return Answer(str(error))
        except (OSError, HTTPException, ValueError) as error:
            if self._cut:
                return Answer("the service stops", cut=True)
            if late.is_set() or isinstance(error, TimeoutError):
                return Answer(f"no answer within {self._timeout:g} s")
            return Answer(_reason(error))

    def _post(self, event: str, number: str, body: bytes, late: threading.Event) -> Answer:
        url = urlsplit(self._url())
        headers = self._headers(event, number, body)
        connection = self._connection(url.scheme, url.hostname or "", url.port)
        this = _Try(connection)

        def expire() -> None:
            late.set()
            this.shut()

        with self._lock:
            if self._cut:
                return Answer("the service stops", cut=True)
            self._open.add(this)
        timer = threading.Timer(self._timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            connection.connect()
            this.socket = connection.sock
            if late.is_set() or self._cut:
                raise TimeoutError
            connection.sock.settimeout(self._timeout)
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("POST", path, body, headers)
            return self._read(connection.getresponse())
        finally:
            timer.cancel()
            with self._lock:
                self._open.discard(this)
            connection.close()

    def _headers(self, event: str, number: str, body: bytes) -> dict[str, str]:
        timestamp = str(int(self._clock()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"quaymaster/{__version__}",
            "Connection": "close",
            "X-Quaymaster-Event": event,
            "X-Quaymaster-Id": number,
            "X-Quaymaster-Timestamp": timestamp,
        }
        if self._secret is not None:
            headers["X-Quaymaster-Signature"] = signature(self._secret(), timestamp, body)
        return headers

    def _connection(self, scheme: str, host: str, port: int | None) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        if scheme == "https":
            return HTTPSConnection(host, port, timeout=self._connect_timeout, context=self._context())
        return HTTPConnection(host, port, timeout=self._connect_timeout)

    def _context(self) -> ssl.SSLContext:
        """Read anew now and then: authorities change, and reading all of the system's takes a while."""
        import ssl

        now, trust = time.monotonic(), self._trust
        if trust is None or now - trust[0] > _TRUSTED_FOR:
            trust = self._trust = now, ssl.create_default_context(cafile=self._ca_file)
        return trust[1]

    def _read(self, response: HTTPResponse) -> Answer:
        status, said = response.status, b""
        if 200 <= status < 300:
            return Answer()  # that is all that is needed, whatever follows
        with suppress(OSError):
            said = response.read(_READ)
        text = plain(said.decode("utf-8", "replace").strip()[:200])
        answered = f"it answered with status {status}" + (f": {text}" if text else "")
        if 300 <= status < 400:
            answered = f"it answered with status {status}; redirects are not followed: correct the url"
        return Answer(answered, gone=status == _GONE, retry_after=_seconds(response.getheader("Retry-After") or ""))


def signature(secret: str, timestamp: str, body: bytes) -> str:
    import hashlib
    import hmac

    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def _seconds(text: str) -> float:
    """Of Retry-After (RFC 9110, 10.2.3) in seconds; dates are rare, and count as nothing."""
    return min(float(text), _LONGEST_WAIT) if text.isascii() and text.isdecimal() and len(text) < 10 else 0.0


class _Try:
    def __init__(self, connection: HTTPConnection) -> None:
        self._connection = connection
        self.socket: socket.socket | None = None
        """Once there is one: the connection hands it over to the answer."""

    def shut(self) -> None:
        """From any thread, even while another waits on it."""
        import socket

        if (found := self.socket or self._connection.sock) is not None:
            with suppress(OSError):  # as a plain socket: another thread may be in the middle of TLS on it
                socket.socket.shutdown(found, socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    import socket
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate cannot be trusted ({error.verify_message}); name its authority with ca_file"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be resolved ({error.strerror})"
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f"it could not be reached ({said})"
