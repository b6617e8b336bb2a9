"""One publisher of a key at a time, where the server cannot be trusted to see to that.

Some servers heed If-None-Match on CompleteMultipartUpload, but look and act in two steps: of 24 uploads of one key that
were completed at once, up to 24 were accepted. (The same condition on PutObject, which is one step, let one through.)
So before a multipart upload is completed, a small object is made with a conditional PutObject; who made it completes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from quaymaster.destinations.s3_objects import Objects
from quaymaster.destinations.s3_sums import body_digest
from quaymaster.destinations.s3_wire import AbsentError
from quaymaster.errors import Conflict, TransferError, Unreachable

FOLDER = ".quaymaster-claim"
STALE = 900.0  # seconds, by the server's clock; a completion that takes longer than this has died
_PATIENCE = 100  # looks, 0.3 s apart


@dataclass(slots=True)
class Claim:
    objects: Objects
    key: str
    token: str
    """Unique to the upload; the claim made by a request whose reply was lost is known again by it."""
    level: str
    """Which digest the endpoint checks (Capabilities.put_checked)."""
    atomic: bool
    """Whether it heeds If-Match on DELETE."""
    stop: threading.Event = field(default_factory=threading.Event)
    left: bool = False
    """It is, or may be, there: until it is stale, it keeps everybody from this key who does not have its token."""

    @contextmanager
    def held(self, expected_etag: str) -> Iterator[None]:
        """Raises Conflict when the key holds anything but ``expected_etag`` (empty: nothing) while waiting, Unreachable
        when another holds the claim for too long."""
        for _ in range(_PATIENCE):
            claim = self._make() or self._ours_or_stale()
            if claim:
                break
            present = self.objects.head(self.key)
            if present and present.etag != expected_etag:
                raise Conflict(f"{self.objects.where(self.key)} was just filled by another writer")
            self.stop.wait(0.3)
        else:
            raise Unreachable(
                f"Another writer is publishing {self.objects.where(self.key)}",
                f"It is tried again; if none runs, {self.objects.where(self._name)} goes in {STALE / 60:.0f} minutes",
            )
        try:
            yield
        finally:
            self._remove(claim)

    def withdraw(self) -> None:
        """Remove what an earlier process left of this very claim."""
        try:
            head = self._call("head_object")
        except AbsentError:
            self.left = False
            return
        self.left = False
        if head.get("Metadata", {}).get("claim") == self.token:
            self._remove(head)

    @property
    def _name(self) -> str:
        return f"{FOLDER}/{hashlib.sha256(self.key.encode()).hexdigest()[:32]}"

    def _call(self, operation: str, **parameters: Any) -> Mapping[str, Any]:
        return self.objects.wire.call(operation, self.objects.whole_key(self._name), **parameters)

    def _make(self) -> Mapping[str, Any] | None:
        """The server's answer, or None when there is a claim already."""
        body = self.token.encode()
        digest = body_digest(self.level, body)
        self.left = True  # also when the answer is lost
        try:
            return self._call("put_object", Body=body, IfNoneMatch="*", Metadata={"claim": self.token}, **digest)
        except Conflict:
            return None  # somebody's; or ours, from a request whose answer was lost

    def _ours_or_stale(self) -> Mapping[str, Any] | None:
        try:
            head = self._call("head_object")
        except AbsentError:
            self.left = False
            return None
        self.left = head.get("Metadata", {}).get("claim") == self.token
        if self.left:
            return head
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        if (now - head["LastModified"]).total_seconds() > STALE:
            self._remove(head)
        return None

    def _remove(self, claim: Mapping[str, Any]) -> None:
        condition = {}
        if claim.get("VersionId") not in (None, "null"):
            condition["VersionId"] = claim["VersionId"]
        elif self.atomic:
            condition["IfMatch"] = claim["ETag"]
        try:
            self._call("delete_object", **condition)
            self.left = False
        except TransferError:
            self.left = True
