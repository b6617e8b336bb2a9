"""``make demo`` keeps its word: everything that lands arrives proven, and when something does not, it says so."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import zstandard

DEMO = Path(__file__).resolve().parents[2] / "packaging" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo", DEMO)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run_demo(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEMO)],
        env={**os.environ, "TMPDIR": str(tmp_path), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def stand_in(tmp_path: Path, body: str) -> list[str]:
    """A command in the place of quaymaster, so that a service that fails can be had."""
    script = tmp_path / "stand_in.py"
    script.write_text(body)
    return [sys.executable, str(script)]


def test_everything_that_lands_arrives_with_the_same_bytes(tmp_path: Path) -> None:
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (directory,) = tmp_path.iterdir()
    landed = {p.relative_to(directory / "landing") for p in (directory / "landing").rglob("*") if p.is_file()}
    arrived = {p.relative_to(directory / "archive") for p in (directory / "archive").rglob("*") if p.is_file()}
    arrived = {copy for copy in arrived if copy.parts[0] != ".quaymaster-custody"}
    assert len(landed) >= 8
    assert {Path(str(p).removesuffix(".zst")) for p in arrived} == landed
    for copy in arrived:
        content = (directory / "archive" / copy).read_bytes()
        if copy.suffix == ".zst":
            content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
        source = directory / "landing" / str(copy).removesuffix(".zst")
        assert content == source.read_bytes()
        assert hashlib.sha256(content).hexdigest() in done.stdout
    assert {p.name for p in arrived if p.suffix == ".zst"} == {"growing.fastq.zst", "sample 1.fastq.zst"}
    assert "exit status 0" in done.stdout
    assert str(directory) in done.stdout


def test_the_directory_goes_away_on_request(tmp_path: Path) -> None:
    done = run_demo(tmp_path, DEMO_CLEAN="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []


def test_its_configuration_is_plain_toml_for_any_directory(demo: ModuleType) -> None:
    config = tomllib.loads(demo.CONFIG.format(directory="/tmp/a b"))
    assert config["watch"]["landing"]["path"] == "/tmp/a b/landing"
    assert config["watch"]["landing"]["key"] == "{path}"


READY = """
import os, socket, time
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as endpoint:
    endpoint.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", chr(0), 1))
"""


@pytest.fixture
def hurried(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The demonstration with a slow writer that is quick."""
    monkeypatch.setattr(demo, "SLOW_WRITER", 0.1)
    return demo


def test_a_file_that_does_not_arrive_is_a_failure_that_names_it(hurried: ModuleType, tmp_path: Path) -> None:
    command = stand_in(tmp_path, READY + "time.sleep(600)")
    with pytest.raises(hurried.DemoFailed, match=r"not arrived within 3 s: .*empty\.flag"):
        hurried.run(tmp_path, command, patience=3)


def test_a_service_that_never_gets_ready_is_a_failure(hurried: ModuleType, tmp_path: Path) -> None:
    command = stand_in(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(hurried.DemoFailed, match=r"not ready within 0\.2 s"):
        hurried.run(tmp_path, command, patience=0.2)


def test_a_service_that_ends_by_itself_is_a_failure(hurried: ModuleType, tmp_path: Path) -> None:
    command = stand_in(tmp_path, READY + "raise SystemExit(9)")
    with pytest.raises(hurried.DemoFailed, match="exit status 9"):
        hurried.run(tmp_path, command, patience=20)


def test_a_copy_that_differs_is_a_failure(demo: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"what left")
    (tmp_path / "copy").write_bytes(b"what came")
    with pytest.raises(demo.DemoFailed, match="does not expand to the bytes of"):
        demo.show_arrival("file", tmp_path / "source", tmp_path / "copy", 1.0)


def test_a_record_that_differs_is_a_failure(demo: ModuleType, tmp_path: Path) -> None:
    landing = demo.Landing(tmp_path)
    landing.write("file", b"what landed")
    command = stand_in(tmp_path, """print('{"deliveries": [{"sha256": "00"}]}')""")
    with pytest.raises(demo.DemoFailed, match="the ledger's record of file has SHA-256 00"):
        demo.await_records(demo.Service(command, tmp_path / "unused.toml"), landing, patience=5)


def test_a_copy_of_a_half_written_file_is_a_failure(demo: ModuleType, tmp_path: Path) -> None:
    landing, archive = demo.Landing(tmp_path / "landing"), tmp_path / "archive"
    landing.directory.mkdir()
    archive.mkdir()
    (archive / "growing.fastq.zst").write_bytes(b"too early")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    slow = landing.write_slowly("growing.fastq", b"@" * 1000, seconds=2)
    try:
        with pytest.raises(demo.DemoFailed, match="half-written"):
            demo.await_arrivals(landing, archive, process, patience=20)
    finally:
        process.communicate()
        slow.join()


def test_a_service_that_stops_badly_is_a_failure(demo: ModuleType, tmp_path: Path) -> None:
    command = stand_in(
        tmp_path,
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n",
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(demo.DemoFailed, match="exit status 5"):
            demo.stop(process)
    finally:
        process.kill()
        process.communicate()
