"""The whole product against a real S3 server (SeaweedFS): land, settle, queue, digest, upload, verify, record.

How the time is counted: for each side from the moment the first file begins to land until the last one is done. Files
land as ``cp -r`` writes them. quaymaster runs as a service, so it sends the first while the last still land, and its
end is the commit that records the last proof. The others are started when the last file has landed and has been left
alone for as long as quaymaster is told to (``settle_closed``, 0.1 s); their end is that of the command.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from bench.data import noise
from bench.harness import RESULTS, Result, compare, workspace
from bench.link import Link
from bench.peers import Meter, peer, until
from quaymaster.store import Store
from servers.seaweed import Seaweed
from system.service import Service

BUCKET, SETTLE = "bench", 0.1
SMALL, SMALL_SIZE = 5_000, 16 << 10
LARGE, LARGE_SIZE = 8, 256 << 20
LINK_SIZE, RATE, LATENCY = 900_000_000, 12e6, 0.03

CONFIG = """
[service]
state_dir = "{folder}/state"
staging_dir = "{folder}/staging"
[limits]
staging_free = "1MiB"
{limits}
[destination.bench]
type = "s3"
bucket = "{bucket}"
prefix = "ours/"
endpoint_url = "{endpoint}"
region = "us-east-1"
credentials = "{folder}/keys"
[watch.landing]
path = "{folder}/landing"
destinations = ["bench"]
key = "{{path}}"
settle_closed = "{settle}s"
settle = "1s"
"""


class Yard:
    """A server, a service of ours that watches a landing, and a tree that lands again and again."""

    def __init__(self, folder: Path, server: Seaweed, tree: Path, files: int, meter: Meter) -> None:
        self.folder, self.server, self.tree, self.files, self.meter = folder, server, tree, files, meter
        self.number = itertools.count()
        self.sent = 0
        self.environment = {
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def land(self, where: str) -> Path:
        target = self.folder / where / f"round-{next(self.number)}"
        subprocess.run(["cp", "-r", str(self.tree), str(target)], check=True)
        return target

    def ours(self, service: Service, store: Store) -> Callable[[], None]:
        def call() -> None:
            self.sent += self.files
            self.meter.during("quaymaster", service.pid, land_and_wait)

        def land_and_wait() -> None:
            self.land("landing")
            until(lambda: store.last_delivery() >= self.sent and not sum(store.open_jobs().values()), 600)

        return call

    def theirs(self, name: str, command: Callable[[Path], list[str]]) -> Callable[[], None]:
        def call() -> None:
            landed = self.land("theirs")
            time.sleep(SETTLE)
            self.meter.command(name, command(landed), self.environment, self.folder)
            shutil.rmtree(landed)

        return call

    def s3(self, name: str, landed: Path) -> str:
        return f"s3://{BUCKET}/{name}-{landed.name}/"


@contextmanager
def yard(
    tree: Path, files: int, meter: Meter, *, link: Link | None = None, limits: str = ""
) -> Iterator[tuple[Yard, Service, Store]]:
    with workspace() as folder, ExitStack() as stack:
        for name in ("landing", "theirs"):
            (folder / name).mkdir()
        server = stack.enter_context(Seaweed(folder / "seaweed"))
        server.make_bucket(BUCKET)
        keys = folder / "keys"
        keys.write_text(f'access_key = "{server.access_key}"\nsecret_key = "{server.secret_key}"\n')
        keys.chmod(0o600)
        endpoint = link.lead_to(server.http_endpoint) if link else server.http_endpoint
        config = CONFIG.format(folder=folder, bucket=BUCKET, endpoint=endpoint, settle=SETTLE, limits=limits)
        service = stack.enter_context(Service(config, folder))
        store = stack.enter_context(closing(Store(str(folder / "state"))))
        yield Yard(folder, server, tree, files, meter), service, store


def made(tree: Path, files: int, size: int, each: int = 100) -> Path:
    """A tree of incompressible files, all different."""
    content = noise()
    piece = b""
    for number in range(files):
        path = tree / f"run{number // each:03}" / f"sample_{number:05}.dat"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            left = size
            while left:
                piece = piece or next(content)
                left -= file.write(piece[:left])
                piece = piece[min(len(piece), size) :] if size < len(piece) else b""
    return tree


def ferry(command: str, yard: Yard) -> Callable[[Path], list[str]]:
    def call(landed: Path) -> list[str]:
        store = {
            "url": f"s3://{BUCKET}/ferry-{landed.name}/", "endpoint": yard.server.http_endpoint, "region": "us-east-1",
            "options": {
                "aws_access_key_id": yard.server.access_key, "aws_secret_access_key": yard.server.secret_key,
                "aws_allow_http": "true",
            },
        }  # fmt: skip
        pipeline = {
            "name": "bench", "root": str(landed), "prefix": "raw", "destinations": ["weed"], "unit": {"dirs": "*"},
            "settle": f"{SETTLE * 1000:.0f}ms", "unit_idle": f"{SETTLE * 1000:.0f}ms", "upload": "file",
            "mode": "stream",
        }  # fmt: skip
        state = str(yard.folder / f"ferry-{landed.name}")
        path = yard.folder / f"ferry-{landed.name}.yaml"
        path.write_text(json.dumps({"state_dir": state, "stores": {"weed": store}, "pipelines": [pipeline]}))
        return [command, "run", "--config", str(path)]

    return call


def s5cmd(command: str, yard: Yard) -> Callable[[Path], list[str]]:
    options = ["--endpoint-url", yard.server.http_endpoint]
    return lambda landed: [command, *options, "cp", f"{landed}/", yard.s3("s5cmd", landed)]


def aws(command: str, yard: Yard) -> Callable[[Path], list[str]]:
    options = ["--endpoint-url", yard.server.http_endpoint, "s3", "cp", "--recursive", "--quiet"]
    return lambda landed: [command, *options, str(landed), yard.s3("aws", landed)]


def rclone(command: str, yard: Yard) -> Callable[[Path], list[str]]:
    remote = f":s3,provider=Other,endpoint='{yard.server.http_endpoint}',env_auth=true:{BUCKET}"
    return lambda landed: [command, "copy", str(landed), f"{remote}/rclone-{landed.name}"]


Peers = Mapping[str, tuple[Callable[[str, Yard], Callable[[Path], list[str]]], float]]
"""By the name of a tool: its command, and how many times its speed is the goal."""


def race(meter: Meter, files: int, size: int, peers: Peers, name: str, rounds: int, amount: float, unit: str) -> bool:
    with workspace() as source, yard(made(source / "tree", files, size), files, meter) as (here, service, store):
        found = {tool: path for tool in peers if (path := peer(tool))}
        theirs = {tool: here.theirs(tool, peers[tool][0](path, here)) for tool, path in found.items()}
        goals = {tool: peers[tool][1] for tool in found}
        title = f"{name}, from landing to the record"
        good = compare(title, here.ours(service, store), theirs, goals, rounds=rounds, amount=amount, unit=unit)
        meter.print()
        return good


def small() -> bool:
    peers: Peers = {"s5cmd": (s5cmd, 1.0), "ferry": (ferry, 1.5), "aws": (aws, 5.0)}
    meter = Meter(SMALL * SMALL_SIZE / 2**30, "GiB")
    return race(meter, SMALL, SMALL_SIZE, peers, f"{SMALL:,} files of 16 KiB", 3, SMALL, "files/s")


def large() -> bool:
    peers: Peers = {"s5cmd": (s5cmd, 0.9), "rclone": (rclone, 0.9), "aws": (aws, 0.9)}
    amount = LARGE * LARGE_SIZE
    meter = Meter(amount / 2**30, "GiB")
    return race(meter, LARGE, LARGE_SIZE, peers, f"{LARGE} files of 256 MiB, uncompressed", 2, amount / 1e6, "MB/s")


def link(size: int) -> bool:
    """One file over a link of 30 ms and 12 MB/s a connection: 8 parts at a time against one."""
    eight, one = over_link(size, 8), over_link(size, 1)
    result = Result(f"{size / 1e6:.0f} MB at {RATE / 1e6:.0f} MB/s a connection, 8 parts / 1 part", one / eight, 5.0)
    RESULTS.append(result)
    print(f"  {result.ratio:.2f} x  goal {result.goal:.2f}  {'reached' if result.reached else 'MISSED'}")
    return result.reached


def over_link(size: int, parts: int) -> float:
    """Seconds from landing to the record."""
    meter, limits = Meter(size / 2**30, "GiB"), f"parts = {parts}\nfiles = 1"
    with workspace() as source, Link(RATE, LATENCY) as way:
        tree = made(source / "tree", 1, size)
        with yard(tree, 1, meter, link=way, limits=limits) as (here, service, store):
            began = time.perf_counter()
            here.ours(service, store)()
            seconds = time.perf_counter() - began
    print(f"\n{parts} parts at a time: {seconds:.1f} s, {size / 1e6 / seconds:.1f} MB/s")
    meter.print()
    return seconds


def main() -> bool:
    return all([small(), large(), link(LINK_SIZE)])


if __name__ == "__main__":
    raise SystemExit(not main())
