"""The moving of bytes, client side, against a sink that keeps nothing, in another process (sink.py).

1 GiB in one file over http and https, 2,000 objects of 16 KiB, and the same with 30 ms before each answer: quaymaster's
S3 destination beside boto3 as it comes and s5cmd. For those in Python the time of sending is counted, without that of
starting; for s5cmd that of the command. The sink runs on the same CPUs, so the client's own CPU is printed beside each.

    moving   what the goals are for: reading the files, handing their bytes to the upload, the checksum of each request
             that the server is to check, a condition against overwriting, and the proof by what it tells afterwards.
             The SHA-256 of the content is known before; what that costs is measured in bench_codec.py.
    whole    the same, with the SHA-256 of the content made on the way. The peers make none.

Both with each digest that a destination can be told to prefer (``checksum``). The goal of the large file is for
CRC-64/NVME: what is moved with SHA-256 is hashed by definition, and cannot be faster than that.

Over https the goals lie beyond what two CPUs can do that the sink shares: two threads that only read the file and send
it through Python's ssl, without any checksum, took 1.17 s where quaymaster took 1.22, s5cmd 2.26 and boto3 3.08, and
0.96 without reading. Neither another cipher nor more connections made that clearly shorter.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.data import MIB, make, noise
from bench.harness import RESULTS, Result, workspace
from bench.peers import Cost, Meter, peer, until
from servers.ports import free_ports
from servers.tls import Authority

OBJECTS, SIZE, LARGE = 2_000, 16 << 10, 1024 * MIB
ROUNDS = 3
HERE = Path(__file__).resolve().parent.parent
KEYS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_REGION": "us-east-1"}
ENVIRONMENT = {**os.environ, **KEYS, "PYTHONPATH": str(HERE)}


@contextmanager
def sink(*options: str) -> Iterator[str]:
    """A sink; yields its endpoint."""
    (port,) = free_ports(1)
    process = subprocess.Popen([sys.executable, "-m", "bench.sink", str(port), *options], env=ENVIRONMENT)
    try:
        until(lambda: _listens(port), 30)
        yield f"{'https' if '--certificate' in options else 'http'}://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    import socket

    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class Race:
    """One case: its sides in turn, and what each took."""

    def __init__(self, name: str, amount: float, unit: str, meter: Meter) -> None:
        self.name, self.amount, self.unit, self.meter = name, amount, unit, meter
        self.seconds: dict[str, list[float]] = {}

    def client(self, side: str, case: str, endpoint: str, path: Path, ca: str | None) -> Callable[[], None]:
        command = [sys.executable, "-m", "bench.wire_client", side, case, endpoint, str(path), *([ca] if ca else [])]
        what, _, checksum = side.partition("-")
        name = "boto3 default" if side == "boto3" else f"quaymaster, {what}, {checksum}"

        def run() -> None:
            done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True, timeout=600)
            seconds, cpu, peak = done.stdout.split()
            self.seconds.setdefault(name, []).append(float(seconds))
            self.meter.costs.setdefault(name, Cost()).add(float(cpu), int(peak))

        return run

    def s5cmd(self, command: list[str]) -> Callable[[], None]:
        def run() -> None:
            began = time.perf_counter()
            self.meter.command("s5cmd", command, KEYS)
            self.seconds.setdefault("s5cmd", []).append(time.perf_counter() - began)

        return run

    def judge(self, goals: dict[str, float], first: str) -> bool:
        """Each goal is for the ``first`` of ours, beside which all are printed."""
        median = {side: statistics.median(times) for side, times in self.seconds.items()}
        print(f"\n{self.name}")
        good = True
        for side, seconds in median.items():
            ratio, goal = seconds / median[first], goals.get(side, 0.0)
            line = f"  {side:<34} {seconds:7.3f} s {self.amount / seconds:9.1f} {self.unit}"
            if not side.startswith("quaymaster"):
                result = Result(f"{self.name} / {side}", ratio, goal)
                RESULTS.append(result)
                good = good and (not goal or result.reached)
                said = f"  goal {goal:.2f}  {'reached' if result.reached else 'MISSED'}" if goal else ""
                line += f"   {ratio:5.2f} x{said}"
            print(line)
        self.meter.print()
        return good


OURS = ("moving-crc64nvme", "moving-sha256", "whole-crc64nvme", "whole-sha256")


def large(path: Path, endpoint: str, goals: dict[str, float], ca: str | None = None) -> bool:
    kind = "https" if ca else "http"
    race = Race(f"1 GiB over {kind}", LARGE / 1e6, "MB/s", Meter(1.0, "GiB"))
    runs = [race.client(side, "large", endpoint, path, ca) for side in (*OURS, "boto3")]
    if tool := peer("s5cmd"):
        options = ["--no-verify-ssl"] if ca else []
        runs.append(race.s5cmd([tool, *options, "--endpoint-url", endpoint, "cp", str(path), "s3://bench/large"]))
    return _in_turn(race, runs, goals, "quaymaster, moving, crc64nvme")


def small(path: Path, endpoint: str, name: str, goals: dict[str, float]) -> bool:
    race = Race(f"{OBJECTS:,} objects of 16 KiB{name}", OBJECTS, "objects/s", Meter(OBJECTS * SIZE / 2**30, "GiB"))
    runs = [race.client(side, "small", endpoint, path, None) for side in ("moving-sha256", "whole-sha256", "boto3")]
    if tool := peer("s5cmd"):
        runs.append(race.s5cmd([tool, "--endpoint-url", endpoint, "cp", f"{path}/", "s3://bench/small/"]))
    return _in_turn(race, runs, goals, "quaymaster, moving, sha256")


def _in_turn(race: Race, runs: list[Callable[[], None]], goals: dict[str, float], first: str) -> bool:
    for turn in range(ROUNDS):
        for run in runs if turn % 2 == 0 else reversed(runs):
            run()
    return race.judge(goals, first)


def main() -> bool:
    good = []
    with workspace() as folder:
        many = folder / "many"
        many.mkdir()
        content = make(folder / "content", noise, OBJECTS * SIZE).read_bytes()
        for number in range(OBJECTS):
            (many / f"{number:05}.dat").write_bytes(content[number * SIZE : (number + 1) * SIZE])
        with sink() as endpoint:
            good.append(small(many, endpoint, "", {"boto3 default": 14.0, "s5cmd": 1.8}))
        with sink("--latency", "0.03") as endpoint:
            good.append(small(many, endpoint, ", 30 ms before each answer", {"s5cmd": 0.85}))
        path = make(folder / "large", noise, LARGE)
        with sink() as endpoint:
            good.append(large(path, endpoint, {"boto3 default": 8.0, "s5cmd": 3.0}))
        authority = Authority(str(folder / "tls"))
        with sink("--certificate", authority.cert_file, "--key", authority.key_file) as endpoint:
            good.append(large(path, endpoint, {"boto3 default": 2.8, "s5cmd": 2.2}, authority.ca_file))
    return all(good)


if __name__ == "__main__":
    raise SystemExit(not main())
