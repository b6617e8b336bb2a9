"""Units that something is wrong with: killed, renamed, parked, lost, impossible (PRODUCT W5)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence

import pytest

from quaymaster.store import UnitState
from system.conftest import Home
from system.service import Service, until
from system.units import RUN, check_archive, land, published, unit_of, waits_for

Serve = Callable[..., Service]

STEPS_OF_PUBLICATION = (
    ("commit of Units.complete.act", 1),
    ("replace in write", 1),
    ("commit of Units.publish.act", 1),
    ("link in publish_name", 4),  # after the three files: the checksums …
    ("link in publish_name", 5),  # … and the manifest
    ("commit of Units.published.act", 1),
)


def test_a_marker_that_goes_and_comes_back_and_a_unit_that_is_renamed(home: Home, serve: Serve) -> None:
    service = serve(home.config(f'{RUN}\nexclude = ["CopyComplete.txt"]'))
    marker = home.landing / "run1/CopyComplete.txt"
    land(home, {"a": b"a"})
    os.mkdir(marker)  # it is not the file that is meant
    waits_for(service, b"run1", "CopyComplete.txt is missing")
    marker.rmdir()
    os.rename(home.landing / "run1", home.landing / "run2")
    published_run = home.landing / "run2/CopyComplete.txt"
    waits_for(service, b"run2", "CopyComplete.txt is missing")
    published_run.touch()
    published_run.unlink()
    published_run.touch()
    published(service, path=b"run2")
    check_archive(home, {"a": b"a"}, "run2")
    waits_for(service, b"run1", "its directory is gone")
    assert service.cli("units", "abandon", str(home.landing / "run1"))[0] == 0
    assert (unit := unit_of(service)) is not None
    assert unit.state is UnitState.ABANDONED
    service.stop()


def test_a_unit_that_cannot_be_published_holds_up_no_other(home: Home, serve: Serve) -> None:
    """Its path is so long that there is no room for the names of its lists."""
    deep = "/".join(["d" * 250] * 16)
    service = serve(home.config('unit = "directory"\nunit_depth = 16\nunit_idle = "1s"\n'))
    root = os.open(home.landing, os.O_RDONLY)
    for name in deep.split("/"):
        os.mkdir(name, dir_fd=root)
        below = os.open(name, os.O_RDONLY, dir_fd=root)
        os.close(root)
        root = below
    os.close(os.open("a", os.O_CREAT | os.O_WRONLY, dir_fd=root))
    os.close(root)
    good = "/".join(["x"] * 16)
    land(home, {"a": b"a"}, good)
    published(service, path=good.encode())
    waits_for(service, deep.encode(), "File name too long")
    service.stop()
    subprocess.run(["rm", "-rf", str(home.landing), str(home.archive)], check=True)


def test_what_is_missing_is_said_and_delivered_later(home: Home, serve: Serve) -> None:
    """A unit with a parked file stays open; an operator publishes what there is; the rest makes a generation."""
    (home.archive / "run1").mkdir()
    (home.archive / "run1/bad").write_bytes(b"somebody else's")
    service = serve(home.config(RUN))
    expected = land(home, {"a": b"a", "bad": b"mine", "CopyComplete.txt": b""})
    land(home, {"x": b"x", "CopyComplete.txt": b""}, "run2")
    waits_for(service, b"run1", "1 file parked")
    published(service, path=b"run2")  # which it does not hold up
    assert not (home.archive / "run1/quaymaster-manifest.json").exists()
    assert service.cli("units", "complete", str(home.landing / "run1"))[0] == 0
    assert published(service).missing == 1
    manifest = check_archive(home, {name: expected[name] for name in ("a", "CopyComplete.txt")})
    assert [entry["path"] for entry in manifest["missing"]] == ["bad"]
    assert manifest["forced_by"]
    (home.archive / "run1/bad").unlink()
    assert service.cli("jobs", "retry", "--state", "parked")[0] == 0
    published(service, 2)
    check_archive(home, expected)
    service.stop()


def test_a_lost_ledger_makes_no_generation_twice(home: Home, serve: Serve) -> None:
    service = serve(home.config(RUN))
    expected = land(home, {"a": b"a", "CopyComplete.txt": b""})
    published(service)
    expected |= land(home, {"b": b"b"})
    published(service, 2)
    service.stop()
    for name in os.listdir(home.folder / "state"):
        (home.folder / "state" / name).unlink()
    done = service.command("rebuild")
    assert done.returncode == 0, done.stderr
    service.start()
    published(service, 3)
    assert check_archive(home, expected)["generation"] == 3
    service.stop()


def killed_and_finished(home: Home, steps: Sequence[tuple[str, int]], when: str) -> None:
    """A unit for each step: the service is killed there, and runs again to the end."""
    service = Service(home.config(RUN), home.folder)
    for number, (step, occurrence) in enumerate(steps):
        path = f"run{number}"
        expected = land(home, {"a": b"a", "sub/b": b"%d" % number, "CopyComplete.txt": b""}, path)
        assert service.is_killed_at(step, when, occurrence), f"it never came to {step}"
        with service:
            published(service, path=path.encode())
            check_archive(home, expected, path)
            until(lambda: not home.leftovers())
    with service.store() as store:
        entries = [entry.fields for entry in store.custody()]
        assert store.custody_broken_at() is None
    said = [(entry["path"], entry["generation"]) for entry in entries if entry["kind"] == "unit-published"]
    assert sorted(said) == [(f"run{number}", 1) for number in range(len(steps))]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_while_the_manifest_becomes_visible_makes_one(home: Home, when: str) -> None:
    killed_and_finished(home, STEPS_OF_PUBLICATION[3:5], when)


@pytest.mark.soak
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_of_the_publication_makes_one_manifest(home: Home, when: str) -> None:
    """Each commit and rename of a unit's way, and the publication of its lists."""
    killed_and_finished(home, STEPS_OF_PUBLICATION, when)
