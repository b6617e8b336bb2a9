"""People and data that mean harm: links swapped under the reader's nose, secrets that might leak, frames that expand
without end, names and configurations made of noise (PRODUCT W7, X1 to X5)."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zlib_ng import zlib_ng

from quaymaster import keys
from quaymaster.config import Config, load
from quaymaster.errors import ConfigError, IntegrityError
from quaymaster.model import Compression
from quaymaster.pipeline.formats import expand
from servers.seaweed import SECRET_KEY
from system.bucket import Bucket
from system.conftest import Home, content_of, files_below
from system.evidence import sha256
from system.mishaps import NOBODY, is_calm
from system.service import COMMAND, Service, until
from system.swapper import COPIES, KINDS

Serve = Callable[..., Service]
_EXAMPLES = int(os.environ.get("QUAYMASTER_EXAMPLES", "0"))
"""Of each fuzzer, new ones each time; 0: a few, always the same."""
fuzzed = settings(
    deadline=None, suppress_health_check=list(HealthCheck), max_examples=_EXAMPLES or 150, derandomize=not _EXAMPLES
)


# -- links that are swapped while files are taken --


def swap_for(home: Home, serve: Serve, seconds: float) -> None:
    outside, elsewhere = home.folder / "outside", home.folder / "elsewhere"
    (outside / "folder").mkdir(parents=True)
    elsewhere.mkdir()
    secrets = [b"the secret of somebody else\n" * 20, b"the secret in a folder\n" * 20]
    for path, secret in zip((outside / "secret", outside / "folder" / "inside"), secrets, strict=True):
        path.write_bytes(secret)
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
    home.landing.chmod(0o777)
    service = serve(home.config('settle = "0.2s"\nsettle_closed = "0.05s"\nrescan_interval = "1s"'))
    swapper = subprocess.Popen(
        [sys.executable, "-m", "system.swapper", home.landing, elsewhere, outside, "40"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        time.sleep(seconds)  # the longer, the more tries
        swaps, _ = swapper.communicate(b"enough\n", timeout=30)
        until(home.arrived, 30, "what is not swapped for long is taken")
        until(lambda: not [job for job in service.jobs() if job.state in ("queued", "running")], 30, "idle")
    finally:
        swapper.kill()
        swapper.wait()
    service.stop()
    searched = 0
    for root in (home.archive, home.staging, home.folder / "state", service.log_file):
        for path in files_below(os.fsencode(root)) if root.is_dir() else [os.fsencode(root)]:
            content = content_of(path)
            searched += 1
            for secret in secrets:
                assert secret not in content, path
                assert sha256(secret).encode() not in content, path
                assert sha256(secret) != sha256(content), path
    arrived = home.arrived()
    assert all(content.startswith(b"mine: ") for content in arrived.values())
    is_calm(service.log)
    print(
        f"{int(swaps)} swaps of {COPIES * len(KINDS)} names in {seconds:g} s, {len(arrived)} files delivered that were "
        f"never swapped in time, {len(service.lines('link'))} lines about links, {searched} files searched: no secret"
    )


def test_swapped_links_never_lead_to_a_secret(home: Home, serve: Serve) -> None:
    swap_for(home, serve, 10)


@pytest.mark.soak
def test_swapped_links_never_lead_to_a_secret_for_a_minute(home: Home, serve: Serve) -> None:
    swap_for(home, serve, 60)


# -- the secret key --

COMMANDS = (
    ["status"], ["config"], ["check"], ["check", "--destinations"], ["jobs"], ["jobs", "show", "1"], ["why", "{a}"],
    ["prove", "{a}"], ["audit", "verify"], ["audit", "export"], ["audit", "export", "--format", "csv"], ["doctor"],
    ["verify"], ["verify", "--level", "readback"], ["restore", "{a}", "--to", "{to}"], ["jobs", "retry", "--all"],
)  # fmt: skip


def of_process(pid: int) -> Iterator[tuple[str, bytes]]:
    """Command line and environment of a process and its children."""
    for name in ("cmdline", "environ"):
        try:
            yield f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()
        except OSError:
            return
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from of_process(int(child))


def said(service: Service, command: list[str]) -> Iterator[tuple[str, bytes]]:
    """What a command prints, and what others see of it while it runs."""
    process = subprocess.Popen(
        [*COMMAND, *command, "--config", str(service.config_file)],
        env={**service.environment, "QUAYMASTER_DEBUG": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while True:
        yield from of_process(process.pid)
        try:
            output, _ = process.communicate(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        yield " ".join(command), output
        return


def test_the_secret_key_is_nowhere(home: Home, bucket: Bucket, serve: Serve) -> None:
    words = [SECRET_KEY.encode(), SECRET_KEY[::-1].encode(), SECRET_KEY.encode().hex().encode()]
    service = serve(home.config(destinations=bucket.destination()))
    path = os.fsdecode(home.land("a", os.urandom(11 << 20)))
    home.land("taken", b"ours")
    service.until_done(2)
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.prefix + "b", Body=b"theirs")
    home.land("b", b"ours")  # parks: errors are where secrets like to show
    until(lambda: service.lines("Parked"))
    seen: dict[str, bytes] = dict(of_process(service.pid))
    for command in COMMANDS:
        filled = [word.format(a=path, to=home.folder / "to") for word in command]
        for more in ([], ["--json"]):
            seen.update(said(service, [*filled, *more]))
    seen.update(of_process(service.pid))
    right = Path(bucket.credentials).read_text()
    service.stop()
    Path(bucket.credentials).write_text(right.replace("testkey", "otherkey"))
    service.start()
    home.land("c", b"ours")
    until(lambda: service.lines("refuses access"))
    Path(bucket.credentials).write_text(right)
    service.stop()
    seen["log"] = service.log.encode()
    for file in files_below(os.fsencode(home.folder)):
        if file != os.fsencode(bucket.credentials):
            seen[os.fsdecode(file)] = content_of(file)
    for key in bucket.objects(own=True):
        seen[f"object {key}"] = bucket.content(key)
        head = bucket.client.head_object(Bucket=bucket.name, Key=bucket.prefix + key)
        seen[f"metadata of {key}"] = repr(head).encode()
    for where, content in seen.items():
        for word in words:
            assert word not in content, where
    print(f"{len(seen)} outputs, files, objects and processes searched: no secret key")


# -- frames --

CONTENT = b"".join(b"%d a line of a file\n" % n for n in range(3000)) + random.Random(41).randbytes(20_000)


def gzipped(data: bytes) -> bytes:
    member = zlib_ng.compressobj(6, zlib_ng.DEFLATED, 31)
    made: bytes = member.compress(data) + member.flush()
    return made


FRAMES = {
    Compression.ZSTD: zstandard.ZstdCompressor(level=3, write_checksum=True).compress(CONTENT),
    Compression.GZIP: gzipped(CONTENT),
}
edits = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "copy", "put"]), st.floats(0, 1), st.floats(0, 1), st.binary(max_size=9)),
    min_size=1,
    max_size=4,
)


def edited(data: bytes, steps: list[tuple[str, float, float, bytes]]) -> bytes:
    for kind, first, second, put in steps:
        one, other = sorted((int(first * len(data)), int(second * len(data))))
        match kind:
            case "flip" if one < len(data):
                data = data[:one] + bytes([data[one] ^ (1 << int(second * 7))]) + data[one + 1 :]
            case "cut":
                data = data[:one] + data[other:]
            case "copy":
                data = data[:other] + data[one:other] + data[other:]
            case "put":
                data = data[:one] + put + data[one + len(put) :]
    return data


@pytest.mark.parametrize("compression", FRAMES)
@fuzzed
@given(steps=edits, piece=st.integers(1, 5000), size=st.sampled_from([len(CONTENT), 0, 1, 5000, 1 << 40]))
def test_a_mutated_frame_is_its_content_or_an_integrity_error(
    compression: Compression, steps: list[tuple[str, float, float, bytes]], piece: int, size: int
) -> None:
    data = edited(FRAMES[compression], steps)
    pieces = (data[start : start + piece] for start in range(0, len(data), piece))
    made = 0
    try:
        for expanded in expand(pieces, compression, size=size):
            made += len(expanded)
            assert made <= size
    except IntegrityError:
        return
    assert made == size


def bomb(compression: Compression) -> Iterator[bytes]:
    """Zeros without end, one frame."""
    zeros = bytes(1 << 20)
    maker = (
        zstandard.ZstdCompressor(level=1).compressobj()
        if compression is Compression.ZSTD
        else zlib_ng.compressobj(1, zlib_ng.DEFLATED, 31)
    )
    while True:
        if made := maker.compress(zeros):
            yield made


def peak() -> int:
    """Bytes of memory that this process had at most since the peak was reset."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) << 10


@pytest.mark.parametrize("compression", FRAMES)
def test_a_frame_without_end_is_cut_off_at_the_recorded_size(compression: Compression) -> None:
    size, made = 5 << 20, 0
    Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5): the peak begins anew
    before = peak()
    pieces = expand(bomb(compression), compression, size=size)

    def take_all() -> None:
        nonlocal made
        for expanded in pieces:
            made += len(expanded)
            assert made <= size

    with pytest.raises(IntegrityError):
        take_all()
    assert peak() - before < 64 << 20


# -- names and configurations --

names = st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"1"))
paths = st.lists(names.filter(lambda name: name not in (b".", b"..")), min_size=1, max_size=4).map(b"/".join)


@fuzzed
@given(path=paths)
def test_every_path_has_one_key_and_every_key_one_path(path: bytes) -> None:
    key = keys.escape(path)
    key.encode()
    assert keys.unescape(key) == path
    for template in ("{path}", "{watch}/{path}", *(["a/{dir}/{name}"] if b"/" in path else [])):
        made = keys.key_for(template, watch="w", path=path, host="h", suffix=".zst")
        assert keys.path_of(template, made, watch="w", host="h", suffix=".zst") == path


def test_names_of_noise_arrive_as_they_are(home: Home, serve: Serve) -> None:
    chance = random.Random(42)
    landed: dict[bytes, bytes] = {}
    service = serve(home.config())
    for number in range(250):
        noise = bytes(chance.choice([b for b in range(1, 256) if b != 47]) for _ in range(chance.randrange(1, 255)))
        name = (b"d%d/" % (number % 7) if number % 3 else b"") + noise + b"x"  # not the end of a temporary name
        landed[name] = b"%d" % number
        home.land(name, landed[name])
    service.until_done(len(landed), 90)
    assert home.arrived() == landed
    assert all(service.deliveries(name) for name in landed)
    is_calm(service.log)
    print(f"{len(landed)} names of noise arrived")


SHIPPED = (Path(__file__).parents[2] / "etc" / "quaymaster.toml").read_bytes()
UNCOMMENTED = re.sub(rb"(?m)^#(?=[a-z_]+ = |\[)", b"", SHIPPED)
WORDS = [
    b"[", b"]", b"[[", b"=", b'"', b"'''", b"{", b"}", b"-1", b"1e400", b"nan", b"\xff", b"\0", b"9" * 400, b"\n", b".",
    b"true", b"[watch.incoming]", b"[destination.archive]", b"{path}", b"2026-01-01", b"[" * 3000,
]  # fmt: skip


@fuzzed
@given(
    base=st.sampled_from([SHIPPED, UNCOMMENTED]),
    steps=edits,
    words=st.lists(st.tuples(st.floats(0, 1), st.sampled_from(WORDS)), max_size=3),
)
def test_a_mutated_configuration_is_one_or_says_what_is_wrong(
    tmp_path_factory: pytest.TempPathFactory,
    base: bytes,
    steps: list[tuple[str, float, float, bytes]],
    words: list[tuple[float, bytes]],
) -> None:
    data = edited(base, steps)
    for at, word in words:
        data = data[: int(at * len(data))] + word + data[int(at * len(data)) :]
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_bytes(data)
    began = time.process_time()
    problems = ["none"]
    try:
        assert isinstance(load(str(path), {}), Config)
    except ConfigError as error:
        problems = error.problems
    assert problems
    assert all(line.strip() and "\n" not in line for line in problems)
    assert time.process_time() - began < 1
