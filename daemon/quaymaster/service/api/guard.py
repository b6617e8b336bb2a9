"""Who may ask, and who may act (PRODUCT X5). Every request passes here first, whatever its path.

- Whoever may open the Unix socket may read and act: its group protects it.
- Over TCP acting needs ``act_token``. Reading needs ``read_token`` or ``act_token``; without a read token a loopback
  address may be read by everybody on this machine.
- A name that is not ours in Host is refused: a page elsewhere could have made it lead here (DNS rebinding). So is an
  action whose Origin is another one than Host (cross-site request forgery).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import pwd
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from quaymaster.service.api.server import LARGEST

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
DEFECT = "A defect of quaymaster; its log says more"
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
)


@dataclass(frozen=True)
class Rules:
    """What the configuration says of callers. ``address`` is where TCP listens; empty: nowhere."""

    address: str = ""
    hosts: tuple[str, ...] = ()
    read_token: str | None = field(default=None, repr=False)
    act_token: str | None = field(default=None, repr=False)

    @property
    def loopback(self) -> bool:
        return bool(self.address) and ipaddress.ip_address(self.address).is_loopback

    def serves(self, host: str) -> bool:
        """Whether that is a name or address of ours, as Host gives it."""
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = (match[1] or match[2]).lower().rstrip(".")
        if name in LOOPBACK_NAMES or name in self.hosts or name == self.address:
            return True
        try:
            # Whoever asks by an address was not led here by a name. It matters where every address is listened on.
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return bool(self.address) and ipaddress.ip_address(self.address).is_unspecified


class Refused(Exception):
    """``status`` and what to say of it."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Guard:
    """Wraps the application. ``open_paths`` hold no data (the page itself). ``internal`` is told of a defect."""

    def __init__(
        self, app: App, rules: Callable[[], Rules], open_paths: Iterable[str], internal: Callable[[Exception], None]
    ) -> None:
        self._app, self._rules, self._open, self._internal = app, rules, frozenset(open_paths), internal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name for name, _ in message["headers"]}
                more = [pair for pair in (*_HEADERS, (b"cache-control", b"no-store")) if pair[0] not in present]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, _bounded(scope, receive), with_headers)
        except Refused as error:
            if not started:
                await problem(with_headers, error.status, str(error))
        except Exception as error:
            self._internal(error)
            if started:
                raise
            await problem(with_headers, 500, DEFECT)

    def _admit(self, scope: Scope) -> None:
        rules = self._rules()
        host = _one(scope, b"host")
        if host is None or not rules.serves(host):
            raise Refused(421, "This name is not served here: name it in [api] hosts, or use an address")
        acts = scope["method"] not in ("GET", "HEAD", "OPTIONS")
        origin = _one(scope, b"origin")
        if acts and origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "A page of another origin may not act here")
        if acts and _one(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
            raise Refused(403, "A page of another origin may not act here")
        scope["by"] = self._caller(scope, rules, acts)

    def _caller(self, scope: Scope, rules: Rules, acts: bool) -> str:
        """Who acts, for the custody log."""
        client, port = scope["client"] or ("", 0)
        if client == "unix":
            return f"{_user(port)} (API)"
        if not acts and scope["path"] in self._open:
            return ""
        given = _token(scope)
        may_act = _same(given, rules.act_token)
        may_read = _same(given, rules.read_token) or may_act
        if given is not None and not may_read:
            raise Refused(401, "Not authorized")
        if acts and rules.act_token is None:
            raise Refused(403, "Over TCP nothing can be changed without [api] act_token; use the Unix socket")
        if acts and not may_act:
            raise Refused(403 if may_read else 401, "Not authorized")
        if not acts and not may_read and not (rules.loopback and rules.read_token is None):
            raise Refused(401, "Not authorized")
        return f"{client} (API, act_token)"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _one(scope: Scope, name: bytes) -> str | None:
    """The value of a header; given twice, it is nobody's."""
    values = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else "\0" if values else None


def _token(scope: Scope) -> str | None:
    """None: none was given. What is no bearer token (RFC 6750) is a wrong one."""
    given = _one(scope, b"authorization")
    if given is None:
        return None
    scheme, _, token = given.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _same(given: str | None, token: str | None) -> bool:
    """In a time that tells neither where they differ nor how long the token is."""
    wanted = hashlib.sha256((token or "").encode()).digest()
    found = hashlib.sha256((given or "").encode("utf-8", "surrogateescape")).digest()
    return hmac.compare_digest(wanted, found) and bool(given) and bool(token)


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Refuses a body that is too large, told or not."""
    told = _one(scope, b"content-length")
    left = LARGEST

    async def bounded() -> Message:
        nonlocal left
        if told is not None and told.isdecimal() and int(told[:12]) > LARGEST:
            raise Refused(413, f"The body is larger than {LARGEST} bytes")
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise Refused(413, f"The body is larger than {LARGEST} bytes")
        return message

    return bounded


_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def problem_body(status: int, detail: str) -> bytes:
    """RFC 9457."""
    body = {"type": "about:blank", "title": _TITLES.get(status, "Error"), "status": status, "detail": detail}
    return json.dumps(body).encode()


async def problem(send: Send, status: int, detail: str) -> None:
    body = problem_body(status, detail)
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in (413, 421):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
