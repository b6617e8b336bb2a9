"""A destination directory that cannot take a file: it is told once and clearly, nothing partial stays, and the file
arrives when the cause is gone (PRODUCT Q3, P8)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quaymaster.model import State
from system.conftest import Home, quoted
from system.faulty_filesystem import FaultyFilesystem, reason_to_skip
from system.mishaps import is_calm, no_mounts, parked, remount, retried, small_disk, told, waiting
from system.service import Service, until

Serve = Callable[..., Service]
CONTENT = os.urandom(70_000)

needs_mounts = pytest.mark.skipif(bool(no_mounts()), reason=no_mounts())
needs_fuse = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())


def untouched(home: Home) -> None:
    assert (home.landing / "a").read_bytes() == CONTENT
    assert home.leftovers() == []


def test_a_missing_directory_is_never_made_and_its_files_wait_parked(home: Home, serve: Serve) -> None:
    home.archive.rmdir()
    service = serve(home.config())
    told(service, "warning", "quaymaster.toml:", "[destination.archive] path", "does not exist")
    home.land("a", CONTENT)
    job = parked(service, "destination-missing", f"{home.archive} does not exist", "Mount or create it")
    assert not home.archive.exists()
    untouched(home)
    home.archive.mkdir()
    retried(service, job)
    service.until_done(1)
    assert home.arrived() == {b"a": CONTENT}


def test_a_file_in_the_place_of_the_directory_is_left_alone(home: Home, serve: Serve) -> None:
    home.archive.rmdir()
    home.archive.write_bytes(b"mine")
    service = serve(home.config())
    home.land("a", CONTENT)
    parked(service, "destination-missing", f"{home.archive} is a file, not a directory", "Correct path")
    assert home.archive.read_bytes() == b"mine"
    untouched(home)


def test_a_directory_that_goes_away_while_the_service_runs_is_not_made_anew(home: Home, serve: Serve) -> None:
    service = serve(home.config())
    home.archive.rename(home.folder / "elsewhere")
    home.land("a", CONTENT)
    job = parked(service, "destination-missing", "does not exist")
    (home.folder / "elsewhere").rename(home.archive)
    retried(service, job, "--error", "destination-missing")
    service.until_done(1)
    assert home.arrived() == {b"a": CONTENT}


def test_somebody_elses_file_stays_as_it_is_and_ours_is_parked(home: Home, serve: Serve) -> None:
    (home.archive / "a").write_bytes(b"somebody else's")
    service = serve(home.config())
    home.land("a", CONTENT)
    job = parked(service, "conflict", f"Something else is already at {home.archive}/a (15 bytes)", "never overwritten")
    assert home.arrived() == {b"a": b"somebody else's"}
    untouched(home)
    home.land("b", b"other")
    until((home.archive / "b").exists)
    (home.archive / "a").unlink()
    retried(service, job)
    service.until_done(2)
    assert home.arrived() == {b"a": CONTENT, b"b": b"other"}


def test_a_foreign_link_in_the_way_is_not_followed(home: Home, serve: Serve) -> None:
    outside = home.folder / "outside"
    outside.mkdir()
    (home.archive / "run").symlink_to(outside)
    service = serve(home.config())
    home.land("run/a", CONTENT)
    parked(service, "conflict", "symbolic link", "never followed", path="run/a")
    assert list(outside.iterdir()) == []


@needs_mounts
def test_a_read_only_filesystem_is_named_as_such(home: Home, serve: Serve) -> None:
    with small_disk(home.archive, "ro"):
        service = serve(home.config())
        home.land("a", CONTENT)
        job = parked(service, "permission-denied", "Read-only file system", "Mount it writable")
        untouched(home)
        remount(home.archive, "rw")
        retried(service, job, "--all")
        service.until_done(1)
        assert home.arrived() == {b"a": CONTENT}


@needs_mounts
def test_a_full_disk_makes_large_files_wait_and_lets_small_ones_through(home: Home, serve: Serve) -> None:
    large = os.urandom(3 << 20)
    with small_disk(home.archive, "size=1m"):
        service = serve(home.config())
        home.land("a", large)
        home.land("small", b"small")
        waiting(service, "out-of-space", f"no room for {home.archive}/a", "Free space there")
        until(lambda: home.arrived() == {b"small": b"small"} and home.leftovers() == [])
        remount(home.archive, "size=16m")
        service.until_done(2)  # by itself
        assert home.arrived() == {b"a": large, b"small": b"small"}
    is_calm(service.log)


def on_fuse(home: Home, filesystem: FaultyFilesystem) -> str:
    return home.config(destinations=f'[destination.archive]\ntype = "directory"\npath = {quoted(filesystem.seen)}')


@needs_fuse
def test_without_hard_links_and_flags_a_file_still_appears_whole_and_alone(home: Home, serve: Serve) -> None:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        filesystem.fail(link="EPERM")
        (filesystem.held / "taken").write_bytes(b"somebody else's")
        service = serve(on_fuse(home, filesystem))
        home.land("a", CONTENT)
        home.land("taken", CONTENT)
        parked(service, "conflict", "Something else is already at", path="taken")
        until(lambda: service.states()[State.DONE] == 1)
        assert held(filesystem) == {"a": CONTENT, "taken": b"somebody else's"}
        assert "neither hard links nor RENAME_NOREPLACE" in service.command("check", "--destinations").stdout


@needs_fuse
@pytest.mark.parametrize("operation", ["fsync", "read", "write", "link"])
def test_an_input_output_error_is_tried_again_until_it_is_over(home: Home, serve: Serve, operation: str) -> None:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        filesystem.fail(**{operation: "EIO"})
        service = serve(on_fuse(home, filesystem))
        home.land("a", CONTENT)
        waiting(service, "unreachable", f"{filesystem.seen}/a", "Input/output error", "look at the mount")
        assert held(filesystem) == {}  # neither the file nor a part of it
        filesystem.fail()
        service.until_done(1)
        assert held(filesystem) == {"a": CONTENT}


@needs_fuse
def test_a_part_that_cannot_be_removed_is_removed_as_soon_as_it_can(home: Home, serve: Serve) -> None:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        filesystem.fail(fsync="EIO", unlink="EIO")
        service = serve(on_fuse(home, filesystem))
        home.land("a", CONTENT)
        waiting(service, "unreachable", "Input/output error")
        assert [name for name in held(filesystem) if name.startswith(".qm-")] != []
        filesystem.fail()
        service.until_done(1)
        assert held(filesystem) == {"a": CONTENT}


def held(filesystem: FaultyFilesystem) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(filesystem.held).iterdir()}
