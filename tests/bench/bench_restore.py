"""Restoring from a real S3 server, as whole processes, beside rclone fetching the same objects (PRODUCT I6).

1 GiB in one object, as it was and compressed, and 2,000 objects of 16 KiB. What quaymaster restores is expanded,
compared with the SHA-256 on record and synced to the disk; rclone copies what is stored, and leaves it to the page
cache: of the compressed object a quarter of the bytes. So what the same work takes with rclone and the tools beside it
is told, too. The goal is about the copy alone. The CPU-seconds are those of the client alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import data
from bench.harness import compare, installed, workspace
from bench.peers import peer
from servers.seaweed import Seaweed

BUCKET = "bench"
LARGE = 1 << 30
MANY, SMALL = 2_000, 16 << 10
CONFIG = """
[service]
state_dir = "{folder}/state"
staging_dir = "{folder}/staging"
[destination.archive]
type = "s3"
bucket = "{bucket}"
endpoint_url = "{endpoint}"
region = "us-east-1"
credentials = "{folder}/keys"
"""
WATCH = """
[watch.{name}]
path = "{folder}/{name}"
destinations = ["archive"]
key = "{{watch}}/{{path}}"
settle = "0s"
{more}
"""
_SUM = "find . -type f -print0 | xargs -0 openssl dgst -sha256 -r; sync -f ."
SAME_WORK = {"whole": _SUM, "packed": "zstd -q -d --rm *.zst; " + _SUM, "many": _SUM}
"""What makes of rclone's copies what quaymaster restores: expanded, their sums known, on the disk."""
WATCHES = {"whole": "", "packed": 'compress = "zstd"', "many": ""}


def main() -> bool:
    if peer("rclone") is None:
        return True
    with workspace() as folder, Seaweed(folder / "seaweed") as server:
        server.make_bucket(BUCKET)
        fill(folder, server)
        large = [
            measured(folder, server, name, f"1 GiB in one object, {how}", LARGE / 1e6, "MB/s")
            for name, how in (("whole", "as it was"), ("packed", "compressed"))
        ]
        many = measured(folder, server, "many", f"{MANY:,} objects of 16 KiB", MANY, "files/s")
        return all(large) and many


def fill(folder: Path, server: Seaweed) -> None:
    """Everything is delivered, as a user would do it."""
    for name in WATCHES:
        (folder / name).mkdir()
    data.make(folder / "whole/reads.fastq", data.fastq, LARGE)
    shutil.copyfile(folder / "whole/reads.fastq", folder / "packed/reads.fastq")
    content = data.make(folder / "all", data.json_lines, MANY * SMALL).read_bytes()
    for number in range(MANY):
        path = folder / f"many/d{number % 20:02d}/{number:05d}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content[number * SMALL : (number + 1) * SMALL])
    (folder / "keys").write_text(f'access_key = "{server.access_key}"\nsecret_key = "{server.secret_key}"\n')
    (folder / "keys").chmod(0o600)
    config = CONFIG.format(folder=folder, bucket=BUCKET, endpoint=server.http_endpoint)
    watches = [WATCH.format(folder=folder, name=name, more=more) for name, more in WATCHES.items()]
    (folder / "quaymaster.toml").write_text(config + "".join(watches))
    time.sleep(0.1)
    quaymaster(folder, "sync", "--quiet")()


def measured(folder: Path, server: Seaweed, name: str, title: str, amount: float, unit: str) -> bool:
    to = folder / "to"

    def fresh() -> None:
        shutil.rmtree(to, ignore_errors=True)
        os.sync()  # what one side wrote is not written back in the time of the other

    remote = f":s3,provider=Other,endpoint='{server.http_endpoint}',access_key_id={server.access_key}"
    remote += f",secret_access_key={server.secret_key}:{BUCKET}/{name}"
    same_work = f"rclone copy, {'zstd, ' * (name == 'packed')}openssl, sync"
    sides = {"rclone copy": ":", same_work: SAME_WORK[name]}

    def side(after: str) -> Callable[[], None]:
        script = f'"$0" copy "$1" {to} 2>/dev/null; cd {to}; {after}'
        command = ["bash", "-ec", script, str(peer("rclone")), remote]
        return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL) and None

    ours = quaymaster(folder, "restore", "--quiet", "--watch", name, "--to", str(to))
    peers = {title: side(after) for title, after in sides.items()}
    goals = {"rclone copy": 1.0, same_work: 0.0}
    return compare(f"restore {title}", ours, peers, goals, amount=amount, unit=unit, before=fresh)


def quaymaster(folder: Path, *arguments: str) -> Callable[[], None]:
    command = [sys.executable, "-m", "quaymaster", *arguments, "--config", str(folder / "quaymaster.toml")]

    def call() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=installed())

    return call


if __name__ == "__main__":
    raise SystemExit(not main())
