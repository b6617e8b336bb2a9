"""The listing of a bucket: pages of 1,000 keys, fetched ahead while the former ones are looked at.

A listing that breaks off is an error, never an end: a page counts when it is a whole document that says whether another
one follows ("ListObjectsV2", S3 API reference).
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote_plus

from quaymaster.destinations.s3_wire import moment
from quaymaster.errors import Unreachable

_AHEAD = 16
"""Pages that may wait to be looked at: some MB."""


class Listed(NamedTuple):
    """One object as a page names it, by its whole key."""

    key: str
    size: int
    etag: str
    mtime: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Page:
    objects: list[Listed]
    token: str
    """That the next page is asked for with; empty after the last one."""


class UnreadableError(Exception):
    """An answer is no page of a listing, or not the whole of one."""


# What servers really send, read at once. Anything that does not fit exactly is left to the XML parser: other
# namespaces, attributes, entities, CDATA, a field that is missing.
_WHOLE = re.compile(rb"\s*(?:<\?xml[^>]*\?>)?\s*<ListBucketResult(?:\s[^<>]*)?>.*</ListBucketResult>\s*", re.DOTALL)
_CONTENTS = b"<Contents>"
_KEY = re.compile(rb"<Key>([^<&]*)</Key>")
_SIZE = re.compile(rb"<Size>([0-9]+)</Size>")
_ETAG = re.compile(rb"<ETag>(?:\"|&quot;|&#34;)?([^<&\"]*)(?:\"|&quot;|&#34;)?</ETag>")
_TIME = re.compile(rb"<LastModified>([^<&]+)</LastModified>")
_TRUNCATED = re.compile(rb"<IsTruncated>(true|false)</IsTruncated>")
_TOKEN = re.compile(rb"<NextContinuationToken>([^<&]+)</NextContinuationToken>")


def page(body: bytes) -> Page:
    """What one answer holds. Raises UnreadableError."""
    return _quickly(body) or _thoroughly(body)


def _quickly(body: bytes) -> Page | None:
    if b"<!" in body or not _WHOLE.fullmatch(body):
        return None
    truncated, tokens = _TRUNCATED.findall(body), _TOKEN.findall(body)
    columns = [pattern.findall(body) for pattern in (_KEY, _SIZE, _ETAG, _TIME)]
    number = body.count(_CONTENTS)
    if any(len(column) != number for column in columns) or len(truncated) != 1:
        return None
    if len(tokens) != (truncated[0] == b"true"):
        return None
    escaped = b"<EncodingType>url</EncodingType>" in body
    try:
        objects = [
            Listed(_key(key.decode(), escaped), int(size), etag.decode(), _seconds(at.decode()))
            for key, size, etag, at in zip(*columns, strict=True)
        ]
    except ValueError:
        return None
    return Page(objects, tokens[0].decode() if tokens else "")


def _thoroughly(body: bytes) -> Page:
    from xml.etree import ElementTree

    try:
        # Nothing is fetched from outside by this parser, and expat bounds what entities expand to.
        root = ElementTree.fromstring(body)  # noqa: S314
        named = {_plain_name(child.tag): child.text or "" for child in root}
        if _plain_name(root.tag) != "ListBucketResult" or named.get("IsTruncated") not in ("true", "false"):
            raise UnreadableError
        escaped = named.get("EncodingType") == "url"
        objects = []
        for contents in root:
            if _plain_name(contents.tag) == "Contents":
                said = {_plain_name(child.tag): child.text or "" for child in contents}
                at = _seconds(said["LastModified"]) if said.get("LastModified") else 0.0
                etag = said.get("ETag", "").strip('"')
                objects.append(Listed(_key(said["Key"], escaped), int(said["Size"]), etag, at))
    except (ElementTree.ParseError, KeyError, ValueError):
        raise UnreadableError from None
    token = named.get("NextContinuationToken", "")
    if bool(token) != (named["IsTruncated"] == "true"):
        raise UnreadableError
    return Page(objects, token)


def _plain_name(tag: str) -> str:
    return tag.rpartition("}")[2]


def _key(text: str, escaped: bool) -> str:
    """Keys are asked for in URL encoding: XML has no way to say a control character."""
    return unquote_plus(text) if escaped and ("%" in text or "+" in text) else text


def _seconds(text: str) -> float:
    return float(moment(text).timestamp())


class Ahead:
    """The pages of one listing in their order, each asked for before the former one is looked at, :data:`_AHEAD` of
    them at most. Asking begins at once. What ``fetch`` raises comes out where the pages end."""

    def __init__(self, fetch: Callable[[str], Page], where: str) -> None:
        self._fetch, self._where = fetch, where
        self._turn = threading.Condition()
        self._waiting: deque[Page] = deque()
        self._token: str | None = ""
        """Of the page to be fetched next; None after the last one."""
        self._error: BaseException | None = None
        self._fetching = False
        self._ask()

    def __iter__(self) -> Iterator[Page]:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._waiting or not self._fetching)
                if not self._waiting:
                    if self._error is not None:
                        raise self._error
                    return
                page = self._waiting.popleft()
                self._ask()
            yield page

    def _ask(self) -> None:
        """Nobody waits for room: the thread ends when there is none, and another one begins when there is."""
        if not self._fetching and self._token is not None and self._error is None and len(self._waiting) < _AHEAD:
            self._fetching = True
            threading.Thread(target=self._run, name="listing", daemon=True).start()

    def _run(self) -> None:
        more = True
        while more:
            page: Page | None = None
            error: BaseException | None = None
            try:
                page = self._fetch(self._token or "")
                if page.token and page.token == self._token:
                    raise Unreachable(f"The listing of {self._where} repeats itself", "It is tried again")
            except BaseException as caught:
                error = caught
            with self._turn:
                self._error = error
                if page is not None and error is None:
                    self._waiting.append(page)
                    self._token = page.token or None
                more = error is None and self._token is not None and len(self._waiting) < _AHEAD
                self._fetching = more
                self._turn.notify_all()
