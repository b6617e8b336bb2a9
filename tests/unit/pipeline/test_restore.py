"""I6, X2, X3: what comes back is what was recorded, where it belongs, over nothing, and led astray by no name."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quaymaster.destinations import disk
from quaymaster.destinations.owner import own_tag
from quaymaster.errors import Unreachable
from quaymaster.keys import escape
from quaymaster.model import Compression, Identity
from quaymaster.pipeline import landing, recall, restore
from quaymaster.pipeline.landing import Ground
from quaymaster.pipeline.recall import Origin, Spot
from quaymaster.pipeline.restore import Outcome, Restore, Restored
from quaymaster.store import Selection

ODD_NAMES = [
    b"\xff\xfe",
    b"a\nb",
    b"n" * 255,
    b"%41",
    b"back\\slash",
    b"\x01",
    "\N{SNOWMAN}".encode(),
    b"sp ace ",
    b"~2",
]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "_WAIT", 0.001)


class Target:
    """A directory that is restored to, as the command does it."""

    def __init__(self, archive, folder: Path) -> None:
        self.archive = archive
        self.path = folder / "to"
        self.path.mkdir()
        self.told: list[str] = []

    def ground(self) -> Ground:
        return Ground(str(self.path))

    def restore(self, finds: Iterable[restore.Find], *, dry_run: bool = False, workers: int = 3) -> list[Restored]:
        def record(came: Iterable[Restored]) -> None:
            self.told += [f"{r.wanted.path!r} {r.source.destination} {r.job}" for r in came if r.source]

        work = Restore(self.archive.of, lambda these: [7] * len(these), record, dry_run, workers)
        with closing(work.run(finds)) as results:
            return list(results)

    def recorded(self, which: Selection = Selection(), **options) -> list[Restored]:
        ground = self.ground()
        return self.restore(
            recall.from_ledger(self.archive.store, which, lambda _, path: Spot(ground, path)), **options
        )

    def found(self, prefix: str = "", origins: Iterable[Origin] = ()) -> list[Restored]:
        """Without a ledger, from the bucket."""
        ground = self.ground()
        finds = recall.from_destination(
            self.archive.bucket, prefix, tuple(origins), lambda watch, path, whole: Spot(ground, path or whole)
        )
        return self.restore(finds)

    def files(self) -> dict[bytes, bytes]:
        root = os.fsencode(self.path)
        found = {}
        for folder, _, names in os.walk(root):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    found[os.path.relpath(os.path.join(folder, name), root)] = file.read()
        return found


@pytest.fixture
def target(archive, tmp_path: Path) -> Target:
    return Target(archive, tmp_path)


def outcomes(results: Iterable[Restored]) -> dict[bytes, str]:
    return {result.wanted.path: result.outcome.value for result in results}


# -- from the ledger --


@pytest.mark.parametrize("name", ["nas", "bucket"])
@pytest.mark.parametrize("compression", list(Compression))
def test_every_name_content_time_and_mode_comes_back(archive, target, name: str, compression: Compression) -> None:
    expected = {}
    for number, odd in enumerate(ODD_NAMES):
        path = b"dir/" + odd[: 255 - len(compression.suffix)]
        expected[path] = b"ACGT" * number * 1000
        archive.deliver(path, expected[path], compression, to=name, mtime_ns=10**18 + number, mode=0o600 + number % 8)
    results = target.recorded()
    assert set(outcomes(results).values()) == {"restored"}
    assert target.files() == expected
    for number, path in enumerate(expected):
        status = os.stat(os.path.join(os.fsencode(target.path), path))
        assert (status.st_mtime_ns, stat.S_IMODE(status.st_mode)) == (10**18 + number, 0o600 + number % 8)
    assert len(target.told) == len(expected)


def test_the_same_command_again_goes_on_where_it_stopped(archive, target) -> None:
    for number in range(5):
        archive.deliver(b"d/f%d" % number, b"%d" % number)
    target.recorded(Selection(paths=(("landing", b"d/f3"),)))
    before = os.stat(target.path / "d/f3")
    assert sorted(outcomes(target.recorded()).values()) == ["restored"] * 4 + ["there"]
    after = os.stat(target.path / "d/f3")
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)
    assert set(outcomes(target.recorded()).values()) == {"there"}


def test_what_is_there_is_never_overwritten(archive, target) -> None:
    archive.deliver(b"a", b"one")
    archive.deliver(b"b", b"two")
    archive.deliver(b"c", b"three")
    (target.path / "a").write_bytes(b"own")
    (target.path / "b").symlink_to("/etc/passwd")
    (target.path / "c").mkdir()
    assert outcomes(target.recorded()) == {b"a": "conflict", b"b": "conflict", b"c": "conflict"}
    assert (target.path / "a").read_bytes() == b"own"
    assert (target.path / "b").is_symlink()


def test_a_name_taken_at_the_last_moment_is_a_conflict(archive, target, monkeypatch) -> None:
    archive.deliver(b"a", b"one")
    publish = disk.publish_name

    def race(directory: int, part: bytes, leaf: bytes) -> str:
        (target.path / "a").write_bytes(b"faster")
        return publish(directory, part, leaf)

    monkeypatch.setattr(disk, "publish_name", race)
    assert outcomes(target.recorded()) == {b"a": "conflict"}
    assert target.files() == {b"a": b"faster"}


@pytest.mark.parametrize("depth", [b"link/x", b"real/link/x"])
def test_nothing_is_written_through_a_link_in_any_component(archive, target, tmp_path, depth: bytes) -> None:
    archive.deliver(depth, b"secret")
    outside = tmp_path / "outside"
    outside.mkdir()
    (target.path / "real").mkdir()
    (target.path / "link").symlink_to(outside)
    (target.path / "real/link").symlink_to(outside)
    (result,) = target.recorded()
    assert result.outcome in (Outcome.CONFLICT, Outcome.REFUSED)
    assert not list(outside.iterdir())


def test_damaged_bytes_never_get_a_name(archive, target, flip) -> None:
    archive.deliver(b"plain", b"ACGT" * 100)
    archive.deliver(b"packed", b"ACGT" * 1000, Compression.ZSTD)
    flip(archive.path / "plain")
    flip(archive.path / "packed.zst")
    results = target.recorded()
    assert outcomes(results) == {b"plain": "damaged", b"packed": "damaged"}
    assert all(result.damaged for result in results)
    assert target.files() == {}


def test_another_destination_helps_out_and_the_damage_is_told(archive, target, flip) -> None:
    archive.deliver(b"a", b"ACGT" * 100, to=("bucket", "nas"))
    flip(archive.path / "a")
    (result,) = target.recorded()
    assert (result.outcome, result.source.destination) == (Outcome.RESTORED, "bucket")
    assert "at nas" in result.damaged[0]


def test_a_missing_copy_is_damage_and_an_unreachable_one_is_not(archive, target) -> None:
    archive.deliver(b"a")
    (archive.path / "a").unlink()
    archive.deliver(b"b", to="bucket")
    archive.bucket.fail = lambda what, key: Unreachable("nobody answers")
    results = target.recorded()
    assert outcomes(results) == {b"a": "damaged", b"b": "failed"}
    assert "not there any more" in next(r.damaged[0] for r in results if r.damaged)


def test_a_server_that_stumbles_is_asked_again(archive, target) -> None:
    archive.deliver(b"a", to="bucket")
    left = [Unreachable("once"), Unreachable("twice")]
    archive.bucket.fail = lambda what, key: left.pop() if what == "read" and left else None
    assert outcomes(target.recorded()) == {b"a": "restored"}


# -- at a time --


def test_the_version_that_was_current_then_comes_back(archive, target) -> None:
    archive.deliver(b"a", b"one", key="a", mtime_ns=1)
    then = archive.now
    archive.deliver(b"a", b"two", key="a~2", mtime_ns=2)
    archive.deliver(b"new", b"later")
    assert outcomes(target.recorded(Selection(until=then + 1))) == {b"a": "restored"}
    assert target.files() == {b"a": b"one"}
    (target.path / "a").unlink()
    target.recorded()
    assert target.files() == {b"a": b"two", b"new": b"later"}


def test_a_replaced_version_comes_back_where_versions_are_kept(archive, target) -> None:
    archive.deliver(b"a", b"one", to="bucket", version_id="v1", mtime_ns=1)
    then = archive.now
    archive.deliver(b"a", b"two", to="bucket", version_id="v2", mtime_ns=2)
    target.recorded(Selection(until=then))
    assert target.files() == {b"a": b"one"}


def test_a_replaced_version_that_nobody_kept_is_never_another_one(archive, target) -> None:
    archive.deliver(b"a", b"one", mtime_ns=1)
    then = archive.now
    archive.deliver(b"a", b"two", mtime_ns=2)
    (result,) = target.recorded(Selection(until=then))
    assert result.outcome is Outcome.FAILED
    assert "keeps no older ones" in result.text
    assert target.files() == {}


def test_a_slow_destination_does_not_make_an_old_version_the_newest(archive, target) -> None:
    first = archive.deliver(b"a", b"one", to="bucket", key="a", mtime_ns=1)
    archive.deliver(b"a", b"two", key="a", mtime_ns=2)
    late = replace(first.proof, destination="nas", delivered_at=archive.now + 500)
    archive.store.deliver(replace(late, stored=replace(late.stored, key="a-late")))
    target.recorded()
    assert target.files() == {b"a": b"two"}


def test_a_prefix_of_keys_selects(archive, target) -> None:
    archive.deliver(b"x", key="raw/x")
    archive.deliver(b"y", key="ra%w/y")
    assert outcomes(target.recorded(Selection(prefix="raw/"))) == {b"x": "restored"}


# -- by what the bucket alone tells --


def test_a_bucket_tells_all_that_is_needed(archive, target) -> None:
    expected = {}
    for odd in ODD_NAMES:
        for compression in Compression:
            path = compression.value.encode() + b"/" + odd
            expected[path] = odd * 500
            key = "landing/" + escape(path) + compression.suffix
            archive.deliver(path, expected[path], compression, to="bucket", key=key, mtime_ns=10**18)
    archive.deliver(b"named.gz", b"a name is no proof", to="bucket", key="landing/named.gz")
    expected[b"named.gz"] = b"a name is no proof"
    results = target.found(origins=[Origin("landing", "{watch}/{path}", "here")])
    fitting = {path: content for path, content in expected.items() if len(path) < 255}
    assert target.files() == expected
    assert fitting
    assert {result.wanted.watch for result in results} == {"landing"}
    assert os.stat(os.path.join(os.fsencode(target.path), b"zstd/~2")).st_mtime_ns == 10**18


HOSTILE = [
    "../x", "a/../../x", "/abs", "a//b", ".", "..", "a/./b", "%2E%2E/x", "a%00b", "", "x/", ".qm-x.part", "n" * 300,
    "a/" + "n" * 256 + "/b", ".quaymaster-own", "%2e%2e/%2e%2e/x", "d/" * 3000 + "x", "a/.qm-1-2-3-restore-00.part",
]  # fmt: skip


def test_hostile_keys_are_refused_one_by_one(archive, target, tmp_path) -> None:
    for key in HOSTILE:
        archive.bucket.put(key, b"evil")
    archive.bucket.put("good", b"good")
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(target.path)}
    results = target.found()
    assert len(results) == len(HOSTILE) + 1
    bad = [result for result in results if result.outcome is not Outcome.RESTORED]
    assert {result.outcome for result in bad} == {Outcome.REFUSED}
    assert all(result.text for result in bad)
    assert target.files() == {b"good": b"good"}
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(target.path)} == before


def test_of_two_keys_for_one_path_the_newer_is_restored(archive, target) -> None:
    archive.deliver(b"a", b"old", to="bucket", key="a", version_id="1")
    archive.deliver(b"a", b"new" * 900, Compression.ZSTD, to="bucket", key="a.zst", version_id="2")
    archive.bucket.put("%61", b"other spelling")
    results = target.found()
    assert sorted(result.outcome.value for result in results) == ["refused", "refused", "restored"]
    assert len(target.files()) == 1


def test_metadata_that_claims_more_is_an_integrity_failure(archive, target) -> None:
    archive.deliver(b"bomb", b"\0" * 100_000, Compression.ZSTD, to="bucket", key="bomb.zst")
    stored, content = archive.bucket.objects["bomb.zst"]
    for claim in ("99999", "100001", "10"):
        changed = replace(stored, metadata={**stored.metadata, "quaymaster-size": claim})
        archive.bucket.objects["bomb.zst"] = changed, content
        (result,) = target.found()
        assert result.outcome is Outcome.DAMAGED, claim
    huge = replace(stored, metadata={**stored.metadata, "quaymaster-size": str(1 << 62)})
    archive.bucket.objects["bomb.zst"] = huge, content
    (result,) = target.found()
    assert "no room" in result.text
    assert target.files() == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("size", "-1"), ("size", "x"), ("sha256", "zz"), ("compression", "lzma"), ("mtime", str(1 << 70)), ("mtime", "")],
)
def test_metadata_that_makes_no_sense_is_refused(archive, target, name: str, value: str) -> None:
    archive.deliver(b"a", to="bucket")
    stored, content = archive.bucket.objects["a"]
    archive.bucket.objects["a"] = replace(stored, metadata={**stored.metadata, f"quaymaster-{name}": value}), content
    assert [result.outcome for result in target.found()] == [Outcome.REFUSED]


def test_an_object_without_a_record_comes_as_it_is(archive, target) -> None:
    archive.bucket.put("a.zst", b"not touched")
    (result,) = target.found()
    assert (result.outcome, result.wanted.sha256) == (Outcome.RESTORED, "")
    assert target.files() == {b"a.zst": b"not touched"}
    assert [r.outcome for r in target.found()] == [Outcome.THERE]


_names = st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_no_key_leads_out_of_the_directory(archive, tmp_path_factory, key: str) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    target = Target(archive, folder)
    archive.bucket.objects.clear()
    archive.bucket.put(key, b"x")
    (result,) = target.found()
    assert [path.name for path in folder.iterdir()] == ["to"]
    if result.outcome is Outcome.RESTORED:
        assert list(target.files().values()) == [b"x"]
    else:
        assert not target.files()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_names, min_size=1, max_size=4), st.sampled_from(list(Compression)))
def test_every_path_is_found_again_by_its_key(archive, tmp_path_factory, parts: list[bytes], form: Compression) -> None:
    if any(part in (b".", b"..") for part in parts) or parts[-1].startswith((b".qm-", b".quaymaster-")):
        return
    target = Target(archive, tmp_path_factory.mktemp("fuzz"))
    archive.bucket.objects.clear()
    path = b"/".join(parts)
    archive.deliver(path, b"content" * 50, form, to="bucket", key="landing/" + escape(path) + form.suffix)
    target.found(origins=[Origin("landing", "{watch}/{path}", "here")])
    assert target.files() == {path: b"content" * 50}


# -- what is left behind --


def test_what_dead_runs_left_is_removed_and_nothing_else(archive, target) -> None:
    archive.deliver(b"d/a", b"one")
    (target.path / "d").mkdir()
    host, pid, _ = own_tag().split("-")
    dead, alive = f".qm-{host}-{pid}-1-restore-00ff.part", f".qm-{own_tag()}-restore-00ff.part"
    others = [alive, f".qm-{host}-{pid}-1-00ff.part", "x.part", f".qm-00000000-{pid}-1-restore-00ff.part"]
    for name in (dead, *others):
        (target.path / "d" / name).write_bytes(b"")
    target.recorded()
    assert sorted(os.listdir(target.path / "d")) == sorted([*others, "a"])


def test_giving_up_removes_what_is_on_its_way(archive, target) -> None:
    for number in range(6):
        archive.deliver(b"f%d" % number, b"x" * 3000, to="bucket")
    ground = target.ground()
    work = Restore(archive.of, lambda these: [0] * len(these), lambda *_: None, False, 2)
    reading = threading.Event()

    def fail(what: str, key: str) -> None:
        if what == "read" and key > "f0":
            reading.set()
            work._end.wait(10)  # in the middle of a file, when the run is given up

    archive.bucket.fail = fail
    results = work.run(recall.from_ledger(archive.store, Selection(), lambda _, path: Spot(ground, path)))
    assert next(results).wanted.path == b"f0"
    assert reading.wait(10)
    results.close()
    assert os.listdir(target.path) == ["f0"]


def test_a_dry_run_touches_nothing(archive, target, flip) -> None:
    archive.deliver(b"d/a", b"one")
    archive.deliver(b"b", b"two")
    archive.deliver(b"c", b"three")
    (archive.path / "c").unlink()
    (target.path / "b").write_bytes(b"other")
    assert outcomes(target.recorded(dry_run=True)) == {b"d/a": "restored", b"b": "conflict", b"c": "damaged"}
    assert target.files() == {b"b": b"other"}
    assert not (target.path / "d").exists()
    assert target.told == []


def test_a_restored_version_is_known_and_not_taken_again(archive) -> None:
    delivery = archive.deliver(b"a", b"one")
    back = Identity(424242, 3, delivery.proof.version.identity.mtime_ns)
    assert archive.store.known("landing", [(b"a", back)]) == [False]
    (job,) = archive.store.expect([replace(delivery.proof.version, identity=back)])
    archive.store.restored([("landing", b"a", job, {"key": "a"})])
    assert archive.store.known("landing", [(b"a", back)]) == [True]
    assert archive.store.enqueue([replace(delivery.proof.version, identity=back)]) == 0
    assert [(e["job"], e["key"]) for e in archive.custody("restored")] == [(job, "a")]


def test_a_filesystem_that_does_not_tell_cases_apart_gets_no_second_file(archive, target, monkeypatch) -> None:
    """As such a filesystem answers: a name in other letters leads to the file that is there."""
    archive.deliver(b"Reads", b"one")
    archive.deliver(b"reads", b"one")
    real_stat = os.stat

    def folded(name, *, dir_fd=None, **options):
        if dir_fd is not None:
            name = next(
                (n for n in map(os.fsencode, os.listdir(dir_fd)) if n.lower() == os.fsencode(name).lower()), name
            )
        return real_stat(name, dir_fd=dir_fd, **options)

    def publish(directory: int, part: bytes, leaf: bytes) -> str:
        if leaf.lower() in [os.fsencode(name).lower() for name in os.listdir(directory)]:
            raise FileExistsError(leaf)
        return real_publish(directory, part, leaf)

    real_publish = disk.publish_name
    monkeypatch.setattr(os, "stat", folded)
    monkeypatch.setattr(disk, "publish_name", publish)
    results = target.recorded(workers=1)
    assert sorted(outcomes(results).values()) == ["refused", "restored"]
    assert "upper and lower case" in next(r.text for r in results if r.outcome is Outcome.REFUSED)


def test_an_object_that_is_as_recorded_takes_one_request_and_another_with_the_same_bytes_will_do(
    archive, target
) -> None:
    archive.deliver(b"a", b"one", to="bucket")
    archive.deliver(b"b", b"two", to="bucket")
    content = archive.bucket.objects["b"][1]
    archive.bucket.put("b", content, metadata={"quaymaster-mode": "0600"})
    stored, content = archive.bucket.objects["b"]
    archive.bucket.objects["b"] = replace(stored, etag="labelled-anew"), content
    archive.bucket.asked.clear()
    assert outcomes(target.recorded(workers=1)) == {b"a": "restored", b"b": "restored"}
    assert archive.bucket.asked == ["read a", "read b", "stat b", "read b"]
    assert target.files() == {b"a": b"one", b"b": b"two"}


def test_what_is_restored_is_recorded_before_anybody_is_told(archive, target) -> None:
    for number in range(20):
        archive.deliver(b"f%d" % number, b"x", to="bucket")
    ground = target.ground()
    recorded: list[bytes] = []
    work = Restore(
        archive.of, lambda these: [0] * len(these), lambda came: recorded.extend(r.wanted.path for r in came)
    )
    for result in work.run(recall.from_ledger(archive.store, Selection(), lambda _, path: Spot(ground, path))):
        assert result.wanted.path in recorded
    assert sorted(recorded) == sorted(b"f%d" % number for number in range(20))


def test_what_waits_together_is_made_durable_before_any_of_it_has_its_name(archive, target, monkeypatch) -> None:
    """Bytes of all, then what the ledger is told, then the names, and each directory once."""
    for number in range(6):
        archive.deliver(b"d%d/f%d" % (number % 2, number), b"x" * number, to="bucket")
    ground, done = target.ground(), []
    monkeypatch.setattr(landing.Landing, "harden", noting(done, "bytes", landing.Landing.harden))
    monkeypatch.setattr(landing.Landing, "publish", noting(done, "name", landing.Landing.publish))
    monkeypatch.setattr(landing.Landing, "sync_folder", noting(done, "folder", landing.Landing.sync_folder))

    def expect(these: Sequence[tuple[restore.Wanted, Identity]]) -> list[int]:
        done.append("told")
        return [0] * len(these)

    work = Restore(archive.of, expect, lambda _: None, workers=1, company=60.0)
    results = work.run(recall.from_ledger(archive.store, Selection(), lambda _, path: Spot(ground, path)))
    assert {result.outcome for result in results} == {Outcome.RESTORED}
    assert done == ["bytes"] * 6 + ["told"] + ["name"] * 6 + ["folder"] * 2


def noting(done: list[str], what: str, act: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        done.append(what)
        return act(*arguments)

    return noted


@pytest.mark.parametrize("step", ["harden", "sync_folder"])
def test_a_disk_that_fails_for_one_of_several_costs_the_others_nothing(archive, target, monkeypatch, step) -> None:
    """The one is brought again; what its name was given to already is found there."""
    for number in range(4):
        archive.deliver(b"d%d/f" % number, b"x%d" % number, to="bucket")
    act, failures = getattr(landing.Landing, step), ["once"]

    def fail(self: landing.Landing) -> Any:
        if b"d1/" in self._path and failures:
            failures.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return act(self)

    monkeypatch.setattr(landing.Landing, step, fail)
    ends = outcomes(target.recorded(workers=2))
    assert ends.pop(b"d1/f") == ("restored" if step == "harden" else "there")
    assert set(ends.values()) == {"restored"}
    assert target.files() == {b"d%d/f" % number: b"x%d" % number for number in range(4)}
