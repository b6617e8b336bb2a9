"""The listing of a bucket: pages of 1,000 keys, fetched ahead while the former ones are looked at, and several at a
time where it is known what may be there.

A listing that breaks off is an error, never an end: a page counts when it is a whole document that says whether another
one follows ("ListObjectsV2", S3 API reference).
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple
from urllib.parse import unquote_plus

from quaymaster.destinations.s3_wire import moment
from quaymaster.errors import Unreachable

_AHEAD = 16
"""Pages that may wait to be looked at: some MB."""
_RANGES = 4
"""Parts of a listing that are asked for at a time."""
_WORTH = 1_000
"""Keys from which on a part is worth a request of its own: as many as a page has."""


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


@dataclass(slots=True, eq=False)
class _Range:
    """The keys after ``after``, up to and with ``last`` (None: to the end of the listing)."""

    after: str = ""
    last: str | None = None
    token: str | None = ""
    """Of the page to be fetched next; None after the last one."""
    first: str | None = None
    """The first key that the server gave; "" when there is none, None before the first page."""
    beyond: str = ""
    """The first key that it gave beyond ``last``; "" when there is none."""
    resume: str = ""
    """The token of the page in which that stood."""
    fetching: bool = False

    def takes(self, page: Page) -> Page:
        """What of its next page is its own."""
        if self.first is None:
            self.first = page.objects[0].key if page.objects else ""
        asked_with, self.token = self.token or "", page.token or None
        last = self.last
        if last is None:
            return page
        at = next((at for at, each in enumerate(page.objects) if each.key > last), None)
        if at is None:
            return page
        self.beyond, self.resume, self.token = page.objects[at].key, asked_with, None
        return Page(page.objects[:at], "")

    @property
    def is_refused(self) -> bool:
        """The server gives keys as if it had not been told where to begin."""
        return bool(self.after and self.first and self.first <= self.after)


class Ahead:
    """The pages of one listing, each asked for before the former one is looked at, :data:`_AHEAD` of them at most.
    Asking begins at once. What ``fetch`` (given a page's token, or else the key after which the listing is to begin)
    raises comes out where the pages end.

    A token leads to the next page alone, so pages come one after another, whatever they take. Where the caller knows
    keys that are likely to be there, the rest is divided at some of those and listed in :data:`_RANGES` ranges at a
    time. That this leaves nothing out does not depend on the keys, or on the server's order: each range goes on until
    it meets a key beyond its last one, which must be the very first key that the server gives for the next range.
    Where it is not (a server that does not heed start-after, a listing that changed meanwhile), the first range goes on
    to the end alone, and some pages come twice.
    """

    def __init__(
        self, fetch: Callable[[str, str], Page], where: str, known: Callable[[], Sequence[str]] = tuple
    ) -> None:
        """``known``: keys in order, as soon as they are known; asked now and then, until there are any."""
        self._fetch, self._where, self._known = fetch, where, known
        self._turn = threading.Condition()
        self._waiting: deque[Page] = deque()
        self._ranges = [_Range()]
        self._divided = False
        self._error: BaseException | None = None
        self._ask()

    def __iter__(self) -> Iterator[Page]:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._waiting or not any(each.fetching for each in self._ranges))
                if not self._waiting:
                    if self._error is not None:
                        raise self._error
                    if self._fits():
                        return
                    self._go_on_alone()
                    continue
                page = self._waiting.popleft()
                self._ask()
            yield page

    def _ask(self) -> None:
        """Nobody waits for room: a thread ends when there is none, and another one begins when there is."""
        for each in self._ranges:
            if not each.fetching and self._goes_on(each):
                each.fetching = True
                threading.Thread(target=self._run, args=(each,), name="listing", daemon=True).start()

    def _goes_on(self, one: _Range) -> bool:
        return one.token is not None and self._error is None and len(self._waiting) < _AHEAD and one in self._ranges

    def _run(self, mine: _Range) -> None:
        more = True
        while more:
            error: BaseException | None = None
            try:
                page = self._fetch(mine.token or "", "" if mine.token else mine.after)
                if page.token and page.token == mine.token:
                    raise Unreachable(f"The listing of {self._where} repeats itself", "It is tried again")
                with self._turn:
                    self._take(mine, page)
            except BaseException as caught:
                error = caught
            with self._turn:
                if error is not None and mine in self._ranges:
                    self._error = self._error or error
                more = mine.fetching = self._goes_on(mine)
                self._turn.notify_all()

    def _take(self, mine: _Range, page: Page) -> None:
        if mine not in self._ranges:
            return  # given up meanwhile
        self._waiting.append(mine.takes(page))
        if mine.is_refused:
            self._go_on_alone()
        elif not self._divided:
            self._divide(page)

    # -- ranges --

    def _divide(self, page: Page) -> None:
        """Share out what follows this page of the only range, if that is worth it."""
        if not page.token or not page.objects or not (known := self._known()):
            return
        self._divided = True
        left = known[bisect_right(known, page.objects[-1].key) :]
        number = min(_RANGES, len(left) // _WORTH)
        cuts = [left[len(left) * at // number - 1] for at in range(1, number)]
        if cuts:
            self._ranges[0].last = cuts[0]
            self._ranges += [_Range(after, last) for after, last in pairwise([*cuts, None]) if after is not None]
            self._ask()

    def _fits(self) -> bool:
        """Whether each range ended with the key that the next one began with."""
        return all(one.beyond == following.first for one, following in pairwise(self._ranges))

    def _go_on_alone(self) -> None:
        first = self._ranges[0]
        del self._ranges[1:]
        first.last = None
        if first.beyond:
            first.token, first.beyond = first.resume, ""
        self._ask()
