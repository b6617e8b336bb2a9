"""What proves the bytes of an object: every digest of them that something is told of (PRODUCT M1)."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue

from quaymaster.destinations import checksums
from quaymaster.errors import IntegrityError
from quaymaster.mirror.ranges import Range
from quaymaster.model import Compression, Stored
from quaymaster.pipeline import etag
from quaymaster.pipeline.adopt import Told

ADVICE = "It is downloaded anew; if it stays so, look at what was uploaded"

Update = Callable[[memoryview], None]


class Checks:
    """``updates`` take the bytes in their order; each may have a thread of its own."""

    def __init__(self, now: Stored, told: Told | None, trust_etag: bool) -> None:
        self._sha256 = hashlib.sha256()
        self.updates: list[Update] = [self._sha256.update]
        # To a SHA-256, which is computed anyway, the others add nothing; the ETag costs most.
        by_sha256 = bool(checksums.sha256_in(now.checksum)) or _is_of_these_bytes(told)
        self._kept = None if by_sha256 else checksums.of_whole(now.checksum)
        plain = None if by_sha256 or self._kept else etag.Told.by(replace(now, checksum=""))
        plain = plain if plain and (trust_etag or plain.part_sizes) else None
        self._etag = etag.Running(plain) if plain else None
        self.updates += [each.update for each in (self._kept, self._etag) if each]

    def update(self, piece: memoryview) -> None:
        for update in self.updates:
            update(piece)

    def verdict(self, now: Stored, told: Told | None) -> tuple[str, str]:
        """What proved the stored bytes (empty: nothing but their number), and their SHA-256. Raises IntegrityError."""
        sha256 = self._sha256.hexdigest()
        found: list[str] = []
        if told and _is_of_these_bytes(told):
            _require(sha256 == told.sha256, now, f"SHA-256 {sha256} instead of {told.sha256}")
            found.append("quaymaster-sha256")
        if kept := checksums.sha256_in(now.checksum):
            _require(sha256 == kept, now, f"SHA-256 {sha256} instead of {kept}")
            found.append("sha256")
        if self._kept is not None:
            kind, _, value = now.checksum.partition(":")
            _require(self._kept.text() == value, now, f"{kind} {self._kept.text()} instead of {value}")
            found.append(self._kept.evidence)
        if self._etag:
            same, parts = self._etag.verdict()
            # Of parts only the sizes that programs commonly use were tried: another sum proves nothing.
            _require(same or parts, now, "another MD5 than its ETag (if the bucket is encrypted: trust_etag = false)")
            found += ["etag-md5-parts" if parts else "etag-md5"] if same else []
        return (found[0] if found else ""), sha256


def _is_of_these_bytes(told: Told | None) -> bool:
    """Whether what quaymaster told of the content is of the stored bytes too."""
    return told is not None and told.compression is Compression.NONE


def _require(true: bool, now: Stored, what: str) -> None:
    if not true:
        raise IntegrityError(f"{now.key} arrived with {what}", ADVICE)


class Beside:
    """One digest on a thread of its own: each takes about as long as the rest of what is done with bytes that came."""

    def __init__(self, update: Update) -> None:
        self._update = update
        self._waiting: SimpleQueue[Range | None] = SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def put(self, came: Range) -> None:
        """It is given back when its bytes are no longer needed."""
        self._waiting.put(came)

    def close(self) -> None:
        """Everything is hashed when this returns."""
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (came := self._waiting.get()) is not None:
            try:
                if self._error is None:
                    self._update(came.data)
            except BaseException as error:
                self._error = error
            came.give_back()
