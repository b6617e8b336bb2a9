"""A large object is read in ranges, several at once: the same bytes, of one object, or an error."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from contract.places import S3Place, deliver
from quaymaster.destinations.ahead import in_order
from quaymaster.destinations.s3 import S3
from quaymaster.destinations.s3_ranges import RANGE
from quaymaster.errors import Conflict, IntegrityError, NotSupported, TransferError
from quaymaster.model import Stored
from servers.faultproxy import FaultProxy, Request, Reset, Response
from servers.seaweed import Seaweed

CONTENT = random.Random(1).randbytes(3 * RANGE + 12_345)
WAYS = {"plain": "archive", "library": None}
"""How requests are made: a destination without a key pair of its own goes by the AWS library."""


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.http_endpoint) as between:
        yield between


@pytest.fixture(params=list(WAYS))
def far(request: pytest.FixtureRequest, s3: S3Place, proxy: FaultProxy) -> S3:
    return s3.with_settings(endpoint_url=proxy.endpoint, credentials=WAYS[request.param])


@pytest.fixture
def stored(s3: S3Place) -> Stored:
    return deliver(s3.make(), "large", CONTENT, metadata={"quaymaster-mode": "0640"})


def read(destination: S3, stored: Stored, at_once: int = 3) -> bytes:
    with destination.read(replace(stored, checksum=""), at_once) as pieces:
        assert pieces.stored.metadata["quaymaster-mode"] == "0640"
        assert (pieces.stored.size, pieces.stored.etag) == (stored.size, stored.etag)
        return b"".join(pieces)


def asked(proxy: FaultProxy) -> list[str]:
    return [what for what, _ in proxy.seen if what in ("GetObject", "HeadObject")]


def test_each_range_is_asked_for_once_and_nothing_else(far: S3, proxy: FaultProxy, stored: Stored) -> None:
    ranges: list[str] = []
    proxy.inject("GetObject", request=lambda r: ranges.append(r.headers.get("range", "all")), times=99)  # type: ignore[func-returns-value]
    assert read(far, stored) == CONTENT
    starts = [f"bytes={at}-{min(at + RANGE, len(CONTENT)) - 1}" for at in range(0, len(CONTENT), RANGE)]
    assert sorted(ranges) == sorted(starts)
    assert read(far, stored, at_once=1) == CONTENT
    assert ranges[4:] == ["all"], "one request at a time takes the object as a stream"
    assert asked(proxy) == ["GetObject"] * 5


def test_a_range_is_put_into_a_buffer_whole_or_not_at_all(far: S3, proxy: FaultProxy, stored: Stored) -> None:
    buffer = bytearray(70_000)
    far.fill(stored, 12_345, memoryview(buffer))
    assert buffer == CONTENT[12_345 : 12_345 + len(buffer)]
    far.fill(stored, len(CONTENT) - 10, memoryview(buffer)[:10])
    assert buffer[:10] == CONTENT[-10:]

    def cut(_: Request, response: Response) -> None:
        response.body = response.body[:-1]
        response.headers["content-length"] = str(len(response.body))

    proxy.inject("GetObject", response=cut)
    with pytest.raises(IntegrityError, match="other bytes than were asked for"):
        far.fill(stored, 0, memoryview(buffer))
    with pytest.raises(NotSupported, match="no ETag"):
        far.fill(replace(stored, etag=""), 0, memoryview(buffer))
    with pytest.raises(Conflict):
        far.fill(replace(stored, etag="0" * 32), 0, memoryview(buffer))


def test_small_objects_take_one_request(far: S3, proxy: FaultProxy, s3: S3Place) -> None:
    for data in (b"", b"x", CONTENT[:RANGE]):
        small = deliver(s3.make(), f"small-{len(data)}", data, metadata={"quaymaster-mode": "0640"})
        proxy.seen.clear()
        assert read(far, small) == data
        assert asked(proxy) == ["GetObject"]


def test_a_server_without_ranges_gives_the_whole(far: S3, proxy: FaultProxy, stored: Stored) -> None:
    def forget(request: Request) -> None:
        # The plain way signs the header, the library does not: where it is signed, the answer is disguised instead.
        if "range" not in request.headers.get("authorization", ""):
            request.headers.pop("range", None)

    def disguise(request: Request, response: Response) -> None:
        if response.status == 206:
            response.status = 200
            response.headers.pop("content-range")
            response.body = CONTENT
            response.headers["content-length"] = str(len(CONTENT))

    proxy.inject("GetObject", request=forget, response=disguise, times=99)
    assert read(far, stored) == CONTENT


@pytest.mark.parametrize("late", [False, True])
def test_an_object_that_is_replaced_meanwhile_is_a_conflict(
    far: S3, proxy: FaultProxy, s3: S3Place, stored: Stored, late: bool
) -> None:
    def replaced(_: Request) -> None:
        s3.overwrite("large", CONTENT[::-1])

    last = f"bytes={3 * RANGE}-"
    proxy.inject("GetObject", request=replaced, only=lambda r: not late or r.headers.get("range", "").startswith(last))
    with pytest.raises(Conflict):
        read(far, stored, at_once=2)


def test_a_range_that_is_lost_or_of_other_bytes_is_an_error(far: S3, proxy: FaultProxy, stored: Stored) -> None:
    def drop(_: Request) -> None:
        raise Reset

    def shifted(_: Request, response: Response) -> None:
        response.headers["content-range"] = f"bytes 0-{RANGE - 1}/{len(CONTENT)}"

    def in_the_middle(request: Request) -> bool:
        return request.headers.get("range", "").startswith(f"bytes={RANGE}-")

    proxy.inject("GetObject", request=drop, only=in_the_middle, times=3)
    with pytest.raises(TransferError):
        read(far, stored)
    proxy.clear()
    proxy.inject("GetObject", response=shifted, only=in_the_middle)
    with pytest.raises(IntegrityError, match="other bytes than were asked for"):
        read(far, stored)
    proxy.clear()
    assert read(far, stored) == CONTENT


def test_so_many_are_under_way_at_once_and_no_more_and_come_in_order() -> None:
    together, begun = threading.Barrier(3), list[int]()

    def fetch(offset: int) -> bytes:
        begun.append(offset)
        if offset < 3:
            together.wait(10)  # broken, unless three are under way
        return bytes([offset])

    parts = in_order(fetch, range(6), 3)
    assert next(parts) == b"\x00"
    assert sorted(begun) == [0, 1, 2], "nothing more is held in memory before the first is looked at"
    assert b"".join(parts) == bytes([1, 2, 3, 4, 5])


def test_what_a_request_raises_comes_out_in_its_turn() -> None:
    def fetch(offset: int) -> bytes:
        if offset == 1:
            raise Conflict("gone")
        return b"x"

    parts = in_order(fetch, range(3), 3)
    assert next(parts) == b"x"
    with pytest.raises(Conflict):
        next(parts)
