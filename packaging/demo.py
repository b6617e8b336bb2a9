"""``make demo``: the service at work on real files, in a throwaway directory.

Starts ``quaymaster run``, lands files the way instruments and people do (whole, in a tree, with awkward names, empty,
slowly), and checks every copy with means of its own: it expands what arrived and compares SHA-256 with the source.
Exits 0 only if all of them arrived proven in time and the service stopped cleanly. DEMO_CLEAN=1 removes the directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

PATIENCE = 45.0
"""Seconds that the service may take to be ready, and again until every file must have arrived."""
SLOW_WRITER = 3.0
"""Seconds that the slow writer takes."""

CONFIG = """\
[service]
state_dir   = "{directory}/state"
staging_dir = "{directory}/staging"

[api]
socket = "{directory}/api.sock"

[destination.archive]
type = "directory"
path = "{directory}/archive"

[watch.landing]
path = "{directory}/landing"
destinations = ["archive"]
key = "{{path}}"
settle = "1s"
poll_interval = "1s"
compress = {{ format = "zstd", min_size = "1MiB" }}
"""


class DemoFailed(Exception):
    """What went wrong, in one line."""


def say(text: str = "") -> None:
    print(text, flush=True)


def size_text(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size} B"


def fastq(reads: int, seed: int) -> bytes:
    """Sequencing reads as an instrument writes them: some 250 bytes each, compressible about as well as real ones."""
    source = random.Random(seed)
    bases = bytes(b"ACGT"[n % 4] for n in range(256))
    qualities = bytes(b"FFFFFFFFFFFFF:,#"[n % 16] for n in range(256))
    lines = []
    for number in range(reads):
        sequence = source.randbytes(101).translate(bases)
        quality = source.randbytes(101).translate(qualities)
        lines.append(b"@DEMO:42:FLOWCELL:1:%d:%d\n%b\n+\n%b\n" % (1101 + number // 10_000, number, sequence, quality))
    return b"".join(lines)


class Landing:
    """The watched directory; which files land in it, and when (seconds since the epoch) each was whole."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names: list[str] = []
        self.whole_at: dict[str, float] = {}

    def write(self, name: str, content: bytes) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.names.append(name)
        path.write_bytes(content)
        self._is_whole(name)

    def write_slowly(self, name: str, content: bytes, seconds: float) -> threading.Thread:
        """Begins to write; the thread returned ends when the file is whole."""
        self.names.append(name)
        thread = threading.Thread(target=self._append_pieces, args=(name, content, seconds), daemon=True)
        thread.start()
        return thread

    def _append_pieces(self, name: str, content: bytes, seconds: float) -> None:
        pieces = 12
        step = -(-len(content) // pieces)
        with (self.directory / name).open("wb", buffering=0) as file:
            for start in range(0, len(content), step):
                file.write(content[start : start + step])
                time.sleep(seconds / pieces)
        self._is_whole(name)

    def _is_whole(self, name: str) -> None:
        self.whole_at[name] = time.time()
        say(f"landed     {name}  ({size_text((self.directory / name).stat().st_size)})")


def land_everything(landing: Landing) -> threading.Thread:
    """Lands all files but one, and returns the thread that still writes that one."""
    say(f"slow       growing.fastq is being written for {SLOW_WRITER:.0f} s: it must not be taken before it is whole")
    slow = landing.write_slowly("growing.fastq", fastq(12_000, seed=7), SLOW_WRITER)
    landing.write("run42/sample 1.fastq", fastq(83_000, seed=42))
    tree = Path(json.__file__).parent
    for source in sorted(tree.glob("*.py")):
        landing.write(f"tree/{source.name}", source.read_bytes())
    landing.write("Übersicht – März 日本.csv", b"Probe;Konzentration\nA1;12,5\n")
    landing.write("empty.flag", b"")
    return slow


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's content, expanded if it is a zstd copy."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file) if path.suffix == ".zst" else file
        while piece := reader.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


class Service:
    """``quaymaster run`` as a child; its lines appear with a prefix."""

    def __init__(self, command: list[str], config: Path) -> None:
        self._command = command
        self._config = config
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("QUAYMASTER_")}

    @contextmanager
    def running(self, patience: float) -> Iterator[subprocess.Popen[bytes]]:
        """The service from the moment it says that it is ready. Raises DemoFailed if it does not in time."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as endpoint:
            address = f"quaymaster-demo-{os.getpid()}-{self._config.parent.name}"
            endpoint.bind("\0" + address)  # an abstract name: a path could be too long for a socket
            process = subprocess.Popen(
                [*self._command, "run", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**self._environment, "NOTIFY_SOCKET": f"@{address}"},
            )
            ready, ended = threading.Event(), threading.Event()
            threads = [
                threading.Thread(target=show_lines, args=(process,)),
                threading.Thread(target=listen, args=(endpoint, ready, ended)),
            ]
            for thread in threads:
                thread.start()
            try:
                await_ready(process, ready, patience)
                yield process
            finally:
                process.kill()  # does nothing to one that has ended
                process.wait()
                ended.set()
                for thread in threads:
                    thread.join()

    def ask(self, *arguments: str) -> str:
        """What a command prints. Raises DemoFailed with its message when it fails."""
        done = subprocess.run(
            [*self._command, *arguments, "--config", str(self._config)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            env=self._environment,
        )
        if done.returncode:
            message = done.stderr.decode(errors="backslashreplace").strip()
            raise DemoFailed(f"quaymaster {' '.join(arguments)} exited with status {done.returncode}: {message}")
        return done.stdout.decode(errors="backslashreplace")


def show_lines(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            say("  quaymaster | " + line.decode(errors="backslashreplace").rstrip())


def listen(endpoint: socket.socket, ready: threading.Event, ended: threading.Event) -> None:
    """Takes what the service tells systemd, as sd_notify(3) has it, until it has ended."""
    endpoint.settimeout(0.1)
    while not ended.is_set():
        try:
            if b"READY=1" in endpoint.recv(4096):
                ready.set()
        except TimeoutError:
            continue


def await_ready(process: subprocess.Popen[bytes], ready: threading.Event, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not ready.wait(0.05):
        still_runs(process)
        if time.monotonic() > deadline:
            raise DemoFailed(f"the service was not ready within {patience:g} s")


def still_runs(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise DemoFailed(f"the service ended by itself, with exit status {process.returncode}: see its lines above")


def await_arrivals(landing: Landing, archive: Path, process: subprocess.Popen[bytes], patience: float) -> None:
    """Returns when every landed file has a copy in the archive with the same content; shows each as it comes."""
    missing = list(landing.names)
    deadline = time.monotonic() + patience
    while missing:
        for name in list(missing):
            copy = next((c for c in (archive / name, archive / f"{name}.zst") if c.exists()), None)
            if copy is not None:
                if name not in landing.whole_at:
                    raise DemoFailed(f"{copy} is there while {name} is still being written: it was taken half-written")
                show_arrival(name, landing.directory / name, copy, copy.stat().st_ctime - landing.whole_at[name])
                missing.remove(name)
        still_runs(process)
        if time.monotonic() > deadline:
            raise DemoFailed(f"not arrived within {patience:g} s: {', '.join(missing)}")
        time.sleep(0.05)


def show_arrival(name: str, source: Path, copy: Path, seconds: float) -> None:
    expected, found = sha256_of(source), sha256_of(copy)
    if found != expected:
        raise DemoFailed(f"{copy} does not expand to the bytes of {source}: SHA-256 {found} instead of {expected}")
    sizes = size_text(source.stat().st_size)
    if copy.name != source.name:
        sizes += f" -> {size_text(copy.stat().st_size)} as .zst"
    say(f"arrived    {name}  ({sizes}, {seconds:.1f} s after it was whole)")
    say(f"             SHA-256 {expected}  source = expanded copy")


def await_records(service: Service, landing: Landing, patience: float) -> None:
    """Returns when the ledger's own record of every file names the digest that we computed."""
    deadline = time.monotonic() + patience
    for name in landing.names:
        source = landing.directory / name
        while True:
            try:
                (record,) = json.loads(service.ask("prove", str(source), "--json"))["deliveries"]
                break
            except DemoFailed:  # a copy is visible an instant before its proof is recorded
                if time.monotonic() > deadline:
                    raise
        if record["sha256"] != sha256_of(source):
            raise DemoFailed(f"the ledger's record of {name} has SHA-256 {record['sha256']}, which is not the source's")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        status = process.wait(timeout=40)
    except subprocess.TimeoutExpired:
        raise DemoFailed("the service did not stop within 40 s of SIGTERM") from None
    if status:
        raise DemoFailed(f"the service stopped with exit status {status} after SIGTERM")


def indented(text: str) -> str:
    return "\n".join("  " + line for line in text.rstrip().splitlines())


def run(directory: Path, command: list[str], patience: float = PATIENCE) -> None:
    """The whole demonstration in ``directory``. Raises DemoFailed."""
    for name in ("landing", "archive"):
        (directory / name).mkdir()
    config = directory / "quaymaster.toml"
    config.write_text(CONFIG.format(directory=directory))
    service = Service(command, config)
    landing, archive = Landing(directory / "landing"), directory / "archive"
    shown = landing.directory / "run42/sample 1.fastq"

    say(f"directory  {directory}")
    say(f"start      quaymaster run --config {config}")
    with service.running(patience) as process:
        slow = land_everything(landing)
        await_arrivals(landing, archive, process, patience)
        slow.join()
        await_records(service, landing, patience)
        say(f"\nAll {len(landing.names)} arrived, and the ledger has the proof of each.")
        say("What the service says of itself (quaymaster status):\n")
        say(indented(service.ask("status")))
        say(f"\nAnd what it can prove of one file (quaymaster prove '{shown}'):\n")
        say(indented(service.ask("prove", str(shown))))
        say("\nstop       SIGTERM")
        stop(process)
    say("stopped    exit status 0")


FAREWELL = """
Everything is in {directory}:
  quaymaster.toml   the configuration of this demonstration
  landing/          what landed               archive/   the copies: zstd -d opens those that end in .zst
  state/            queue, ledger and custody log
Go on from here:
  .venv/bin/quaymaster run --config {directory}/quaymaster.toml      and drop files of your own into landing/
  etc/quaymaster.toml is the sample with every setting; copy it to /etc/quaymaster/quaymaster.toml, name your own
  directories and a real bucket in it, and let `quaymaster check` read it. README.md has the rest."""


def main() -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the service ends with us
    directory = Path(tempfile.mkdtemp(prefix="quaymaster-demo-")).resolve()
    clean = os.environ.get("DEMO_CLEAN") == "1"
    try:
        run(directory, [str(Path(sys.executable).parent / "quaymaster")])
    except DemoFailed as problem:
        print(f"demo: failed: {problem}\ndemo: look into {directory}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if clean:
        shutil.rmtree(directory)
    else:
        say(FAREWELL.format(directory=directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
