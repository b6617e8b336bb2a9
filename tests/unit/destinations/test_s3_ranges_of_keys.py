"""A listing in several ranges at a time is the listing: nothing left out, whatever the server and the split."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quaymaster.destinations import s3_listing
from quaymaster.destinations.s3_listing import Ahead, Listed, Page
from quaymaster.errors import Unreachable

PAGE = 3


class Bucket:
    """Lists its keys in an order of its own, page after page; ``heeds``: it begins where it is asked to."""

    def __init__(self, keys: Sequence[str], order: Callable[[str], object], heeds: bool = True) -> None:
        self.keys, self._order, self._heeds = sorted(keys, key=order), order, heeds  # type: ignore[type-var,arg-type]
        self.asked: list[tuple[str, str]] = []

    def fetch(self, token: str, after: str) -> Page:
        self.asked.append((token, after))
        start = int(token or 0)
        if after and self._heeds:
            start = sum(self._order(key) <= self._order(after) for key in self.keys)  # type: ignore[operator]
        end = start + PAGE
        objects = [Listed(key, 1, "e", 0.0) for key in self.keys[start:end]]
        return Page(objects, str(end) if end < len(self.keys) else "")

    def listed(self, known: Sequence[str]) -> list[str]:
        return [each.key for page in Ahead(self.fetch, "there", lambda: known) for each in page.objects]


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_listing, "_WORTH", PAGE)
        yield


ORDERS: dict[str, Callable[[str], object]] = {
    "bytes": str.encode,
    "utf-16": lambda key: key.encode("utf-16-be"),
    "no case": lambda key: (key.lower(), key),
    "none at all": lambda key: (hash(key), key),
}
names = st.text(st.sampled_from("aAbBzZ/-\uffee\U0001f600"), min_size=1, max_size=4)


@given(
    keys=st.sets(names, max_size=60), known=st.sets(names, max_size=60), order=st.sampled_from(sorted(ORDERS)),
    heeds=st.booleans(),
)  # fmt: skip
def test_every_key_is_listed_whatever_the_order_and_the_split(
    keys: set[str], known: set[str], order: str, heeds: bool
) -> None:
    assert set(Bucket(list(keys), ORDERS[order], heeds).listed(sorted(known))) == keys


def test_a_split_listing_names_each_object_once_in_little_more_requests() -> None:
    keys = [f"run/{number:04}" for number in range(120)]
    bucket = Bucket(keys, str.encode)
    assert sorted(bucket.listed(keys)) == keys
    begun = [after for token, after in bucket.asked if after]
    assert len(begun) == s3_listing._RANGES - 1, "it was listed in ranges"
    assert len(bucket.asked) <= len(keys) // PAGE + 2 * s3_listing._RANGES


def test_an_endpoint_that_does_not_heed_the_beginning_is_listed_in_one_go() -> None:
    keys = [f"run/{number:04}" for number in range(120)]
    bucket = Bucket(keys, str.encode, heeds=False)
    assert set(bucket.listed(keys)) == set(keys)
    assert [token for token, _ in bucket.asked].count("117") == 1, "the ranges were given up at their first pages"


def test_pages_of_several_ranges_are_under_way_at_the_same_time() -> None:
    keys = [f"run/{number:04}" for number in range(120)]
    bucket, together = Bucket(keys, str.encode), threading.Barrier(s3_listing._RANGES, timeout=60)

    def fetch(token: str, after: str) -> Page:
        if after:
            together.wait()  # with each other, and with the second page of the first range
        elif token == "3":
            together.wait()
        return bucket.fetch(token, after)

    pages = Ahead(fetch, "there", lambda: keys)
    assert sorted(each.key for page in pages for each in page.objects) == keys


def test_a_range_that_fails_fails_the_listing() -> None:
    keys = [f"run/{number:04}" for number in range(120)]
    bucket = Bucket(keys, str.encode)

    def fetch(token: str, after: str) -> Page:
        if after > "run/0080":
            raise Unreachable("gone")
        return bucket.fetch(token, after)

    with pytest.raises(Unreachable):
        list(Ahead(fetch, "there", lambda: keys))


def test_keys_that_are_known_late_are_made_use_of_from_then_on() -> None:
    keys = [f"run/{number:04}" for number in range(120)]
    bucket = Bucket(keys, str.encode)
    answers = iter([(), (), keys])
    listed = [each.key for page in Ahead(bucket.fetch, "there", lambda: next(answers)) for each in page.objects]
    assert sorted(listed) == keys
    assert [token for token, _ in bucket.asked[:3]] == ["", "3", "6"]
    assert sum(bool(after) for _, after in bucket.asked) == s3_listing._RANGES - 1
