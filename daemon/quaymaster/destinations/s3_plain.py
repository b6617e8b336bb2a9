"""Looking at a bucket without the AWS library: signed GET and HEAD requests over connections that stay open.

The library takes most of a second to come up and over a millisecond of the processor for each request, which is most of
the time that a listing or ten thousand HEADs take. What is needed to look is little: one signature (AWS Signature
Version 4, "Signing AWS API requests") and HTTP. It is used only where nothing else of the library is: the endpoint and
the key pair are configured, no proxy is in between, and the bucket is named in the path. See :func:`usable`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from quaymaster import __version__
from quaymaster.destinations.s3_signature import EMPTY, Credentials, Signer
from quaymaster.destinations.s3_wire import Settings, error_in, reason, refused, require_certificates, untrusted
from quaymaster.errors import ConfigError, PermanentError, PermissionDenied, TransferError, Unreachable

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

_UNRESERVED = "-._~"
_LARGEST = 64 << 20
"""Bytes of one answer: a page of 1,000 keys of 1,024 bytes, each byte of which is escaped, is far below."""
_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
_ELSEWHERE = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})


class ElsewhereError(Exception):
    """The server names another place or region, which the AWS library knows how to find."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    filled: int = 0
    """Bytes of the body that are in the caller's buffer, instead."""


def usable(settings: Settings, environ: Mapping[str, str]) -> bool:
    """Whether all that a request needs is configured."""
    endpoint = urlsplit(settings.endpoint_url or "")
    secure = endpoint.scheme == "https"
    trusted = not secure or settings.ca_bundle or not any(environ.get(name) for name in _BUNDLES)
    named = endpoint.hostname and settings.credentials and settings.addressing != "virtual"
    return bool(named and trusted) and not any(environ.get(name) for name in _VARIABLES)


class Plain:
    """Requests that only look, to one bucket. Thread-safe; connects at first use."""

    def __init__(
        self,
        settings: Settings,
        credentials: Callable[[], Credentials | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._read_credentials, self._clock = settings, credentials, clock
        endpoint = urlsplit(settings.endpoint_url or "")
        self._secure, self._host = endpoint.scheme == "https", endpoint.netloc
        self._signer: Signer | None = None
        self._idle: deque[HTTPConnection] = deque()
        self._trust: Any = None

    def get(self, where: str, query: Mapping[str, str]) -> Answer:
        """About the bucket. ``where`` is what errors name."""
        return self._request("GET", "", query, {}, where)

    def head(self, key: str, where: str, query: Mapping[str, str] | None = None) -> Answer:
        """Of the object under the whole key; of the bucket, if that is empty."""
        return self._request("HEAD", key, query or {}, {"x-amz-checksum-mode": "ENABLED"} if key else {}, where)

    def object(
        self,
        key: str,
        where: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        most: int,
        into: memoryview | None = None,
    ) -> Answer:
        """An object's bytes, or a range of them. A body longer than ``most`` is not read: ElsewhereError. One that is
        as long as ``into`` is read there."""
        return self._request("GET", key, query, headers, where, most, into)

    def close(self) -> None:
        """Requests that are still running end on their own."""
        self._signer = None
        while self._idle:
            self._idle.pop().close()

    def _request(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        where: str,
        most: int = 0,
        into: memoryview | None = None,
    ) -> Answer:
        """Raises TransferError for every answer that is none of success, and ElsewhereError."""
        path = quote(f"/{self._settings.bucket}/{key}" if key else f"/{self._settings.bucket}", safe="/" + _UNRESERVED)
        asked = "&".join(
            f"{quote(name, safe=_UNRESERVED)}={quote(query[name], safe=_UNRESERVED)}" for name in sorted(query)
        )
        signed = self._signed(method, path, asked, headers, where)
        answer = self._exchange(method, f"{path}?{asked}" if asked else path, signed, where, most, into)
        if answer.status < 300:
            return answer
        error = _refusal(answer, where, f"credentials {self._settings.credentials!r}")
        if isinstance(error, PermissionDenied):
            self.close()  # rotated credentials are read again at the next request
        try:
            raise error
        finally:
            del error  # else it and this frame keep each other, and all that called, until the collector comes

    def _signed(self, method: str, path: str, asked: str, headers: Mapping[str, str], where: str) -> dict[str, str]:
        signer = self._signer
        if signer is None:
            try:
                given = self._read_credentials()
            except ConfigError as error:
                told = f"No usable credentials for {where}: {error}"
                raise PermissionDenied(told, "Then retry the job") from None
            assert given is not None  # usable() requires a name
            signer = self._signer = Signer(given, self._settings.region or "us-east-1", self._host, self._clock)
        return {**signer.headers(method, path, asked, headers, EMPTY), "User-Agent": f"quaymaster/{__version__}"}

    # -- connections --

    def _exchange(
        self, method: str, target: str, headers: Mapping[str, str], where: str, most: int, into: memoryview | None
    ) -> Answer:
        from http.client import HTTPException

        while True:
            used = self._idle_connection()
            connection = used
            try:
                connection = connection or self._new_connection()
                connection.request(method, target, headers=dict(headers))
                reply = connection.getresponse()
                if most and reply.status < 300 and (reply.length is None or reply.length > most):
                    raise ElsewhereError
                answer = _read(reply, where, into)
                if not reply.will_close:
                    self._idle.append(connection)
                    connection = None
                return answer
            except (OSError, HTTPException) as error:
                # One that has stood idle may have been closed by the server: that is no outage yet.
                if used is None or isinstance(error, TimeoutError):
                    raise _no_answer(error, where) from None
            finally:
                if connection is not None:
                    connection.close()

    def _idle_connection(self) -> HTTPConnection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _new_connection(self) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        settings = self._settings
        if not self._secure:
            return _patient(HTTPConnection(self._host, timeout=settings.connect_timeout), settings.read_timeout)
        if self._trust is None:
            self._trust = _trust(settings.ca_bundle)
        made = HTTPSConnection(self._host, timeout=settings.connect_timeout, context=self._trust)
        return _patient(made, settings.read_timeout)


def _patient(connection: HTTPConnection, read_timeout: float) -> HTTPConnection:
    """Connect now: what follows may take longer than connecting."""
    import socket

    connection.connect()
    connection.sock.settimeout(read_timeout)
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


def _trust(ca_bundle: str | None) -> Any:
    """The TLS context; the certificates that the AWS library trusts, unless others are configured."""
    import ssl
    from importlib.util import find_spec
    from pathlib import Path

    if ca_bundle:
        require_certificates(ca_bundle)
        return ssl.create_default_context(cafile=ca_bundle)
    kept = [("certifi", "cacert.pem"), ("botocore", "cacert.pem")]
    found = [Path(spec.origin).with_name(name) for module, name in kept if (spec := find_spec(module)) and spec.origin]
    return ssl.create_default_context(cafile=next((str(path) for path in found if path.exists()), None))


def _read(reply: HTTPResponse, where: str, into: memoryview | None = None) -> Answer:
    """All of it: a body that ends early raises HTTPException, whatever its length was said to be."""
    filled = 0
    if into is not None and reply.status < 300 and reply.length == len(into):
        while filled < len(into) and (came := reply.readinto(into[filled:])):
            filled += came
    body = reply.read(_LARGEST + 1)
    if len(body) > _LARGEST:
        raise PermanentError(f"{where} answers with more than {_LARGEST >> 20} MiB", "Look what stands at the endpoint")
    if reply.length:  # read() with a limit does not complain itself
        from http.client import IncompleteRead

        raise IncompleteRead(body, reply.length)
    return Answer(reply.status, {name.lower(): value for name, value in reply.getheaders()}, body, filled)


def _no_answer(error: Exception, where: str) -> TransferError:
    if untrusted(error):
        return PermanentError(
            f"The certificate of {where} is not trusted",
            "If the endpoint has its own certificate authority, set ca_bundle to its PEM file",
        )
    return Unreachable(f"{where} cannot be reached ({reason(error)})", "It is tried again")


def _refusal(answer: Answer, where: str, source: str) -> TransferError:
    """What an answer that is none of success means."""
    told = error_in(answer.body)
    if 300 <= answer.status < 400 or told["Code"] in _ELSEWHERE:
        raise ElsewhereError
    told["Code"] = told["Code"] or str(answer.status)
    reply = {"HTTPStatusCode": answer.status, "HTTPHeaders": answer.headers}
    return refused({"Error": told, "ResponseMetadata": reply}, where, source)
