"""The directory destination on filesystems that lack something, fill up, fail or hold traps."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from contract.places import DirectoryPlace, bytes_of, content, deliver, digests_of, race
from quaymaster.destinations import disk
from quaymaster.destinations.base import Put
from quaymaster.destinations.directory import Directory
from quaymaster.destinations.owner import own_tag
from quaymaster.errors import (
    Conflict,
    DestinationMissing,
    IntegrityError,
    NameRefused,
    OutOfSpace,
    PermissionDenied,
    Unreachable,
)

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def place(ext4: DirectoryPlace) -> DirectoryPlace:
    return ext4


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Mounts on directories of the test's own, taken away at its end."""
    points: list[str] = []

    def mount(*options: str) -> str:
        point = str(tmp_path / f"mount{len(points)}")
        os.mkdir(point)
        done = subprocess.run(["mount", *options, point], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mount {' '.join(options)}: {done.stderr.strip()}")
        points.append(point)
        return point

    yield mount
    for point in points:
        subprocess.run(["umount", point], check=True)


def fails_with(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


# What a reader finds


def test_mode_and_mtime_are_the_sources(place: DirectoryPlace) -> None:
    deliver(place.make(), "run/a", b"x", mtime_ns=1_600_000_000_123_456_789, mode=0o100640)
    status = os.stat(os.path.join(place.path, "run/a"))
    assert (status.st_mtime_ns, status.st_mode & 0o7777, status.st_nlink) == (1_600_000_000_123_456_789, 0o640, 1)


def test_set_user_id_bits_do_not_travel(place: DirectoryPlace) -> None:
    deliver(place.make(), "a", b"x", mode=0o106755)
    assert os.stat(os.path.join(place.path, "a")).st_mode & 0o7777 == 0o755


def test_a_part_is_private_until_it_is_published(place: DirectoryPlace) -> None:
    upload = place.make().begin(Put("a", 1, mode=0o644))
    (part,) = os.listdir(place.path)
    assert part.startswith(".qm-")
    assert part.endswith(".part")
    assert os.stat(os.path.join(place.path, part)).st_mode & 0o777 == 0o600
    upload.abort()


# Filesystems without hard links


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS])
@pytest.mark.parametrize("way", ["rename", "claim"])
def test_without_hard_links_nothing_is_overwritten_either(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch, code: int, way: str
) -> None:
    monkeypatch.setattr(os, "link", fails_with(code))
    if way == "claim":
        monkeypatch.setattr(disk, "_renameat2", lambda *_: False)
    destination = place.make()
    stored = deliver(destination, "run/a", b"first")
    assert content(destination, stored) == b"first"
    assert deliver(destination, "run/a", b"first").etag == stored.etag
    with pytest.raises(Conflict):
        deliver(destination, "run/a", b"other")
    assert content(destination, stored) == b"first"
    new = deliver(destination, "run/a", b"second", replace=stored)
    assert content(destination, new) == b"second"
    assert place.everything() == ["run/a"]
    assert any(("RENAME_NOREPLACE: never" if way == "rename" else "neither") in fact for fact in destination.check())


@pytest.mark.parametrize("way", ["rename", "claim"])
def test_without_hard_links_one_of_24_wins(place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(os, "link", fails_with(errno.EPERM))
    if way == "claim":
        monkeypatch.setattr(disk, "_renameat2", lambda *_: False)
    destination = place.make()
    results = race(24, lambda n: deliver(destination, "a", b"%04d" % n))
    winners = [number for number, result in enumerate(results) if not isinstance(result, Exception)]
    assert len(winners) == 1, results
    # With claims a loser may be told to come again (Unreachable); then it meets the winner's file.
    assert {type(result) for number, result in enumerate(results) if number not in winners} <= {Conflict, Unreachable}
    assert content(destination, destination.stat("a")) == b"%04d" % winners[0]
    assert place.everything() == ["a"]


def test_a_claim_left_by_a_dead_writer_is_named(place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fails_with(errno.EPERM))
    monkeypatch.setattr(disk, "_renameat2", lambda *_: False)
    real = os.rename
    monkeypatch.setattr(os, "rename", fails_with(errno.EIO))
    with pytest.raises(Unreachable):
        deliver(place.make(), "a", b"x")
    monkeypatch.setattr(os, "rename", real)
    assert place.everything() == []  # not even an error leaves a claim
    deliver(place.make(), "a", b"x")


@root_only
def test_on_vfat(tmp_path: Path, mounted: Callable[..., str]) -> None:
    """A real filesystem without hard links, owners and modes."""
    image = str(tmp_path / "vfat.img")
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    try:
        subprocess.run(["mkfs.vfat", image], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("mkfs.vfat is not installed")
    place = DirectoryPlace(mounted("-o", "loop", "-t", "vfat", image))
    destination = place.make()
    stored = deliver(destination, "run/a", bytes_of(3_000_001), mtime_ns=1_600_000_000_000_000_000)
    assert content(destination, stored) == bytes_of(3_000_001)
    with pytest.raises(Conflict):
        deliver(destination, "run/a", b"other")
    assert place.everything() == ["run/a"]
    assert any("RENAME_NOREPLACE" in fact for fact in destination.check())


def test_an_nfs_link_whose_reply_was_lost_is_no_conflict(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def link(*names: bytes, **options: int) -> None:
        real(*names, **options)
        raise FileExistsError(errno.EEXIST, "the repeated request found the first one's work")

    monkeypatch.setattr(os, "link", link)
    destination = place.make()
    assert content(destination, deliver(destination, "a", b"abc")) == b"abc"
    assert place.everything() == ["a"]


# Somebody else at the same moment


def test_a_file_that_slips_in_during_a_replacement_is_put_back(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = place.make()
    old = deliver(destination, "a", b"ours")
    real = disk.exchange

    def late(directory: int, one: bytes, other: bytes) -> bool:
        monkeypatch.setattr(disk, "exchange", real)
        place.overwrite("a", b"foreign")
        return real(directory, one, other)

    monkeypatch.setattr(disk, "exchange", late)
    with pytest.raises(Conflict):
        deliver(destination, "a", b"new", replace=old)
    assert Path(place.path, "a").read_bytes() == b"foreign"
    assert place.everything() == ["a"]


def test_a_file_changed_in_place_with_its_old_time_is_not_replaced(place: DirectoryPlace) -> None:
    """Same inode, size and mtime, other bytes: the digest tells."""
    destination = place.make()
    old = deliver(destination, "a", b"ours")
    path = os.path.join(place.path, "a")
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"OURS")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(Conflict):
        deliver(destination, "a", b"new", replace=old)
    assert Path(path).read_bytes() == b"OURS"


def test_a_copy_of_which_only_a_part_can_be_read_is_not_taken_for_another(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two readings that end early at the same byte agree, and say nothing."""
    destination, ours = place.make(), bytes_of(40)
    old = deliver(destination, "a", ours)
    digest, leaf = disk.digest_past_cache, os.stat(os.path.join(place.path, "a")).st_ino

    def half(descriptor: int, beat: Callable[[], None], at_once: int) -> tuple[int, str]:
        size, sha256 = digest(descriptor, beat, at_once)
        return (size // 2, "0" * 64) if os.fstat(descriptor).st_ino == leaf else (size, sha256)

    monkeypatch.setattr(disk, "digest_past_cache", half)
    with pytest.raises(IntegrityError, match="reads back as 20 of its 40 bytes"):
        deliver(destination, "a", bytes_of(50), replace=old)
    assert Path(place.path, "a").read_bytes() == ours
    assert place.everything() == ["a"]


def test_removing_puts_back_what_slipped_in(place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    destination = place.make()
    stored = deliver(destination, "a", b"ours")
    real = os.rename

    def late(old: bytes, new: bytes, **options: int) -> None:
        monkeypatch.setattr(os, "rename", real)
        place.overwrite("a", b"foreign")
        real(old, new, **options)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(Conflict):
        destination.remove(stored)
    assert Path(place.path, "a").read_bytes() == b"foreign"
    assert place.everything() == ["a"]


# Traps


@pytest.mark.parametrize("target", ["inside", "outside"])
def test_no_symbolic_link_is_followed_below_the_root(place: DirectoryPlace, tmp_path: Path, target: str) -> None:
    elsewhere = tmp_path / "elsewhere" if target == "outside" else Path(place.path, "real")
    elsewhere.mkdir()
    os.symlink(elsewhere, os.path.join(place.path, "link"))
    destination = place.make()
    for attempt in (
        lambda: destination.begin(Put("link/a", 1)),
        lambda: destination.stat("link/a"),
        lambda: destination.begin(Put("link/deeper/a", 1)),
    ):
        with pytest.raises(Conflict, match="symbolic link"):
            attempt()
    assert os.listdir(elsewhere) == []


def test_a_symbolic_link_in_the_place_of_the_file_is_neither_followed_nor_replaced(
    place: DirectoryPlace, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.symlink(victim, os.path.join(place.path, "a"))
    with pytest.raises(Conflict):
        deliver(place.make(), "a", b"precious")
    assert os.readlink(os.path.join(place.path, "a")) == str(victim)
    assert victim.read_bytes() == b"precious"
    assert place.everything() == ["a"]


def test_a_directory_in_the_place_of_the_file_is_a_conflict(place: DirectoryPlace) -> None:
    os.makedirs(os.path.join(place.path, "a/b"))
    with pytest.raises(Conflict):
        deliver(place.make(), "a", b"x")
    assert place.everything() == ["a/b"]


def test_a_file_in_the_place_of_a_directory_is_a_conflict(place: DirectoryPlace) -> None:
    place.overwrite("a", b"x")
    with pytest.raises(Conflict):
        deliver(place.make(), "a/b", b"x")


# Failing


def test_a_missing_root_is_never_created(tmp_path: Path) -> None:
    path = str(tmp_path / "unmounted" / "share")
    destination = Directory("nas", path, emit=print)
    for attempt in (lambda: destination.begin(Put("a", 1)), lambda: destination.stat("a"), destination.check):
        with pytest.raises(DestinationMissing, match="does not exist"):
            attempt()
    assert os.listdir(tmp_path) == []


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DestinationMissing, match="is a file"):
        Directory("nas", str(tmp_path / "file"), emit=print).begin(Put("a", 1))


@root_only
@pytest.mark.parametrize("size", [3 << 20, 64 << 10])
def test_a_full_disk_is_out_of_space_and_leaves_nothing(mounted: Callable[..., str], size: int) -> None:
    place = DirectoryPlace(mounted("-t", "tmpfs", "-o", "size=2m", "none"))
    place.overwrite("filler", bytes((2 << 20) - (40 << 10)))
    with pytest.raises(OutOfSpace, match="no room"):
        deliver(place.make(), "run/a", bytes_of(size))
    assert place.everything() == ["filler"]
    os.unlink(os.path.join(place.path, "filler"))
    assert deliver(place.make(), "run/a", bytes_of(64 << 10)).evidence == "readback"


@root_only
def test_a_read_only_directory_is_permission_denied(mounted: Callable[..., str]) -> None:
    point = mounted("-t", "tmpfs", "-o", "size=2m,ro", "none")
    with pytest.raises(PermissionDenied, match="Read-only file system"):
        Directory("nas", point, emit=print).begin(Put("a", 1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_permission_denied(place: DirectoryPlace) -> None:
    os.chmod(place.path, 0o555)
    with pytest.raises(PermissionDenied):
        place.make().begin(Put("a", 1))
    os.chmod(place.path, 0o755)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.ENOSPC, OutOfSpace),
        (errno.EDQUOT, OutOfSpace),
        (errno.EIO, Unreachable),
        (errno.ESTALE, Unreachable),
        (errno.ETIMEDOUT, Unreachable),
        (errno.EHOSTDOWN, Unreachable),
        (errno.EMFILE, Unreachable),
        (errno.EROFS, PermissionDenied),
        (errno.ENAMETOOLONG, NameRefused),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "link", "open"])
def test_every_failing_call_is_an_error_of_ours_and_leaves_nothing(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch, call: str, code: int, expected: type[Exception]
) -> None:
    destination = place.make()

    def attempt() -> None:
        with monkeypatch.context() as broken:
            broken.setattr(os, call, fails_with(code))
            upload = destination.begin(Put("run/deep/a", 3))
            try:
                upload.write(b"abc")
                upload.publish(digests_of(b"abc"), {})
            finally:
                broken.undo()
                upload.abort()

    with pytest.raises(expected):
        attempt()
    assert place.everything() == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_share_that_keeps_no_modes_is_told_once(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fchmod", fails_with(code))
    destination = place.make()
    for name in "abc":
        deliver(destination, name, b"x")
    assert [event.kind for event in place.events] == ["attributes-not-kept"]


def test_bytes_that_the_disk_changed_are_caught_before_anything_is_visible(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def rot(descriptor: int, data: memoryview) -> int:
        return real(descriptor, bytes([data[0] ^ 1]) + bytes(data[1:]))

    monkeypatch.setattr(os, "write", rot)
    with pytest.raises(IntegrityError, match="reads back"):
        deliver(place.make(), "a", bytes_of(5000))
    assert place.everything() == []


def test_bytes_that_rotted_later_are_caught_by_reading(place: DirectoryPlace) -> None:
    destination = place.make()
    stored = deliver(destination, "a", b"abc", mtime_ns=1_600_000_000_000_000_000)
    with open(os.path.join(place.path, "a"), "r+b") as file:
        file.write(b"x")
    os.utime(os.path.join(place.path, "a"), ns=(0, 1_600_000_000_000_000_000))
    with pytest.raises(IntegrityError):
        content(destination, stored)


def test_short_writes_are_continued(place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[: max(1, len(data) // 3)]))
    destination = place.make()
    assert content(destination, deliver(destination, "a", bytes_of(10_000))) == bytes_of(10_000)


@pytest.mark.parametrize("size", [1, 511, 512, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 77])
def test_without_direct_reads_the_cache_is_dropped_instead(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    dropped = []
    real = os.posix_fadvise

    def advise(descriptor: int, offset: int, length: int, advice: int) -> None:
        dropped.append(advice)
        real(descriptor, offset, length, advice)

    monkeypatch.setattr(disk, "_set_direct", lambda *_: False)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    destination = place.make()
    assert content(destination, deliver(destination, "a", bytes_of(size))) == bytes_of(size)
    assert os.POSIX_FADV_DONTNEED in dropped


def test_a_filesystem_that_refuses_direct_reads_only_when_reading(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, direct = os.preadv, disk._set_direct
    state = {"direct": False}

    def set_direct(descriptor: int, wanted: bool) -> bool:
        state["direct"] = wanted
        return direct(descriptor, False) or wanted

    def preadv(*arguments: object) -> int:
        if state["direct"]:
            raise OSError(errno.EINVAL, "not aligned")
        return real(*arguments)

    monkeypatch.setattr(disk, "_set_direct", set_direct)
    monkeypatch.setattr(os, "preadv", preadv)
    destination = place.make()
    assert content(destination, deliver(destination, "a", bytes_of(100_000))) == bytes_of(100_000)


# Leftovers


@pytest.fixture(scope="module")
def dead() -> str:
    """The tag of a process of this host that has ended."""
    return subprocess.run(
        [sys.executable, "-c", "from quaymaster.destinations.owner import own_tag; print(own_tag())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip


def test_the_sweep_removes_only_what_a_dead_process_of_this_host_left(place: DirectoryPlace, dead: str) -> None:
    destination = place.make()
    left = Directory("nas", place.path, emit=print, tag=dead).begin(Put("run/dead", 1))
    other_host = Directory("nas", place.path, emit=print, tag="00000000-1-1").begin(Put("run/elsewhere", 1))
    alive = destination.begin(Put("run/alive", 1))
    place.overwrite("run/.qm-somebody-else's.part", b"")
    now = os.stat(place.path).st_mtime
    assert destination.sweep(now=now) == 0  # too young: it may just be slow
    assert destination.sweep(now=now + 7200) == 1
    names = os.listdir(os.path.join(place.path, "run"))
    assert len(names) == 3
    assert not any(dead in name for name in names)
    for upload in (left, other_host, alive):
        upload.abort()


def test_the_sweep_looks_only_below_the_prefix(place: DirectoryPlace, dead: str) -> None:
    for key in ("a/b/one", "a/two", "ab/three"):
        Directory("nas", place.path, emit=print, tag=dead).begin(Put(key, 1)).write(b"x")
    destination = place.make()
    assert destination.sweep(now=time.time(), older_than=0, prefix="a/b/") == 1
    assert destination.sweep(now=time.time(), older_than=0, prefix="a/") == 1
    assert destination.sweep(now=time.time(), older_than=0, prefix="nothing/") == 0
    assert destination.sweep(now=time.time(), older_than=0) == 1


def test_the_tag_tells_two_hosts_and_two_processes_apart() -> None:
    host, process, started = own_tag().split("-")
    assert (int(process), len(host)) == (os.getpid(), 8)
    assert int(started) > 0
    assert socket.gethostname() not in host


def test_two_uploads_into_one_new_directory_and_one_aborts(place: DirectoryPlace) -> None:
    destination = place.make()
    first, second = destination.begin(Put("new/deep/a", 1)), destination.begin(Put("new/deep/b", 1))
    second.write(b"x")
    first.abort()
    second.publish(digests_of(b"x"), {})
    assert place.everything() == ["new/deep/b"]


def test_the_directories_race_of_begin_and_abort(place: DirectoryPlace) -> None:
    destination = place.make()

    def once(number: int) -> None:
        for _ in range(30):
            if number % 2:
                destination.begin(Put(f"d/e/{number}", 1)).abort()
            else:
                destination.remove(deliver(destination, f"d/e/{number}", b"x"))

    assert [result for result in race(8, once) if result is not None] == []


@root_only
def test_with_a_c_library_without_renameat2(place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        pass

    assert isinstance(disk._libc, ctypes.CDLL)
    monkeypatch.setattr(disk, "_libc", Old())
    monkeypatch.setattr(os, "link", fails_with(errno.EPERM))
    destination = place.make()
    assert content(destination, deliver(destination, "a", b"abc")) == b"abc"


@pytest.mark.parametrize("found", ["in the way", "when asked"])
def test_a_copy_that_was_found_there_is_on_the_disk_before_it_counts(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """Whoever wrote it may not have seen to that: another program, or a run that was killed before it could."""
    destination, target = place.make(), Path(place.path) / "a"
    target.write_bytes(bytes_of(70_000))
    synced, real = set[int](), os.fsync

    def sync(descriptor: int) -> None:
        real(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    if found == "in the way":
        deliver(destination, "a", bytes_of(70_000))
    else:
        assert destination.holding("a", digests_of(bytes_of(70_000)))
    assert {target.stat().st_ino, target.parent.stat().st_ino} <= synced


@pytest.mark.parametrize("asked", ["replace", "holding"])
def test_a_bit_that_flips_while_a_copy_of_ours_is_looked_at_does_not_make_it_a_foreign_one(
    ext4: DirectoryPlace, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """It would park the next version, or make the service forget what it had put there."""
    destination, real, turns = ext4.make(), disk.pieces_past_cache, itertools.count()
    old = deliver(destination, "a", b"first")

    def flipping(descriptor: int) -> Iterator[memoryview]:
        for piece in real(descriptor):
            wrong = bytes([piece[0] ^ 1]) + bytes(piece[1:])
            yield memoryview(wrong) if bytes(piece) == b"first" and next(turns) == 0 else piece

    monkeypatch.setattr(disk, "pieces_past_cache", flipping)
    ask = {
        "replace": lambda: deliver(destination, "a", b"second", replace=old),
        "holding": lambda: destination.holding("a", digests_of(b"first")),
    }[asked]
    with pytest.raises(IntegrityError, match="differently each time"):
        ask()
    assert deliver(destination, "a", b"second", replace=old).size == 6


def test_what_is_distant_is_read_back_in_several_pieces_at_a_time(
    place: DirectoryPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, together, read = bytes_of(4 * disk.PIECE + 17), threading.Barrier(3), os.preadv

    def met(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset < 3 * disk.PIECE:
            together.wait(60)  # breaks unless three are asked for at a time
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", met)
    destination = Directory("far", place.path, emit=lambda _: None, distant=lambda: True)
    assert deliver(destination, "a", data).evidence == "readback"
    assert Path(place.path, "a").read_bytes() == data
