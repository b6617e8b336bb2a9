"""What every destination promises (destinations/base.py), held against each of them."""

from __future__ import annotations

import pytest

from contract.places import PART, Place, S3Place, bytes_of, content, deliver, digests_of, race
from quaymaster.destinations.base import Put
from quaymaster.errors import Conflict, IntegrityError, NameRefused, TransferError
from quaymaster.model import Digests

SIZES = [0, 1, PART - 1, PART, PART + 1, 3 * PART + 17]


@pytest.mark.parametrize("size", [*SIZES, 50 << 20])
def test_what_is_published_is_exactly_what_was_written(place: Place, size: int) -> None:
    destination, data = place.make(), bytes_of(size)
    stored = deliver(destination, "run/reads.fastq", data, step=777_777 if size < PART else 1 << 20)
    assert (stored.key, stored.size) == ("run/reads.fastq", size)
    assert stored.evidence
    assert stored.checksum
    assert content(destination, stored) == data
    assert place.everything() == ["run/reads.fastq"]


def test_pieces_read_are_at_most_a_mebibyte(place: Place) -> None:
    destination = place.make()
    stored = deliver(destination, "a", bytes_of(PART + 1))
    with destination.read(stored) as pieces:
        assert max(len(piece) for piece in pieces) <= 1 << 20


@pytest.mark.parametrize("size", [1 << 20, 3 * PART + 1])
def test_nothing_is_visible_before_publish(place: Place, size: int) -> None:
    destination, observer, data = place.make(), place.make(), bytes_of(size)
    upload = destination.begin(Put("a/b", size))
    assert observer.stat("a/b") is None
    for start in range(0, size, 1 << 20):
        upload.write(data[start : start + (1 << 20)])
        assert observer.stat("a/b") is None
    upload.publish(digests_of(data), {})
    assert observer.stat("a/b").size == size


@pytest.mark.parametrize("written", [0, 1, PART + 1, 3 * PART])
def test_abort_leaves_nothing(place: Place, written: int) -> None:
    upload = place.make().begin(Put("a/b/c", 4 * PART))
    upload.write(bytes_of(written))
    upload.abort()
    upload.abort()
    assert place.everything() == []


def test_abort_after_publish_takes_nothing_away(place: Place) -> None:
    destination = place.make()
    upload = destination.begin(Put("a", 3))
    upload.write(b"abc")
    stored = upload.publish(digests_of(b"abc"), {})
    upload.abort()
    assert content(destination, stored) == b"abc"


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_of_24_writers_exactly_one_wins(place: Place, size: int) -> None:
    instances = [place.make() for _ in range(4)]
    results = race(24, lambda n: deliver(instances[n % 4], "same/name", bytes_of(size, seed=n)))
    winners = [number for number, result in enumerate(results) if not isinstance(result, Exception)]
    losers = [type(result) for number, result in enumerate(results) if number not in winners]
    assert len(winners) == 1, results
    assert losers == [Conflict] * 23, results
    assert content(instances[0], results[winners[0]]) == bytes_of(size, seed=winners[0])
    assert place.everything() == ["same/name"]


@pytest.mark.parametrize("size", [1000, PART + 1000])
def test_writers_of_the_same_bytes_all_succeed(place: Place, size: int) -> None:
    instances = [place.make() for _ in range(4)]
    results = race(12, lambda n: deliver(instances[n % 4], "same/name", bytes_of(size)))
    assert [r.etag for r in results] == [results[0].etag] * 12
    assert place.everything() == ["same/name"]


@pytest.mark.parametrize("size", [0, 10, 2 * PART + 5])
def test_a_publication_may_be_repeated(place: Place, size: int) -> None:
    data = bytes_of(size)
    first = deliver(place.make(), "a", data)
    again = deliver(place.make(), "a", data)
    assert (again.etag, again.size, again.checksum) == (first.etag, first.size, first.checksum)
    assert again.evidence
    assert place.everything() == ["a"]


@pytest.mark.parametrize("size", [10, 2 * PART + 5])
def test_what_is_there_is_never_overwritten_even_at_equal_size(place: Place, size: int) -> None:
    destination = place.make()
    first = deliver(destination, "a", bytes_of(size, seed=1))
    with pytest.raises(Conflict, match="a"):
        deliver(destination, "a", bytes_of(size, seed=2))
    assert content(destination, first) == bytes_of(size, seed=1)
    assert place.everything() == ["a"]


@pytest.mark.parametrize("size", [10, PART + 5])
def test_only_the_object_named_is_replaced(place: Place, size: int) -> None:
    destination = place.make()
    old = deliver(destination, "a", b"first")
    new = deliver(destination, "a", bytes_of(size), replace=old)
    assert content(destination, new) == bytes_of(size)
    with pytest.raises(Conflict):  # the old one is not there any more
        deliver(destination, "a", b"third", replace=old)
    assert content(destination, destination.stat("a")) == bytes_of(size)
    assert place.everything() == ["a"]


@pytest.mark.parametrize("size", [10, PART + 5])
def test_what_somebody_else_put_there_meanwhile_is_not_replaced(place: Place, size: int) -> None:
    destination = place.make()
    old = deliver(destination, "a", b"ours")
    place.overwrite("a", b"foreign")
    with pytest.raises(Conflict):
        deliver(destination, "a", bytes_of(size), replace=old)
    assert content(destination, destination.stat("a")) == b"foreign"
    assert place.everything() == ["a"]


def test_a_replacement_finds_its_place_when_the_old_object_was_removed(place: Place) -> None:
    destination = place.make()
    old = deliver(destination, "a", b"first")
    destination.remove(old)
    assert content(destination, deliver(destination, "a", b"second", replace=old)) == b"second"


def test_a_replacement_may_be_repeated(place: Place) -> None:
    destination = place.make()
    old = deliver(destination, "a", b"first")
    new = deliver(destination, "a", b"second", replace=old)
    assert deliver(destination, "a", b"second", replace=old).etag == new.etag


def test_of_12_replacements_exactly_one_wins(place: Place) -> None:
    destination = place.make()
    old = deliver(destination, "a", b"first")
    results = race(12, lambda n: deliver(destination, "a", b"%06d" % n, replace=old))
    winners = [number for number, result in enumerate(results) if not isinstance(result, TransferError)]
    assert len(winners) == 1, results
    assert content(destination, destination.stat("a")) == b"%06d" % winners[0]
    assert place.everything() == ["a"]


@pytest.mark.parametrize(
    "key",
    [
        "Übung/ñandú 中文 🧬.fastq",
        "not utf-8 %FF%FE",
        "new%0Aline",
        "percent %25 and back%5Cslash",
        "plus+and&amp=? #;'\"<>*|",
        " leading and trailing ",
        "-rf",
        "n" * 255,
        "/".join(["d" * 100] * 7) + "/" + "f" * 200,
        "Case/x",
    ],
)
def test_names_travel_and_come_back_intact(place: Place, key: str) -> None:
    destination = place.make()
    stored = deliver(destination, key, key.encode())
    assert stored.key == key
    assert content(destination, stored) == key.encode()
    found = destination.stat(key)
    assert (found.key, found.size, found.etag) == (key, len(key.encode()), stored.etag)
    destination.remove(stored)
    assert destination.stat(key) is None


def test_names_that_differ_in_case_only_stay_apart(place: Place) -> None:
    destination = place.make()
    lower, upper = deliver(destination, "a/reads", b"lower"), deliver(destination, "A/READS", b"upper")
    assert (content(destination, lower), content(destination, upper)) == (b"lower", b"upper")


@pytest.mark.parametrize("key", ["../escape", "/absolute", "a/../../b", "a//b", "a/./b", "nul%00", "", "%2E%2E/x"])
def test_names_that_lead_out_are_refused(place: Place, key: str) -> None:
    with pytest.raises(NameRefused):
        place.make().begin(Put(key, 1))


def test_a_name_too_long_for_the_destination_is_refused(place: Place) -> None:
    destination = place.make()
    with pytest.raises(NameRefused):
        deliver(destination, "x" * (destination.longest_name() + 1), b"1")
    assert place.everything() == []


def test_stat_of_what_is_not_there(place: Place) -> None:
    assert place.make().stat("no/such/name") is None


def test_a_new_instance_finds_and_reads_what_another_wrote(place: Place) -> None:
    deliver(place.make(), "a", b"abc")
    other = place.make()
    assert content(other, other.stat("a")) == b"abc"


@pytest.mark.parametrize("size", [0, 100, 2 * PART + 1])
@pytest.mark.parametrize("wrong", ["sha256", "size"])
def test_bytes_that_are_not_what_the_caller_hashed_never_appear(place: Place, size: int, wrong: str) -> None:
    data = bytes_of(size)
    right = digests_of(data)
    claimed = Digests(size, digests_of(b"other").sha256) if wrong == "sha256" else Digests(size + 1, right.sha256)
    with pytest.raises(IntegrityError):
        deliver(place.make(), "a", data, digests=claimed)
    assert place.everything() == []


def test_remove_takes_away_exactly_what_was_put_there(place: Place) -> None:
    destination = place.make()
    stored = deliver(destination, "a/b", b"ours")
    place.overwrite("a/b", b"foreign")
    with pytest.raises(Conflict):
        destination.remove(stored)
    found = destination.stat("a/b")
    assert content(destination, found) == b"foreign"
    destination.remove(found)
    destination.remove(found)
    assert destination.stat("a/b") is None


def test_reading_what_was_changed_or_removed_is_an_error_of_ours(place: Place) -> None:
    destination = place.make()
    stored = deliver(destination, "a", b"ours")
    place.overwrite("a", b"foreign")
    with pytest.raises(Conflict):
        content(destination, stored)
    destination.remove(destination.stat("a"))
    with pytest.raises(TransferError, match="gone"):
        content(destination, stored)


def test_a_dead_upload_is_abandoned_by_its_token(place: Place) -> None:
    upload = place.make().begin(Put("a/b", 4 * PART))
    upload.write(bytes_of(2 * PART + 1))
    token = upload.resume_token
    assert token
    assert place.everything() != []
    successor = place.make()
    successor.abandon(token)
    successor.abandon(token)
    successor.abandon("nonsense")
    assert [name for name in place.everything() if "part" in name or "a/b" in name] == []
    upload.abort()
    assert [name for name in place.everything() if name != "a"] == []


def test_check_tries_everything_and_leaves_nothing(place: Place) -> None:
    facts = place.make().check()
    assert any("read them back" in fact for fact in facts)
    assert place.everything() == []


def test_metadata_is_first_only_where_it_has_to_be(place: Place) -> None:
    destination = place.make()
    assert not destination.metadata_first(0)
    assert not destination.metadata_first(PART)
    assert destination.metadata_first(PART + 1) == isinstance(place, S3Place)


def test_memory_is_bounded(place: Place) -> None:
    destination = place.make()
    assert destination.memory_needed(1000) <= 1 << 20
    assert destination.memory_needed(1 << 40) <= 1 << 30
