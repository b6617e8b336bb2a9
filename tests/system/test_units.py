"""Directories that count as delivered only when they are whole: their manifest comes last (PRODUCT W5)."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from quaymaster.keys import unescape
from quaymaster.model import State
from quaymaster.store import Unit, UnitState
from system.bucket import Bucket
from system.conftest import Home, files_below
from system.service import Service, until

Serve = Callable[..., Service]
RUN = 'unit = "directory"\nunit_complete = ["CopyComplete.txt"]'


STEPS_OF_PUBLICATION = (
    ("commit of Units.complete.act", 1),
    ("replace in write", 1),
    ("commit of Units.publish.act", 1),
    ("link in publish_name", 4),  # after the three files: the checksums …
    ("link in publish_name", 5),  # … and the manifest
    ("commit of Units.published.act", 1),
)


class Killed:
    """A service that is killed at a step, and runs again."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.service = Service(home.config(RUN), home.folder)

    def kill_at(self, step: str, when: str, occurrence: int) -> bool:
        here = str(Path(__file__).parent.parent)
        command = [sys.executable, "-m", "system.killed_at", str(self.home.folder / "steps"), step, when]
        with self.service.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*command, "run", "--config", str(self.service.config_file)],
                env={**self.service.environment, "PYTHONPATH": here, "KILLED_AT_OCCURRENCE": str(occurrence)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            return process.wait(60) == -9
        finally:
            process.kill()
            process.wait()


def unit_of(service: Service, path: bytes = b"run1") -> Unit | None:
    with service.store() as store:
        return store.units.get("landing", path)


def published(service: Service, generation: int = 1, path: bytes = b"run1", timeout: float = 60) -> Unit:
    """The unit, once that generation of it is published."""

    def look() -> Unit | None:
        unit = unit_of(service, path)
        return unit if unit and unit.state is UnitState.PUBLISHED and unit.generation == generation else None

    found = until(look, timeout, f"generation {generation} of {path!r}: {unit_of(service, path)}")
    assert found is not None
    return found


def manifest_of(home: Home, path: str = "run1") -> dict[str, Any]:
    return dict(json.loads((home.archive / path / "quaymaster-manifest.json").read_text()))


def check_archive(home: Home, expected: dict[str, bytes], path: str = "run1") -> dict[str, Any]:
    """The manifest tells of exactly these files, sha256sum(1) accepts them, and its digest is that of the list."""
    manifest = manifest_of(home, path)
    told = {os.fsdecode(unescape(entry["path"])): entry["sha256"] for entry in manifest["files"]}
    assert told == {name: hashlib.sha256(content).hexdigest() for name, content in expected.items()}
    sums = home.archive / path / manifest["sums"]
    assert manifest["digest"] == "sha256:" + hashlib.sha256(sums.read_bytes()).hexdigest()
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", sums.name], cwd=sums.parent, check=True)
    for entry in manifest["files"]:
        assert (
            os.stat(os.path.join(os.fsencode(home.archive), unescape(entry["key"]))).st_size == entry["stored"]["size"]
        )
    return manifest


def waits_for(service: Service, path: bytes, why: str) -> None:
    until(lambda: (unit := unit_of(service, path)) and why in unit.why, 60, f"{path!r}: {unit_of(service, path)}")


def custody_kinds(service: Service) -> list[str]:
    with service.store() as store:
        kinds = [entry.fields["kind"] for entry in store.custody()]
    return [kind for kind in kinds if kind.startswith("unit-")]


def land(home: Home, files: dict[str, bytes], path: str = "run1") -> dict[str, bytes]:
    for name, content in files.items():
        home.land(f"{path}/{name}", content)
    return files


def test_a_manifest_comes_last_and_tells_of_every_file(home: Home, serve: Serve) -> None:
    service = serve(home.config(RUN))
    expected = land(
        home, {"Data/a.bcl": b"a" * 1000, "Data/b.bcl": b"b", "RunInfo.xml": b"<run/>", "odd\\na\nme": b"x"}
    )
    until(lambda: len(home.arrived()) == 4)
    unit = until(lambda: unit_of(service))
    assert unit is not None
    assert unit.state is UnitState.OPEN
    until(lambda: (u := unit_of(service)) and u.why == "CopyComplete.txt is missing")
    expected |= land(home, {"CopyComplete.txt": b""})
    unit = published(service)
    manifest = manifest_of(home)
    assert (unit.files, unit.bytes, unit.missing) == (5, sum(map(len, expected.values())), 0)
    assert manifest["generation"] == 1
    check_archive(home, expected)
    assert [entry["path"] for entry in manifest["files"]][-1] == "odd%5Cna%0Ame"
    service.stop()


def test_something_late_makes_the_next_generation(home: Home, serve: Serve) -> None:
    service = serve(home.config('unit = "directory"\nunit_idle = "1s"'))
    expected = land(home, {"a": b"a", "sub/b": b"b"})
    published(service)
    first = check_archive(home, expected)
    expected |= land(home, {"late": b"late", "a": b"changed"})
    published(service, 2)
    second = check_archive(home, expected)
    assert (first["generation"], second["generation"]) == (1, 2)
    published_once = ["unit-complete", "unit-published"]
    assert custody_kinds(service) == [*published_once, "unit-reopened", *published_once]
    service.stop()


def test_earlier_manifests_stay_where_nothing_is_replaced(home: Home, serve: Serve) -> None:
    service = serve(home.config(f'{RUN}\non_change = "keep-both"'))
    land(home, {"a": b"a", "CopyComplete.txt": b""})
    published(service)
    before = (home.archive / "run1/quaymaster-manifest.json").read_bytes()
    land(home, {"b": b"b"})
    published(service, 2)
    assert (home.archive / "run1/quaymaster-manifest.json").read_bytes() == before
    newest = json.loads((home.archive / "run1/quaymaster-manifest~2.json").read_text())
    assert (newest["generation"], newest["file_count"]) == (2, 3)
    service.stop()


def test_a_list_of_checksums_of_the_run_itself_is_kept(home: Home, serve: Serve) -> None:
    service = serve(home.config(RUN))
    expected = land(home, {"a": b"a", "SHA256SUMS": b"the vendor's", "CopyComplete.txt": b""})
    published(service)
    assert check_archive(home, expected)["sums"] == "quaymaster-SHA256SUMS"
    assert (home.archive / "run1/SHA256SUMS").read_bytes() == b"the vendor's"
    service.stop()


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


def test_a_unit_may_travel_as_a_whole(home: Home, serve: Serve) -> None:
    service = serve(home.config(f'{RUN}\nupload = "unit"'))
    expected = land(home, {"a": b"a", "sub/b": b"b"})
    home.land("outside", b"of all units")
    waits_for(service, b"run1", "CopyComplete.txt is missing")
    until(lambda: home.arrived().keys() == {b"outside"})
    expected |= land(home, {"CopyComplete.txt": b""})
    published(service)
    check_archive(home, expected)
    service.stop()


def test_sources_stay_until_the_manifest_is_there(home: Home, serve: Serve) -> None:
    service = serve(home.config(f'{RUN}\nafter = "delete"'))
    expected = land(home, {"a": b"a", "sub/b": b"b"})
    until(lambda: service.states()[State.WAITING] == 2)
    assert sorted(name for name in os.listdir(home.landing / "run1")) == ["a", "sub"]
    expected |= land(home, {"CopyComplete.txt": b""})
    published(service)
    until(lambda: not list(files_below(os.fsencode(home.landing))))
    check_archive(home, expected)
    land(home, {"late": b"x"})  # the marker was removed after its delivery, and counts
    published(service, 2)
    until(lambda: not list(files_below(os.fsencode(home.landing))))
    check_archive(home, expected | {"late": b"x"})
    service.stop()


def test_at_a_bucket_a_unit_is_verified_and_restored_by_its_manifest(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(
        home.config(
            'unit = "directory"\nunit_idle = "1s"\nkey = "{watch}/{path}"\n'
            'compress = { format = "zstd", min_size = "1KiB" }\nnever_compress = ["*.bam"]',
            bucket.destination(),
        )
    )
    expected = land(home, {"a.txt": b"a" * 5000, "b.bam": b"b" * 5000, "odd\\name": b"", "sub/\xfc\x01": b"u"})
    published(service)
    service.stop()
    shutil.rmtree(home.folder / "state")  # from here on the manifest alone
    key = "landing/run1/quaymaster-manifest.json"
    manifest = json.loads(bucket.content(key))
    assert {entry["path"]: entry["stored"]["compression"] for entry in manifest["files"]} == {
        "a.txt": "zstd",
        "b.bam": "none",
        "odd%5Cname": "none",
        "sub/\xfc%01": "none",
    }
    run, to = str(home.landing / "run1"), home.folder / "back"
    assert service.cli("verify", "--unit", run, "--level", "readback") == (
        0,
        {"unit": "run1", "watch": "landing", "generation": 1, "digest": manifest["digest"], "file_count": 4,
         "missing_count": 0, "good": 4, "missing": 0, "changed": 0, "damaged": 0, "unanswered": 0, "ok": True,
         "faults": []},
    )  # fmt: skip
    code, said = service.cli("restore", "--unit", key, "--to", str(to))
    assert (code, said["restored"]) == (0, 4)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=to, check=True)
    assert {name: (to / name).read_bytes() for name in expected} == expected
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "landing/run1/b.bam", Body=b"c" * 5000)
    bucket.client.delete_object(Bucket=bucket.name, Key=bucket.prefix + "landing/run1/odd%5Cname")
    code, said = service.cli("verify", "--unit", "landing/run1")
    assert (code, said["changed"], said["missing"], said["good"]) == (3, 1, 1, 2)


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


def test_commands_and_alarms_tell_of_units(home: Home, serve: Serve) -> None:
    service = serve(home.config(f'{RUN}\nunit_open_max = "1s"'))
    land(home, {"a": b"a"})
    waits_for(service, b"run1", "CopyComplete.txt is missing")
    late = until(lambda: service.lines("has not been published for"))
    assert "CopyComplete.txt is missing" in late[0]
    code, said = service.cli("units", "--state", "open")
    assert code == 0
    assert [(unit["path"], unit["overdue"], unit["why"]) for unit in said["units"]] == [
        ("run1", True, "CopyComplete.txt is missing")
    ]
    assert "run1" in service.command("units").stdout
    assert "waits for" in service.command("units", "show", str(home.landing / "run1/a")).stdout
    assert service.watch()["units"]["overdue"] == 1
    assert "run1 of watch landing is overdue" in service.command("status").stdout
    with closing(http.client.HTTPConnection("localhost")) as connection:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(home.folder / "run/api.sock"))
        connection.request("GET", "/healthz")
        health = json.loads(connection.getresponse().read())
        connection.request("GET", "/api/v1/units?state=open")
        assert json.loads(connection.getresponse().read())["units"][0]["path"] == "run1"
    assert any("overdue" in reason for reason in health["reasons"])
    code, findings = service.cli("doctor")
    assert any(f["check"] == "units" and f["state"] == "warning" for f in findings["findings"])
    assert service.command("units", "complete", str(home.folder)).returncode == 1
    land(home, {"CopyComplete.txt": b""})
    published(service)
    assert service.command("units", "abandon", str(home.landing / "run1")).returncode == 1
    service.stop()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_at_any_step_of_the_publication_makes_one_manifest(home: Home, when: str) -> None:
    """Each commit and rename of a unit's way, and the publication of its lists: killed there, then run to the end."""
    campaign = Killed(home)
    seen: set[str] = set()
    for number, (step, occurrence) in enumerate(STEPS_OF_PUBLICATION):
        path = f"run{number}"
        expected = land(home, {"a": b"a", "sub/b": b"%d" % number, "CopyComplete.txt": b""}, path)
        assert campaign.kill_at(step, when, occurrence), f"it never came to {step}"
        seen.add(step)
        with campaign.service as service:
            published(service, path=path.encode())
            check_archive(home, expected, path)
            until(lambda: not home.leftovers())
    with campaign.service.store() as store:
        entries = [entry.fields for entry in store.custody()]
        assert store.custody_broken_at() is None
    said = [(entry["path"], entry["generation"]) for entry in entries if entry["kind"] == "unit-published"]
    assert sorted(said) == sorted({(f"run{n}", 1) for n in range(len(STEPS_OF_PUBLICATION))})
