"""Whether a key holds certain bytes is told from its content, never from size or name alone."""

from __future__ import annotations

import pytest

from contract.places import PART, Place, S3Place, bytes_of, content, deliver, digests_of

SIZES = [0, 3_000, 2 * PART + 9]


@pytest.mark.parametrize("size", SIZES)
def test_what_was_delivered_is_held(place: Place, size: int) -> None:
    destination, data = place.make(), bytes_of(size)
    stored = deliver(destination, "run/a", data)
    held = place.make().holding("run/a", digests_of(data))
    assert held is not None
    assert (held.key, held.size, held.etag) == (stored.key, stored.size, stored.etag)
    assert held.evidence
    assert content(destination, held) == data


@pytest.mark.parametrize("size", SIZES[1:])
def test_other_bytes_of_the_same_size_are_not(place: Place, size: int) -> None:
    destination = place.make()
    deliver(destination, "a", bytes_of(size))
    assert destination.holding("a", digests_of(bytes_of(size, 1))) is None
    assert destination.holding("a", digests_of(bytes_of(size - 1))) is None
    assert destination.holding("b", digests_of(bytes_of(size))) is None


def test_without_a_stored_digest_the_object_is_read(s3: S3Place) -> None:
    data = bytes_of(2 * PART)
    s3.overwrite("a", data)
    held = s3.make().holding("a", digests_of(data))
    assert held is not None
    assert s3.make().holding("a", digests_of(bytes_of(2 * PART, 3))) is None
