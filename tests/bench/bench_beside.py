"""FASTQ compressed in place on a distant share, beside the script that does the same file by file (PRODUCT P9, P13).

The share is a directory behind 5 ms for each operation and 100 MB/s in all, in both directions together, through FUSE
(which a watch takes for a network filesystem). The script copies a file to the local disk, compresses it in the same
format at the same level, copies the result back and compares checksums of both ends. quaymaster does all of that with
one file being copied, one compressed and one uploaded at a time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from bench import data
from bench.harness import compare, workspace
from system.slow_filesystem import SlowFilesystem, reason_to_skip

FILES, SIZE, LEVEL = 8, 64 << 20, 3
LATENCY, RATE = 0.005, 100e6
GOAL = 2.0
CONFIG = """
[service]
state_dir = "{folder}/state"
staging_dir = "{folder}/staging"
[destination.beside]
type = "beside"
[watch.share]
path = "{share}"
include = ["*.fastq"]
destinations = ["beside"]
compress = {{ format = "{format}", level = {level} }}
settle = "0s"
"""
SCRIPTS = {
    "zstd": 'zstd -q -{level} "$f"; packed="$f.zst"; zstd -dc "$packed" | sha256sum > expanded',
    "gzip": 'pigz -{level} -k "$f"; packed="$f.gz"; pigz -dc "$packed" | sha256sum > expanded',
}
EACH = """
for path in "{share}"/*.fastq; do
    f=$(basename "$path")
    cp "$path" "$f"
    sha256sum < "$path" > there
    sha256sum < "$f" > here
    cmp -s there here
    {compress}
    cmp -s here expanded
    cp "$packed" "{share}/$packed.part"
    sha256sum < "$packed" > here
    sha256sum < "{share}/$packed.part" > there
    cmp -s there here
    mv -n "{share}/$packed.part" "{share}/$packed"
    rm "$f" "$packed"
done
"""


def main() -> bool:
    if reason := reason_to_skip():
        print(f"\nbeside: skipped, {reason}")
        return True
    formats = [name for name, tool in (("zstd", "zstd"), ("gzip", "pigz")) if shutil.which(tool)]
    with workspace() as folder, SlowFilesystem(folder / "share", latency=LATENCY, rate=RATE) as share:
        for number in range(FILES):
            data.make(share.held / f"reads-{number}.fastq", partial(data.fastq, number + 1), SIZE)
        found = [compressed(folder, share, form) for form in formats]
        return all(found)


def compressed(folder: Path, share: SlowFilesystem, form: str) -> bool:
    suffix = {"zstd": ".zst", "gzip": ".gz"}[form]
    scratch = folder / "scratch"

    def fresh() -> None:
        for path in share.held.glob(f"*{suffix}*"):
            path.unlink()
        for name in ("state", "staging", "scratch"):
            shutil.rmtree(folder / name, ignore_errors=True)
        scratch.mkdir()
        os.sync()
        time.sleep(0.1)

    config = CONFIG.format(folder=folder, share=share.seen, format=form, level=LEVEL)
    (folder / "quaymaster.toml").write_text(config)
    command = [sys.executable, "-m", "quaymaster", "sync", "--quiet", "--config", str(folder / "quaymaster.toml")]
    script = EACH.format(share=share.seen, compress=SCRIPTS[form].format(level=LEVEL))

    def ours() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert len(list(share.held.glob(f"*.fastq{suffix}"))) == FILES

    def theirs() -> None:
        subprocess.run(["bash", "-ec", script], cwd=scratch, check=True)
        assert len(list(share.held.glob(f"*.fastq{suffix}"))) == FILES

    title = f"{FILES} files of {SIZE >> 20} MiB compressed beside themselves, {form} level {LEVEL}"
    tool = {"zstd": "cp, zstd, cp, sha256sum", "gzip": "cp, pigz, cp, sha256sum"}[form]
    return compare(title, ours, {tool: theirs}, GOAL, amount=FILES * SIZE / 1e6, before=fresh)


if __name__ == "__main__":
    raise SystemExit(not main())
