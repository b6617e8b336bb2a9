"""A mirror beside rclone: 2 GiB of a model down, verified and released, and a bucket of 10,000 objects that has not
changed (PRODUCT M1, M2). Both are whole processes on the same real server in the same run; one look of the service that
runs already is shown too. The model's objects have what quaymaster's uploads tell of themselves.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench import data
from bench.harness import compare, workspace
from bench.peers import peer
from servers.seaweed import Seaweed

BUCKET = "bench"
LARGE, MANY = 2 << 30, 10_000
CONFIG = """
[service]
state_dir = "{folder}/state-{name}"
staging_dir = "{folder}/staging"
[destination.store]
type = "s3"
bucket = "{bucket}"
endpoint_url = "{endpoint}"
region = "us-east-1"
credentials = "{folder}/keys"
[mirror.{name}]
source = "store"
prefix = "{name}"
path = "{folder}/{name}"
interval = "100ms"
"""


def main() -> bool:
    if peer("rclone") is None:
        return True
    with workspace() as folder, Seaweed(folder / "seaweed") as server:
        server.make_bucket(BUCKET)
        (folder / "keys").write_text(f'access_key = "{server.access_key}"\nsecret_key = "{server.secret_key}"\n')
        (folder / "keys").chmod(0o600)
        return all([unchanged(folder, server), large(folder, server)])


def large(folder: Path, server: Seaweed) -> bool:
    source = data.make(folder / "model.bin", data.noise, LARGE)
    sha256 = hashlib.sha256()
    with source.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
    told = {"quaymaster-sha256": sha256.hexdigest(), "quaymaster-size": str(LARGE), "quaymaster-compression": "none"}
    extra = {"Metadata": told | {"quaymaster-mtime": "1700000000000000000"}}
    server_client(server).upload_file(str(source), BUCKET, "large/m/1/model.bin", ExtraArgs=extra)
    listed = f"{sha256.hexdigest()}  model.bin\n".encode()
    server_client(server).put_object(Bucket=BUCKET, Key="large/m/1/SHA256SUMS", Body=listed)
    source.unlink()
    config = configured(folder, server, "large")

    def fresh() -> None:
        for left in ("large", "state-large", "copied"):
            shutil.rmtree(folder / left, ignore_errors=True)
        (folder / "large").mkdir()
        os.sync()  # what one side wrote is not written back in the time of the other

    def copy() -> None:
        rclone(server, "copy", remote(server, "large"), str(folder / "copied"))

    def copy_durably() -> None:
        copy()
        subprocess.run(["sync", "-f", str(folder / "copied")], check=True)

    title = "mirror 2 GiB in one object, verified, synced and released"
    ours = quaymaster(config, "mirror", "--once")
    # What rclone has copied is in the page cache when it ends, unverified; ours is on the disk.
    theirs = {"rclone copy": copy, "rclone copy, and sync": copy_durably}
    goals = {"rclone copy": 0.9, "rclone copy, and sync": 0.0}
    good = compare(title, ours, theirs, goals, rounds=5, amount=LARGE / 1e6, before=fresh)
    fresh()
    return good


def unchanged(folder: Path, server: Seaweed) -> bool:
    client = server_client(server)

    def put(number: int) -> None:
        key = f"many/m{number % 100:02d}/{number // 1000 + 1}/part-{number:05d}"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"%05d" % number)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(put, range(MANY)))
    config = configured(folder, server, "many")
    began = time.perf_counter()
    quaymaster(config, "mirror", "--once")()
    print(f"\n{MANY:,} objects mirrored for the first time in {time.perf_counter() - began:.1f} s")

    def check() -> None:
        rclone(server, "check", "--size-only", "--exclude", ".qm-*/**", str(folder / "many"), remote(server, "many"))

    once = quaymaster(config, "mirror", "--once")
    whole = compare(f"{MANY:,} unchanged, a command from its start", once, {"rclone check --size-only": check}, 1.0)
    look = follower(config)
    for _ in range(3):
        look()
    inside = compare(f"{MANY:,} unchanged, one look of the service", look, {"rclone check --size-only": check}, 1.0)
    return whole and inside


def follower(config: Path) -> Callable[[], None]:
    from quaymaster.config import load
    from quaymaster.service.ceilings import Ceilings
    from quaymaster.service.mirrors import MirrorService
    from quaymaster.service.places import Places
    from quaymaster.store import Store

    loaded = load(str(config), {})
    store = Store(loaded.service.state_dir)
    source = Places(loaded, store, lambda _: None).shared("store")
    assert source is not None
    mirror = next(iter(loaded.mirrors.values()))
    service = MirrorService(mirror, store, source, Ceilings(loaded).bounds, lambda _: None)
    return service.follower.look


def configured(folder: Path, server: Seaweed, name: str) -> Path:
    (folder / name).mkdir()
    path = folder / f"{name}.toml"
    path.write_text(CONFIG.format(folder=folder, bucket=BUCKET, endpoint=server.http_endpoint, name=name))
    return path


def server_client(server: Seaweed) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3", endpoint_url=server.http_endpoint, region_name="us-east-1", aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(s3={"addressing_style": "path"}, max_pool_connections=20),
    )  # fmt: skip


def remote(server: Seaweed, name: str) -> str:
    return (
        f":s3,provider=Other,endpoint='{server.http_endpoint}',access_key_id={server.access_key}"
        f",secret_access_key={server.secret_key}:{BUCKET}/{name}"
    )


def rclone(server: Seaweed, *arguments: str) -> None:
    subprocess.run([str(peer("rclone")), *arguments], check=True, stderr=subprocess.DEVNULL)


def quaymaster(config: Path, *arguments: str) -> Callable[[], None]:
    command = [sys.executable, "-m", "quaymaster", *arguments, "--config", str(config)]

    def call() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return call


if __name__ == "__main__":
    raise SystemExit(not main())
