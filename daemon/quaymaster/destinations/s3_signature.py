"""AWS Signature Version 4 (AWS General Reference, "Create a signed AWS API request"), for the requests that are made
without the AWS library."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

UNSIGNED = "UNSIGNED-PAYLOAD"
"""In place of a body's digest: the body is not part of the signature, and carries a checksum of its own."""
EMPTY = hashlib.sha256(b"").hexdigest()
"""The digest of no body."""


class Credentials(Protocol):
    """A key pair, as it is at this moment."""

    @property
    def access_key(self) -> str: ...
    @property
    def secret_key(self) -> str: ...
    @property
    def session_token(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Keys:
    """:class:`Credentials` by themselves."""

    access_key: str
    secret_key: str
    session_token: str | None


class Signer:
    """With one key pair, for one host. What depends on the second or the day alone is kept. Not thread-safe beyond what
    a lost update costs: the same is computed again."""

    def __init__(self, keys: Credentials, region: str, host: str, clock: Callable[[], float] = time.time) -> None:
        self._keys, self._region, self._host, self._clock = keys, region, host, clock
        self._moment = (0, "")
        self._scoped = ("", b"")

    def headers(self, method: str, path: str, query: str, more: Mapping[str, str], payload: str) -> dict[str, str]:
        """All headers that the request needs, by lower-case name: ``more``, and those of the signature. ``path`` and
        ``query`` are escaped, the query sorted; ``payload`` is the body's SHA-256 in hex or :data:`UNSIGNED`."""
        stamp = self._stamp()
        sent = {**more, "host": self._host, "x-amz-content-sha256": payload, "x-amz-date": stamp}
        if self._keys.session_token:
            sent["x-amz-security-token"] = self._keys.session_token
        names = sorted(sent)
        signed = ";".join(names)
        block = "".join([f"{name}:{sent[name]}\n" for name in names])
        request = hashlib.sha256(f"{method}\n{path}\n{query}\n{block}\n{signed}\n{payload}".encode()).hexdigest()
        scope, key = self._scope(stamp[:8])
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{request}"
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        given = f"Credential={self._keys.access_key}/{scope}"
        sent["authorization"] = f"AWS4-HMAC-SHA256 {given}, SignedHeaders={signed}, Signature={signature}"
        return sent

    def _stamp(self) -> str:
        now = int(self._clock())
        at, stamp = self._moment
        if at != now:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
            self._moment = (now, stamp)
        return stamp

    def _scope(self, day: str) -> tuple[str, bytes]:
        scope = f"{day}/{self._region}/s3/aws4_request"
        kept, key = self._scoped
        if kept != scope:
            key = b"AWS4" + self._keys.secret_key.encode()
            for part in scope.split("/"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._scoped = (scope, key)
        return scope, key
