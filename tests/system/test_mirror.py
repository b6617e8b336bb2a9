"""A bucket comes down to a model server's directory, whole or not at all (PRODUCT M1-M5, X2)."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import jsonschema_rs
import pytest

from quaymaster.service.api import openapi
from servers.faultproxy import FaultProxy, unavailable
from servers.model_server import ModelServer
from servers.ports import free_ports
from system.bucket import Bucket
from system.conftest import Home, quoted
from system.mirroring import config, hidden, once, place, put, put_model, released, remove, until_released
from system.service import Service, until

MIB = 1 << 20


def model(version: int, size: int = 3000) -> dict[str, bytes]:
    return {"model.xml": b"<net version='%d'/>" % version, "model.bin": bytes([version % 251]) * size}


def below(unit: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{unit}/{name}": content for name, content in files.items()}


def test_versions_come_down_whole_and_an_idle_mirror_is_small(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    big = os.urandom(20 * MIB)
    put_model(bucket, "resnet/1", model(1))
    put_model(bucket, "team/bert/12", {"w.bin": big, "vocab/words.txt": b"a b c"})
    put(bucket, "resnet/labels.txt", b"cat\ndog\n")
    put(bucket, "odd/\u00e9 name/x", b"x")
    service = serve(config(home, bucket))
    wanted = below("resnet/1", model(1)) | {"team/bert/12/w.bin": big, "team/bert/12/vocab/words.txt": b"a b c"}
    until_released(home, wanted | {"resnet/labels.txt": b"cat\ndog\n", "odd/\u00e9 name/x": b"x"})
    assert hidden(home, "objects") == []
    put_model(bucket, "resnet/2", model(2))
    until_released(home, below("resnet/2", model(2)))
    until(lambda: not service.cli("status")[1]["mirrors"][0]["waiting"])
    said = service.cli("status")[1]
    assert said["mirrors"][0] | {"state": "ok", "released": 5, "listed": 8, "quarantined": {}} == said["mirrors"][0]
    assert said["watches"] == []
    assert service.cli("jobs", "--watch", "models")[1]["jobs"]
    assert service.cli("audit", "verify")[0] == 0
    resident = Path(f"/proc/{service.pid}/statm").read_text().split()[1]
    assert int(resident) * os.sysconf("SC_PAGE_SIZE") < 100 * MIB


def test_what_is_not_complete_waits_for_its_marker_and_for_all_that_its_manifest_names(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    files = model(1)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()
    put(bucket, "m/1/SHA256SUMS", sums)
    put(bucket, "m/1/model.xml", files["model.xml"])
    put_model(bucket, "n/1", files)
    text = config(home, bucket)
    service = serve(text)
    until_released(home, below("n/1", files))
    why = until(lambda: service.cli("mirror")[1]["mirrors"][0]["waiting"].get("m/1"))
    assert "model.bin has not arrived" in why
    assert not (place(home) / "m").exists()
    put(bucket, "m/1/model.bin", files["model.bin"])
    until_released(home, below("m/1", files))
    service.stop()
    put_model(bucket, "n/2", model(2))
    again = serve(config(home, bucket, 'marker = "DONE"'))
    why = until(lambda: again.cli("mirror")[1]["mirrors"][0]["waiting"].get("n/2"))
    assert "DONE has not arrived" in why
    put(bucket, "n/2/DONE", b"")
    until_released(home, below("n/2", model(2)))


def test_a_content_that_its_manifest_or_metadata_denies_is_never_released(home: Home, bucket: Bucket) -> None:
    put(bucket, "bad/1/SHA256SUMS", f"{'0' * 64}  model.bin\n".encode())
    put(bucket, "bad/1/model.bin", b"other bytes")
    said = {"quaymaster-sha256": "1" * 64, "quaymaster-size": "5", "quaymaster-mtime": "1"}
    put(bucket, "lying/1/model.bin", b"bytes", Metadata=said | {"quaymaster-compression": "none"})
    bomb = hashlib.sha256(b"").hexdigest()
    put(bucket, "bomb/1/x.zst", os.urandom(99), Metadata={
        "quaymaster-sha256": bomb, "quaymaster-size": "0", "quaymaster-mtime": "1", "quaymaster-compression": "zstd",
    })  # fmt: skip
    code, told, _ = once(home, config(home, bucket))
    assert code == 1
    assert released(home) == {}
    assert "is not what its manifest says" in told["quarantined"]["bad/1"]
    assert set(told["waiting"]) == {"lying/1", "bomb/1"}
    assert not [name for name in hidden(home, "objects") if name.endswith(".file")]
    code, told, _ = once(home, config(home, bucket))
    assert released(home) == {}


def test_readers_see_one_version_or_the_other_while_it_is_swapped(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    _swap(home, bucket, serve, 20)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_readers_see_one_version_or_the_other_in_500_swaps(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    assert _swap(home, bucket, serve, 500) > 5000


def _swap(home: Home, bucket: Bucket, serve: Callable[..., Service], swaps: int) -> int:
    """A version is replaced under its number again and again, while readers open its directory and read all of it."""
    put_model(bucket, "m/1", model(0) | {"SHA256SUMS": _sums(model(0))})
    serve(config(home, bucket, 'interval = "100ms"\nkeep_old = "3s"'))
    until_released(home, below("m/1", model(0)))
    reader = _Reader(place(home) / "m/1")
    for number in range(1, swaps + 1):
        files = model(number)
        put_model(bucket, "m/1", files | {"SHA256SUMS": _sums(files)})
        until_released(home, below("m/1", files))
    reads = reader.end()
    until(lambda: len(hidden(home, "old")) <= 30, 60, "what was replaced is removed")
    return reads


def _sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


class _Reader:
    """Reads the directory as whoever opened it sees it, in a loop, and complains of mixtures and of gaps."""

    def __init__(self, directory: Path, pause: float = 0.001) -> None:
        self._directory, self._reads, self._pause = directory, 0, pause
        self._wrong: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> int:
        self._end.set()
        self._thread.join()
        assert not self._wrong, self._wrong[:3]
        assert self._reads > 20
        return self._reads

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    found = {name: self._content(directory, name) for name in os.listdir(directory)}
                finally:
                    os.close(directory)
                if found.pop("SHA256SUMS") != _sums({name: found[name] for name in ("model.xml", "model.bin")}):
                    self._wrong.append(f"mixed: {found['model.xml']!r}")
            except (OSError, KeyError) as error:
                self._wrong.append(repr(error))
            self._reads += 1
            time.sleep(self._pause)

    def _content(self, directory: int, name: str) -> bytes:
        with open(os.open(name, os.O_RDONLY, dir_fd=directory), "rb") as file:
            return file.read()


def test_an_outage_is_told_and_nothing_is_removed(home: Home, bucket: Bucket, serve: Callable[..., Service]) -> None:
    put_model(bucket, "m/1", model(1))
    text = config(home, bucket, 'on_delete = "remove"\ndelete_grace = "0s"\nkeep_old = "0s"')
    service = serve(text)
    until_released(home, below("m/1", model(1)))
    remove(bucket, *(f"m/1/{name}" for name in model(1)))
    told = until(lambda: (m := service.cli("mirror")[1]["mirrors"][0])["state"] == "outage" and m)
    assert "lists nothing any more" in told["reason"]
    assert released(home) == below("m/1", model(1))
    until(lambda: "lists nothing" in service.command("status").stdout, 60, "status tells it")
    put_model(bucket, "n/1", model(3))
    until_released(home, below("n/1", model(3)))
    until(lambda: "m/1/model.xml" not in released(home), 60, "what is gone upstream is removed")
    until(lambda: service.cli("mirror")[1]["mirrors"][0]["state"] == "ok", 60, "all is well again")
    service.stop()
    dead = bucket.endpoint.rpartition(":")[0] + f":{free_ports(1)[0]}"
    code, said, _ = once(home, text.replace(bucket.endpoint, dead))
    assert (code, said["state"], said["released"]) == (1, "outage", 1)
    assert released(home) == below("n/1", model(3))


def test_a_download_that_failed_is_tried_again_however_often_the_bucket_is_listed(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    put_model(bucket, "m/1", model(1))
    with FaultProxy(bucket.endpoint) as proxy:
        proxy.inject("GetObject", request=unavailable(), only=lambda request: request.path.endswith("m/1/model.bin"))
        service = serve(config(home, bucket, 'interval = "50ms"').replace(bucket.endpoint, proxy.endpoint))
        until_released(home, below("m/1", model(1)))
        jobs = service.cli("jobs", "--watch", "models")[1]["jobs"]
        assert sorted((job["path"], job["attempts"]) for job in jobs) == [("m/1/model.bin", 1), ("m/1/model.xml", 0)]
        service.stop()


def test_what_the_bucket_does_not_list_any_more_stays_or_goes_after_its_time(home: Home, bucket: Bucket) -> None:
    for number in (1, 2, 3, 10):
        put_model(bucket, f"m/{number}", model(number))
    put(bucket, "m/readme", b"text")
    once(home, config(home, bucket))
    remove(bucket, "m/1/model.bin", "m/2/model.xml", "m/2/model.bin", "m/readme")
    _, said, _ = once(home, config(home, bucket))
    everything = set(released(home))
    assert {"m/1/model.bin", "m/2/model.xml", "m/readme"} <= everything
    assert "gone upstream" in said["waiting"]["m/1"]
    once(home, config(home, bucket, 'on_delete = "remove"\ndelete_grace = "1h"'))
    assert set(released(home)) == everything
    once(home, config(home, bucket, 'on_delete = "remove"\ndelete_grace = "0s"\nkeep_versions = 2'))
    assert set(released(home)) == {f"m/{n}/{name}" for n in (3, 10) for name in model(1)}
    assert (place(home) / "m").is_dir()


def test_a_disk_that_is_nearly_full_is_not_filled(home: Home, bucket: Bucket) -> None:
    put_model(bucket, "m/1", model(1))
    code, said, _ = once(home, config(home, bucket, 'disk_free = "900TiB"'))
    assert code == 1
    assert "must stay free" in said["waiting"]["m/1"]
    assert released(home) == {}


def test_hostile_names_come_nowhere(home: Home, bucket: Bucket) -> None:
    outside = home.folder / "outside"
    outside.mkdir()
    put_model(bucket, "good/1", model(1))
    for key in ("evil/1/%2e%2e/%2e%2e/x", "evil/1/ok", ".qm-mirror-models/objects/x/y",
                "nul/1/a%00b", "file/1", "file/1/x", "link/1/x"):  # fmt: skip
        put(bucket, key, b"hostile")
    (place(home) / "link").symlink_to(outside)
    code, said, _ = once(home, config(home, bucket))
    assert released(home) == below("good/1", model(1))
    assert list(outside.iterdir()) == []
    assert code == 1  # the link is in the way of a version
    assert "evil/1" in said["refused"]


def test_what_somebody_else_put_there_is_left_alone(home: Home, bucket: Bucket) -> None:
    (place(home) / "m/1").mkdir(parents=True)
    (place(home) / "m/1/own.txt").write_bytes(b"mine")
    put_model(bucket, "m/1", model(1))
    put_model(bucket, "m/2", model(2))
    code, said, _ = once(home, config(home, bucket))
    assert code == 1
    assert "quaymaster did not put it there" in said["waiting"]["m/1"]
    assert released(home) == {"m/1/own.txt": b"mine", **below("m/2", model(2))}


def test_after_its_state_is_lost_a_mirror_knows_its_own_by_its_content(home: Home, bucket: Bucket) -> None:
    put_model(bucket, "m/1", model(1))
    once(home, config(home, bucket))
    before = (place(home) / "m/1").stat().st_ino
    (home.folder / "state").rename(home.folder / "lost")
    code, said, _ = once(home, config(home, bucket))
    assert (code, said["released"]) == (0, 1)
    assert (place(home) / "m/1").stat().st_ino == before
    (place(home) / "m/1/model.bin").unlink()
    (place(home) / "m/1/model.xml").unlink()
    (place(home) / "m/1").rmdir()
    assert once(home, config(home, bucket))[0] == 0
    assert released(home) == below("m/1", model(1))


def test_a_model_that_lands_on_one_host_is_released_on_another(
    home: Home, bucket: Bucket, serve: Callable[..., Service], tmp_path: Path
) -> None:
    landed = {"model.xml": b"<net/>" * 100, "model.bin": os.urandom(MIB) + bytes(12 * MIB)}
    sender = Home(tmp_path / "sender")
    upload = 'key = "{path}"\ncompress = { format = "zstd", level = 1, min_size = "1KiB" }'
    sending = Service(sender.config(upload, bucket.destination()), sender.folder)
    with sending:
        for name, content in landed.items():
            sender.land(f"resnet/7/{name}", content)
        sending.until_done(len(landed))
    assert "resnet/7/model.bin.zst" in bucket.objects()
    receiver = serve(config(home, bucket, 'require_proof = true\non_release = ["/bin/cat"]'))
    until_released(home, below("resnet/7", landed))
    code, said = receiver.cli("jobs", "--watch", "models")
    assert code == 0
    number = next(job["id"] for job in said["jobs"] if job["path"].endswith("model.bin.zst"))
    entry = json.loads(receiver.cli("jobs", str(number))[1]["history"][-1]["body"])
    assert entry["kind"] == "downloaded"
    assert entry["sha256"] == hashlib.sha256(landed["model.bin"]).hexdigest()
    assert (entry["evidence"], entry["compression"]) == ("quaymaster-sha256", "zstd")


def test_prove_tells_what_a_released_file_came_from_and_whether_it_is_still_that(home: Home, bucket: Bucket) -> None:
    put_model(bucket, "m/1", model(1) | {"SHA256SUMS": _sums(model(1))})
    text = config(home, bucket)
    assert once(home, text)[0] == 0
    service, file, evidence = Service(text, home.folder), place(home) / "m/1/model.bin", home.folder / "evidence"
    content = file.read_bytes()
    code, said = service.cli("prove", str(file))
    assert (code, said["here"], said["fault"]) == (0, "same", "")
    (download,) = said["downloads"]
    etag, sha256 = hashlib.md5(content).hexdigest(), hashlib.sha256(content).hexdigest()
    assert download | {"key": "m/1/model.bin", "etag": etag, "sha256": sha256, "evidence": "crc32"} == download
    told = [json.loads(entry["body"]) for entry in said["custody"]]
    assert [entry["kind"] for entry in told] == ["downloaded", "released"]
    assert told[1]["files"]["m/1/model.bin"] == sha256
    shown = service.command("prove", str(file), "--bundle", str(evidence))
    assert "as m/1" in shown.stdout
    assert "read again now: the same SHA-256" in shown.stdout
    checked = subprocess.run(["sh", str(evidence / "check.sh"), str(file)], capture_output=True, text=True, check=True)
    assert "is in the record" in checked.stdout
    file.write_bytes(content[:-1] + b"?")
    assert service.cli("prove", str(file))[1]["here"] == "changed"
    changed = service.command("prove", str(file))
    assert (changed.returncode, "is not what was released" in changed.stderr) == (3, True)
    file.unlink()
    assert service.cli("prove", str(file))[1]["here"] == "absent"
    nothing = service.command("prove", str(place(home) / "m/1/other"))
    assert (nothing.returncode, "was not downloaded" in nothing.stderr) == (1, True)


def test_the_api_tells_of_a_mirrored_file_what_prove_tells(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    put_model(bucket, "m/1", model(1) | {"SHA256SUMS": _sums(model(1))})
    (port,) = free_ports(1)
    api = f'[api]\nlisten = "127.0.0.1:{port}"\nsocket = {quoted(home.folder / "api.sock")}'
    service = serve(config(home, bucket, watch=api))
    until_released(home, below("m/1", model(1)))

    def asked(route: str, path: Path) -> dict[str, Any]:
        with urlopen(f"http://127.0.0.1:{port}/api/v1/{route}?{urlencode({'path': path})}", timeout=60) as answer:
            said: dict[str, Any] = json.load(answer)
            return said

    file = place(home) / "m/1/model.bin"
    proven = service.cli("prove", str(file))[1]
    told = asked("files", file)
    assert told == {"why": None, "prove": proven | {"here": "untouched", "chain_checked": False}}
    schema = {"$ref": "#/components/schemas/File", "components": openapi.document()["components"]}
    jsonschema_rs.validate(schema, told)
    (job,) = asked("jobs", file)["jobs"]
    assert (job["watch"], job["path"]) == ("models", "m/1/model.bin")
    assert len(asked("jobs", place(home) / "m")["jobs"]) == 3
    os.utime(file)
    assert asked("files", file)["prove"]["here"] == "same"
    file.write_bytes(b"?" * file.stat().st_size)
    assert asked("files", file)["prove"]["here"] == "changed"
    file.unlink()
    assert asked("files", file)["prove"]["here"] == "absent"
    directory = asked("files", file.parent)["prove"]
    assert (directory["here"], directory["downloads"]) == ("directory", [])
    why = service.command("why", str(file))
    assert (why.returncode, "it is in the mirror models" in why.stderr) == (1, True)


# -- OpenVINO Model Server --


def test_the_model_server_is_told_and_a_version_that_it_refuses_is_taken_back(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    def load(directory: str) -> bytes:
        content = Path(directory, "model.xml").read_bytes()
        if b"broken" in content:
            raise ValueError("Cannot parse the model")
        return content

    listed = home.folder / "config.json"
    listed.write_text(
        '{\n  "model_config_list": [\n    {"config": {"name": "own", "base_path": "/own", "nireq": 4}}\n  ]\n}'
    )
    listed.chmod(0o640)
    before = listed.read_text()
    put_model(bucket, "team/m/1", model(1))
    with ModelServer(str(listed), load) as server:
        more = f'ovms_config = {quoted(listed)}\novms_url = "{server.url}"\novms_timeout = "5s"\nkeep_old = "1h"'
        service = serve(config(home, bucket, more))
        until(lambda: server.objects.get("team-m") == model(1)["model.xml"], 60, "the server serves version 1")
        entry = {"config": {"name": "team-m", "base_path": f"{place(home)}/team/m"}}
        assert json.loads(listed.read_text())["model_config_list"][1] == entry
        assert (listed.read_text().startswith(before[:80]), listed.stat().st_mode & 0o777) == (True, 0o640)
        put_model(bucket, "team/m/2", {"model.xml": b"broken"})
        told = until(lambda: service.cli("mirror")[1]["mirrors"][0]["quarantined"].get("team/m/2"))
        assert "Cannot parse the model" in told
        assert set(released(home)) == set(below("team/m/1", model(1)))
        assert hidden(home, "quarantine") == ["team%2Fm%2F2"]
        until(lambda: server.loaded["team-m"].get(1, ("", ""))[0] == "AVAILABLE", 60, "version 1 is served again")
        put_model(bucket, "team/m/1", {"model.xml": b"broken too"})
        until(lambda: "team/m/1" in service.cli("mirror")[1]["mirrors"][0]["quarantined"])
        assert released(home) == below("team/m/1", model(1))
        until(lambda: server.objects.get("team-m") == model(1)["model.xml"], 60, "what was put back is served")
        put_model(bucket, "team/m/2", {"model.xml": b"<repaired/>"})
        until(lambda: server.objects.get("team-m") == b"<repaired/>", 60, "what was mended upstream is served")


def test_a_server_that_is_down_is_told_later_and_a_broken_config_is_left_alone(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    listed = home.folder / "config.json"
    listed.write_text('{"model_config_list": [')
    put_model(bucket, "m/1", model(1))
    put(bucket, "m/latest/x", b"no number")
    port = free_ports(1)[0]
    more = f'ovms_config = {quoted(listed)}\novms_url = "http://127.0.0.1:{port}"'
    service = serve(config(home, bucket, more))
    until_released(home, below("m/1", model(1)))
    told = until(lambda: service.cli("mirror")[1]["mirrors"][0]["server"])
    assert "config.json is broken" in told
    assert listed.read_text() == '{"model_config_list": ['
    listed.write_text('{"model_config_list": []}')
    until(lambda: "does not answer" in service.cli("mirror")[1]["mirrors"][0]["server"])
    assert released(home) == below("m/1", model(1))
    assert [e["config"]["name"] for e in json.loads(listed.read_text())["model_config_list"]] == ["m"]


# -- SIGKILL --


def _killed(home: Home, text: str, step: str, when: str, steps: Path) -> bool:
    service = Service(text, home.folder)
    here = str(Path(__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "system.killed_at", str(steps), step, when, "mirror", "--once", "--config",
         str(service.config_file)],
        env={**service.environment, "PYTHONPATH": here}, capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode in (-9, 0, 1), done.stderr.decode()
    return done.returncode == -9


def _campaign(home: Home, bucket: Bucket, choose: Callable[[list[str]], list[str]]) -> int:
    """Killed at a step, in a mirror that has a new version, a changed one and one that goes; then it goes on."""
    text = config(home, bucket, 'on_delete = "remove"\ndelete_grace = "0s"\nkeep_old = "0s"\nkeep_versions = 2')
    steps, kills = home.folder / "steps", 0
    bucket_holds: dict[str, bytes] = {}

    def publish(round_: int) -> dict[str, bytes]:
        files = {f"m/{round_}/{name}": data for name, data in model(round_).items()}
        files |= {"same/1/" + name: data for name, data in model(round_).items()} | {"note": b"%d" % round_}
        for key, content in files.items():
            put(bucket, key, content)
        bucket_holds.update(files)
        keep = {f"m/{n}" for n in (round_, round_ - 1)}
        return {k: v for k, v in bucket_holds.items() if not k.startswith("m/") or k.rpartition("/")[0] in keep}

    publish(1)
    assert not _killed(home, text, "", "", steps)
    publish(2)
    assert not _killed(home, text, "", "", steps)
    for round_, step in enumerate(choose(steps.read_text().splitlines()), start=3):
        wanted = publish(round_)
        for when in ("before", "after"):
            kills += _killed(home, text, step, when, steps)
            for unit in {path.rpartition("/")[0] for path in released(home)} - {""}:
                seen = {p: c for p, c in released(home).items() if p.startswith(unit + "/")}
                assert len({c[-1] if p.endswith("bin") else int(c[14:-3]) for p, c in seen.items()}) == 1, (step, seen)
                assert len(seen) == 2, (step, when, seen.keys())
        code, said, errors = once(home, text)
        assert code == 0, (step, said, errors)
        assert released(home) == wanted, step
        assert (hidden(home, "objects"), hidden(home, "assembly")) == ([], []), step
    return kills


def test_a_kill_at_any_step_loses_and_mixes_nothing(home: Home, bucket: Bucket) -> None:
    assert _campaign(home, bucket, lambda steps: [s for s in steps if s.startswith("renameat2")][:2]) >= 2


def test_a_version_whose_release_was_cut_off_does_not_stay_beside_newer_ones(home: Home, bucket: Bucket) -> None:
    text, steps = config(home, bucket, "keep_versions = 1"), home.folder / "steps"
    versions = [model(number) | {"SHA256SUMS": _sums(model(number))} for number in range(4)]
    put_model(bucket, "m/1", versions[1])
    assert not _killed(home, text, "", "", steps)
    step = next(step for step in steps.read_text().splitlines() if step.startswith("renameat2"))
    put_model(bucket, "m/2", versions[2])
    assert _killed(home, text, step, "after", steps)
    assert released(home) == below("m/1", versions[1]) | below("m/2", versions[2])
    put_model(bucket, "m/3", versions[3])
    for _ in range(2):
        assert once(home, text)[0] == 0
        assert released(home) == below("m/3", versions[3])
    assert (hidden(home, "objects"), hidden(home, "assembly")) == ([], [])


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_kill_at_every_step_loses_and_mixes_nothing(home: Home, bucket: Bucket) -> None:
    kills = _campaign(home, bucket, lambda steps: sorted(set(steps)))
    print(f"{kills} kills")
    assert kills >= 30


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_200_kills_at_random_instants_lose_and_mix_nothing(home: Home, bucket: Bucket) -> None:
    print(_killed_at_random(home, bucket, 200))


def _killed_at_random(home: Home, bucket: Bucket, kills: int) -> str:
    """The service is killed again and again while a version is exchanged, others come, and older ones go, and a reader
    looks all the while."""
    chance = random.Random(9)
    text = config(home, bucket, 'interval = "100ms"\nkeep_old = "30s"\nkeep_versions = 3')
    service, seen, files = Service(text, home.folder), 0, model(0)
    put_model(bucket, "same/1", files | {"SHA256SUMS": _sums(files)})
    assert once(home, text)[0] == 0
    reader = _Reader(place(home) / "same/1", 0.05)
    for number in range(1, kills + 1):
        files = model(number, chance.randrange(1, 2 * MIB))
        for unit in ("same/1", f"new/{number}"):
            put_model(bucket, unit, files | {"SHA256SUMS": _sums(files)})
        before = hidden(home, "objects"), hidden(home, "assembly")
        with service.log_file.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "quaymaster", "run", "--config", str(service.config_file)],
                env=service.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        if number % 2:  # in the middle of its work, however long it took to come to it
            until(lambda before=before: before != (hidden(home, "objects"), hidden(home, "assembly")), 120)  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.4))
        else:
            time.sleep(chance.uniform(0.6, 3.0))
        process.kill()
        process.wait()
        found = released(home)
        for unit in {path.rpartition("/")[0] for path in found}:
            whole = {path.rpartition("/")[2]: content for path, content in found.items() if path.startswith(unit + "/")}
            assert whole.pop("SHA256SUMS") == _sums({name: whole[name] for name in files}), unit
            seen += 1
    with service:
        wanted = below("same/1", files)
        for number in range(kills - 2, kills + 1):
            wanted[f"new/{number}/model.xml"] = model(number)["model.xml"]
        until_released(home, wanted)
        until(lambda: len([path for path in released(home) if path.startswith("new/")]) == 9, 60)
        until(lambda: (hidden(home, "objects"), hidden(home, "assembly")) == ([], []), 60)
    assert service.cli("audit", "verify")[0] == 0
    return f"{kills} kills, {seen} versions looked at, {reader.end()} readings while they were exchanged"


def told_by(home: Home, events: str) -> tuple[str, Callable[[], set[tuple[str, str]]]]:
    """A hook that is told of the mirror alone, and what it was told."""
    told = home.folder / "told"

    def found() -> set[tuple[str, str]]:
        said = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
        assert {event["mirror"] for event in said} <= {"models"}
        return {(event["event"], event.get("path", "")) for event in said}

    script = f"cat >> {told}; echo >> {told}"
    hook = f'[hook.its]\non = {events}\nwatches = ["models"]\ncommand = ["/bin/sh", "-c", "{script}"]\nparallel = 1\n'
    return hook, found


def test_hooks_that_name_a_mirror_are_told_of_what_it_released_and_did_not_take(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    hook, told = told_by(home, '["integrity-failure", "parked", "released"]')
    put(bucket, "bad/1/SHA256SUMS", f"{'0' * 64}  model.bin\n".encode())
    put(bucket, "bad/1/model.bin", b"other bytes")
    put_model(bucket, "good/1", model(1))
    service = serve(config(home, bucket, watch=hook))
    wanted = {("parked", "bad/1"), ("integrity-failure", "bad/1"), ("released", "good/1")}
    until(lambda: told() == wanted, 60)
    service.stop()


@pytest.mark.soak
def test_hooks_that_name_a_mirror_are_told_of_its_outage_and_its_end(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    hook, told = told_by(home, '["outage", "recovered"]')
    service = serve(config(home, bucket, watch=hook))
    os.rename(place(home), home.folder / "away")
    until(lambda: told() == {("outage", "")}, 60)
    os.rename(home.folder / "away", home.folder / "models")
    until(lambda: told() == {("outage", ""), ("recovered", "")}, 60)
    service.stop()
