"""Whether a key holds certain bytes is told from its content, never from size or name alone."""

from __future__ import annotations

import pytest

from contract.places import PART, Place, S3Place, bytes_of, content, deliver, digests_of
from quaymaster.errors import DestinationMissing

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


def test_a_bucket_that_is_gone_is_an_outage_and_no_missing_object(s3: S3Place) -> None:
    """HEAD answers 404 for both, and a copy that is taken for gone would be sent again, or its job given up."""
    data = bytes_of(3_000)
    s3.server.make_bucket("short-lived")
    destination = s3.with_settings(bucket="short-lived")
    stored = deliver(destination, "a", data)
    destination.remove(stored)
    assert destination.holding("a", digests_of(data)) is None
    s3.client.delete_bucket(Bucket="short-lived")
    with pytest.raises(DestinationMissing, match="no bucket"):
        destination.holding("a", digests_of(data))
