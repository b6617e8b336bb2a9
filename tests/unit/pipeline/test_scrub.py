"""I7: a copy that is not what it was is found at the level that can find it, and nothing else is called a failure."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from quaymaster.destinations.directory import Directory
from quaymaster.errors import PermissionDenied, Unreachable
from quaymaster.model import Compression, FileVersion, Identity
from quaymaster.pipeline import scrub
from quaymaster.pipeline.scrub import Depth, Fault, Scrub, Summary
from quaymaster.store import Selection

LISTING, CHECKSUM, READBACK = Depth.LISTING, Depth.CHECKSUM, Depth.READBACK


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "_WAIT", 0.001)


def run(archive, depth: Depth, **options: Any) -> tuple[Summary, list[Fault]]:
    archive.now += 60
    faults: list[Fault] = []
    return Scrub(archive.store, archive, depth, tell=faults.append, clock=lambda: archive.now, **options).run(), faults


def whats(faults: list[Fault]) -> dict[str, str]:
    return {fault.copy.delivery.proof.stored.key: fault.what for fault in faults}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", list(Depth))
def test_what_is_intact_is_good_at_every_level(archive, depth: Depth, workers: int) -> None:
    archive.deliver(b"a", to=("nas", "bucket"))
    archive.deliver(b"dir/b", b"ACGT" * 1000, Compression.ZSTD, to=("nas", "bucket"))
    archive.deliver(b"\xff\n", b"", to=("nas", "bucket"))
    archive.deliver(b"c", b"T" * 5000, Compression.GZIP, to=("nas", "bucket"))
    summary, faults = run(archive, depth, workers=workers)
    assert (summary.copies, summary.good, faults) == (8, 8, [])
    assert not summary.failed
    assert summary.read == (8 if depth is READBACK else 0)
    assert archive.store.copies(Selection())[0].level == depth.value
    assert archive.custody("verified")[-1]["good"] == 8


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("name", ["nas", "bucket"])
def test_missing_truncated_and_replaced_copies_are_found_at_every_level(archive, depth: Depth, name: str) -> None:
    for path in (b"gone", b"cut", b"other", b"fine"):
        archive.deliver(path, to=name)
    if name == "nas":
        (archive.path / "gone").unlink()
        os.truncate(archive.path / "cut", 7)
        (archive.path / "other").write_bytes(b"TGCA" * 100)
    else:
        del archive.bucket.objects["gone"]
        archive.bucket.put("cut", b"ACG")
        archive.bucket.put("other", b"TGCA" * 100)
    summary, faults = run(archive, depth)
    assert whats(faults) == {"gone": "missing", "cut": "changed", "other": "changed"}
    assert (summary.good, summary.missing, summary.changed, summary.damaged) == (1, 1, 2, 0)
    assert "instead of 400" in next(f.text for f in faults if f.copy.delivery.proof.stored.key == "cut")
    (entry,) = [e for e in archive.custody("integrity-failure") if e["key"] == "gone"]
    assert (entry["watch"], entry["path"], entry["job"], entry["what"]) == ("landing", "gone", 1, "missing")


def test_a_flipped_bit_is_found_by_reading_back_alone(archive, flip) -> None:
    archive.deliver(b"a", b"ACGT" * 1000, Compression.ZSTD)
    archive.deliver(b"b")
    delivered = archive.now
    flip(archive.path / "a.zst")
    flip(archive.path / "b")
    for depth in (LISTING, CHECKSUM):
        assert run(archive, depth)[1] == []
    summary, faults = run(archive, READBACK)
    assert whats(faults) == {"a.zst": "damaged", "b": "damaged"}
    assert (summary.good, summary.damaged) == (0, 2)
    # Labels that were right do not mean that the bytes were.
    assert [fault.good_at for fault in faults] == [delivered - 60, delivered]


def test_a_copy_that_expands_to_another_source_is_damaged(archive) -> None:
    delivery = archive.deliver(b"a", b"ACGT" * 1000, Compression.ZSTD)
    proof = replace(delivery.proof, source=replace(delivery.proof.source, sha256="00" * 32))
    archive.store.deliver(proof)
    _, (fault,) = run(archive, READBACK)
    assert fault.what == "damaged"
    assert "it expands to SHA-256" in fault.text


def test_stored_bytes_that_differ_are_damaged_even_if_they_expand_to_the_source(archive) -> None:
    delivery = archive.deliver(b"a", b"ACGT" * 1000, Compression.ZSTD)
    archive.store.deliver(
        replace(delivery.proof, stored_digests=replace(delivery.proof.stored_digests, sha256="0" * 64))
    )
    _, (fault,) = run(archive, READBACK)
    assert "its bytes have SHA-256" in fault.text


def test_a_checksum_that_the_server_tells_otherwise_is_found(archive) -> None:
    archive.deliver(b"a", to="bucket")
    stored, _ = archive.bucket.objects["a"]
    rotten = b"ACGA" * 100
    archive.bucket.objects["a"] = (replace(stored, checksum=archive.bucket.put("x", rotten).checksum), rotten)
    assert run(archive, LISTING)[1] == []
    assert whats(run(archive, CHECKSUM)[1]) == {"a": "changed"}


def test_another_label_on_the_same_bytes_is_no_failure(archive) -> None:
    archive.deliver(b"a")
    os.rename(archive.path / "a", archive.path / "old")
    (archive.path / "a").write_bytes((archive.path / "old").read_bytes())  # restored by somebody from a backup
    (archive.path / "old").unlink()
    summary, faults = run(archive, LISTING)
    assert (summary.good, summary.read, faults) == (1, 1, [])


def test_without_the_budget_to_look_another_label_is_a_failure(archive) -> None:
    archive.deliver(b"a")
    os.utime(archive.path / "a")
    _, (fault,) = run(archive, CHECKSUM, budget=10)
    assert fault.what == "changed"
    assert "not read" in fault.text


def test_metadata_of_another_source_is_found(archive) -> None:
    archive.deliver(b"a", to="bucket")
    stored, content = archive.bucket.objects["a"]
    archive.bucket.objects["a"] = replace(stored, metadata={"quaymaster-sha256": "11" * 32}), content
    assert whats(run(archive, CHECKSUM)[1]) == {"a": "changed"}


def test_repeated_runs_with_a_budget_go_round_everything(archive, flip) -> None:
    for number in range(7):
        archive.deliver(b"f%d" % number)  # 400 bytes each
    flip(archive.path / "f5")
    read, found = [], []
    for _ in range(4):
        summary, faults = run(archive, READBACK, budget=900)
        read.append((summary.read, summary.read_bytes, summary.unread))
        found += faults
    assert read[:3] == [(2, 800, 5)] * 3
    assert whats(found) == {"f5": "damaged"}
    times = {copy.delivery.proof.stored.key: copy.read_at for copy in archive.store.copies(Selection())}
    assert all(times.values())
    assert times["f6"] > times["f2"]  # after the last of all it began with the first again


def test_a_file_larger_than_the_budget_has_its_turn(archive) -> None:
    archive.deliver(b"small", b"x")
    archive.deliver(b"large", b"y" * 5000)
    assert [run(archive, READBACK, budget=100)[0].read_bytes for _ in range(3)] == [1, 5000, 1]


def test_the_budget_is_shared_by_all_destinations_in_turn(archive) -> None:
    archive.deliver(b"a", to=("nas", "bucket"))
    assert [run(archive, READBACK, budget=400)[0].read for _ in range(2)] == [1, 1]
    assert all(copy.read_at for copy in archive.store.copies(Selection()))


@pytest.mark.parametrize("depth", list(Depth))
def test_a_destination_that_gives_no_answer_has_nothing_missing(archive, depth: Depth) -> None:
    archive.deliver(b"a", to=("nas", "bucket"))
    archive.bucket.fail = lambda what, key: Unreachable("nobody answers")
    summary, faults = run(archive, depth)
    assert (summary.good, summary.unanswered, faults) == (1, 1, [])
    assert summary.unreachable == {"bucket": "nobody answers"}
    assert summary.failed
    assert archive.custody("integrity-failure") == []


def test_a_listing_that_breaks_off_says_nothing(archive) -> None:
    for number in range(3):
        archive.deliver(b"f%d" % number, to="bucket")
    archive.bucket.fail = lambda what, key: Unreachable("cut off") if (what, key) == ("list", "f1") else None
    summary, faults = run(archive, LISTING)
    assert (faults, summary.unanswered) == ([], 3)
    assert "bucket" in summary.unreachable


def test_a_destination_that_goes_away_midway_is_not_asked_for_everything(archive) -> None:
    for number in range(50):
        archive.deliver(b"f%02d" % number, to="bucket")
    asked = []
    archive.bucket.fail = lambda what, key: (
        asked.append(key) or Unreachable("gone") if key > "f10" and what == "stat" else None
    )
    summary, faults = run(archive, CHECKSUM)
    assert (summary.good, summary.unanswered, faults) == (11, 39, [])
    assert len(asked) <= 5


def test_one_object_that_cannot_be_read_keeps_none_of_the_others_from_it(archive) -> None:
    for number in range(3):
        archive.deliver(b"f%d" % number, to="bucket")
    archive.bucket.fail = lambda what, key: Unreachable("input/output error") if (what, key) == ("read", "f1") else None
    summary, faults = run(archive, READBACK)
    assert (summary.good, summary.unanswered, summary.read, faults) == (2, 1, 3, [])
    archive.bucket.fail = lambda what, key: PermissionDenied("no") if (what, key) == ("stat", "f1") else None
    summary, faults = run(archive, CHECKSUM)
    assert (summary.good, summary.unanswered, faults) == (2, 1, [])
    assert summary.failed


def test_a_directory_that_is_not_there_is_no_loss(archive) -> None:
    archive.deliver(b"a")
    os.rename(archive.path, f"{archive.path}.away")
    for depth in Depth:
        summary, faults = run(archive, depth)
        assert (faults, list(summary.unreachable)) == ([], ["nas"])


def test_a_copy_being_replaced_at_this_moment_is_left_for_the_next_run(archive) -> None:
    archive.deliver(b"a")
    archive.store.enqueue([FileVersion("landing", b"a", Identity(7, 9, 9))])
    archive.store.claim(1)
    (archive.path / "a").write_bytes(b"the newer version, not recorded yet")
    summary, faults = run(archive, CHECKSUM)
    assert (summary.moving, faults) == (1, [])


def test_objects_that_nobody_knows_are_counted_and_no_failure(archive) -> None:
    archive.deliver(b"a")
    (archive.path / "foreign").write_bytes(b"x")
    summary, faults = run(archive, CHECKSUM)
    assert (summary.unknown, summary.good, faults) == (1, 1, [])
    assert not summary.failed


def test_a_selection_looks_at_nothing_else(archive) -> None:
    archive.deliver(b"run1/a", to=("nas", "bucket"))
    archive.deliver(b"run1/b", to=("nas", "bucket"))
    archive.deliver(b"run10/c", to=("nas", "bucket"))
    which = Selection(paths=(("landing", b"run1"),), destination="bucket")
    summary, _ = run(archive, CHECKSUM, which=which)
    assert (summary.copies, summary.good) == (2, 2)
    assert sorted(archive.bucket.asked) == ["stat run1/a", "stat run1/b"]


def test_copies_at_a_destination_that_is_configured_no_more_are_counted_apart(archive) -> None:
    archive.deliver(b"a", to=("nas", "bucket"))
    del archive.configured["bucket"]
    summary, faults = run(archive, CHECKSUM)
    assert (summary.good, summary.unconfigured, faults) == (1, 1, [])
    assert not summary.failed


def test_a_run_that_is_stopped_keeps_what_it_found(archive) -> None:
    for number in range(20):
        archive.deliver(b"f%02d" % number, to="bucket")
    del archive.configured["nas"]
    summary, _ = run(archive, READBACK, cancelled=lambda: "read f05" in archive.bucket.asked)
    assert not summary.complete
    assert summary.failed
    assert archive.custody("verified")[-1]["complete"] is False
    assert sum(copy.read_at is not None for copy in archive.store.copies(Selection())) == 5


def test_a_file_in_place_of_a_copy_that_is_no_file_is_changed(archive) -> None:
    archive.deliver(b"a")
    (archive.path / "a").unlink()
    (archive.path / "a").mkdir()
    assert whats(run(archive, LISTING)[1]) == {"a": "changed"}


def test_an_anchor_that_refuses_is_an_outage(archive) -> None:
    def anchor(_: int | None) -> None:
        raise Unreachable("the share is not mounted")

    archive.deliver(b"a")
    (archive.path / "a").unlink()
    archive.configured["nas"] = Directory("nas", str(archive.path), emit=lambda _: None, anchor=anchor)
    for depth in Depth:
        summary, faults = run(archive, depth)
        assert (faults, summary.unreachable) == ([], {"nas": "the share is not mounted"})
