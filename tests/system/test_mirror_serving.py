"""The real OpenVINO runtime loads every released version while versions are exchanged and come and go (PRODUCT M2), and
a mirror that nothing but the environment configures, as in a container beside a model server.

The runtime comes from PyPI, into a virtualenv of its own in the build cache; without it the test is skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from system.bucket import Bucket
from system.conftest import Home
from system.mirroring import config, place, put_model, released, remove, until_released
from system.mishaps import AS_NOBODY, no_nobody
from system.service import COMMAND, Service, until

OPENVINO = "openvino==2026.4.1"
REAL = "rapidocr-openvino==1.4.4"
"""A package that has models in it: what finds, turns and reads lines of text."""
SWAPS, EXCHANGES = 500, 40
READER = str(Path(__file__).parent / "openvino_reader.py")


def runtime() -> str:
    folder = Path(os.environ.get("QUAYMASTER_CACHE", "/var/cache/quaymaster-build")) / "openvino"
    python = folder / "bin/python"
    if not (folder / "ready").exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", OPENVINO], check=True, capture_output=True)
            (folder / "ready").touch()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"{OPENVINO} cannot be installed: {error}")
    return str(python)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_runtime_loads_whole_versions_only_in_500_swaps(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    python, made = runtime(), home.folder / "made"
    subprocess.run([python, READER, "make", str(made), *map(str, range(1, SWAPS + 2))], check=True)

    def publish(number: int) -> dict[str, bytes]:
        files = {name: (made / str(number) / name).read_bytes() for name in ("model.xml", "model.bin")}
        sums = subprocess.run(["sha256sum", *files], cwd=made / str(number), capture_output=True, check=True).stdout
        for unit in ("exchanged/1", f"numbered/{number}"):
            put_model(bucket, unit, files | {"SHA256SUMS": sums})
        return {f"{unit}/{n}": c for n, c in files.items() for unit in ("exchanged/1", f"numbered/{number}")}

    first = publish(1)
    serve(config(home, bucket, 'interval = "50ms"\nkeep_versions = 3\nkeep_old = "20s"'))
    until_released(home, first)
    reader = subprocess.Popen(
        [python, READER, "read", str(place(home) / "exchanged/1"), str(place(home) / "numbered")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    began = time.monotonic()
    for number in range(2, SWAPS + 2):
        wanted = publish(number)
        assert reader.poll() is None
        until(lambda wanted=wanted: all(_is(home, p, c) for p, c in wanted.items()), 60)  # type: ignore[misc]
        if number > 5:
            remove(bucket, *(f"numbered/{number - 5}/{name}" for name in ("model.xml", "model.bin", "SHA256SUMS")))
    out, _ = reader.communicate("", timeout=60)
    said = json.loads(out)
    print(f"{SWAPS} swaps in {time.monotonic() - began:.0f} s, {said['loads']} loads: {said}")
    assert (said["failed"], said["mixed"]) == ([], [])
    assert said["loads"] > SWAPS


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_ready_made_models_are_exchanged_while_the_runtime_works_with_them(
    home: Home, bucket: Bucket, serve: Callable[..., Service]
) -> None:
    python = runtime()
    command = [python, "-m", "pip", "install", "-q", "--no-deps", "--target", str(home.folder / "real"), REAL]
    if (done := subprocess.run(command, capture_output=True, encoding="utf-8")).returncode:
        pytest.skip(f"{REAL} cannot be installed: {done.stderr[-200:]}")
    models = sorted((home.folder / "real").glob("**/*.onnx"))
    told = subprocess.run([python, READER, "tell", *map(str, models)], check=True, capture_output=True)
    digests = json.loads(told.stdout)
    assert len(set(digests)) == len(models) >= 2

    def publish(number: int) -> dict[str, bytes]:
        model, digest = models[number % len(models)], digests[number % len(models)]
        files = {"model.onnx": model.read_bytes(), "digest": digest.encode(), "number": b"%d" % number}
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
        put_model(bucket, "ocr/1", files | {"SHA256SUMS": sums.encode()})
        return {f"ocr/1/{name}": content for name, content in files.items()}

    first = publish(0)
    serve(config(home, bucket, 'interval = "50ms"\nkeep_old = "60s"'))
    until_released(home, first)
    worker = subprocess.Popen(
        [python, READER, "infer", str(place(home) / "ocr/1")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
    )  # fmt: skip
    for number in range(1, EXCHANGES + 1):
        wanted = publish(number)
        assert worker.poll() is None
        until(lambda wanted=wanted: all(_is(home, p, c) for p, c in wanted.items()), 60)  # type: ignore[misc]
    out, _ = worker.communicate("", timeout=120)
    said = json.loads(out)
    sizes = [model.stat().st_size for model in models]
    print(f"{EXCHANGES} swaps of models of {sizes} bytes: {said}")
    assert said["wrong"] == []
    assert said["loads"] >= 5


def _is(home: Home, path: str, content: bytes) -> bool:
    try:
        return (place(home) / path).read_bytes() == content
    except FileNotFoundError:
        return False


def test_a_mirror_needs_nothing_but_an_environment(home: Home, bucket: Bucket) -> None:
    home.open_to_all()
    # As the user nobody where that user can run this interpreter, else as ourselves.
    other, uid = ([], os.getuid()) if no_nobody() else (AS_NOBODY, pwd.getpwnam("nobody").pw_uid)
    folders = {name: home.folder / name for name in ("pod", "pod/state", "pod/cache", "pod/run", "pod/models", "pod/c")}
    for folder in folders.values():
        folder.mkdir()
        os.chown(folder, uid, -1)
    shutil.copy(bucket.credentials, folders["pod/c"] / "models")
    os.chown(folders["pod/c"] / "models", uid, -1)
    environment = {
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
        "STATE_DIRECTORY": str(folders["pod/state"]),
        "CACHE_DIRECTORY": str(folders["pod/cache"]),
        "RUNTIME_DIRECTORY": str(folders["pod/run"]),
        "CREDENTIALS_DIRECTORY": str(folders["pod/c"]),
        "QUAYMASTER_MIRROR_BUCKET": bucket.name,
        "QUAYMASTER_MIRROR_PREFIX": bucket.prefix.rstrip("/"),
        "QUAYMASTER_MIRROR_ENDPOINT_URL": bucket.endpoint,
        "QUAYMASTER_MIRROR_CREDENTIALS": "models",
        "QUAYMASTER_MIRROR_PATH": str(folders["pod/models"]),
        "QUAYMASTER_MIRROR_INTERVAL": "200ms",
        "QUAYMASTER_MIRROR_DISK_FREE": "1MiB",
    }

    def healthy() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*other, *COMMAND, "mirror", "--healthy"], env=environment, cwd="/", capture_output=True, encoding="utf-8"
        )

    put_model(bucket, "m/1", {"model.xml": b"<net/>"})
    assert healthy().returncode != 0
    with (home.folder / "service.log").open("wb") as log:
        process = subprocess.Popen([*other, *COMMAND, "run"], env=environment, cwd="/", stdout=log, stderr=log)
    try:
        until((folders["pod/models"] / "m/1/model.xml").exists, 60, (home.folder / "service.log").read_text())
        until(lambda: healthy().returncode == 0, 60, "healthy")
        assert (folders["pod/models"] / "m/1/model.xml").stat().st_uid == uid
        for key in ("model.xml",):
            remove(bucket, f"m/1/{key}")
        until(lambda: "lists nothing" in healthy().stderr, 60, "the outage is told")
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert released(home) == {}
