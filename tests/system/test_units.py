"""Directories that count as delivered only when they are whole: their manifest comes last (PRODUCT W5)."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from contextlib import closing

from quaymaster.model import State
from quaymaster.store import UnitState
from system.bucket import Bucket
from system.conftest import Home, files_below
from system.service import Service, until
from system.units import RUN, check_archive, custody_kinds, land, manifest_of, published, unit_of, waits_for

Serve = Callable[..., Service]


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


def test_a_unit_may_travel_as_a_whole(home: Home, serve: Serve) -> None:
    service = serve(home.config(f'{RUN}\nupload = "unit"'))
    expected = land(home, {"a": b"a", "sub/b": b"b"})
    home.land("outside", b"of all units")
    waits_for(service, b"run1", "CopyComplete.txt is missing")
    until(lambda: home.arrived().keys() == {b"outside"})
    _, found = service.cli("why", str(home.landing / "run1/a"))
    assert found["evidence"][-1] == {"ok": False, "text": "its unit run1 is not whole yet: CopyComplete.txt is missing"}
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
