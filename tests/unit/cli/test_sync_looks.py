"""``sync --dry-run`` of a directory and a bucket is over before larger programs have begun (PRODUCT I2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from servers.pages import Pages

HEAVY = {"pydantic", "boto3", "botocore", "sqlite3", "watchdog", "zstandard", "concurrent.futures.process"}
_CALL = """
import sys
from quaymaster.cli import main
code = main(sys.argv[2:])
heavy = sorted(set(sys.argv[1].split(",")) & set(sys.modules))
print(f"{code} {','.join(heavy)}", file=sys.stderr)
"""


def looked(tmp_path: Path, server: Pages, target: str = "s3://bench", *more: str) -> tuple[str, str]:
    """What it printed on stdout and stderr."""
    keys = tmp_path / "keys"
    keys.write_text('access_key = "a"\nsecret_key = "b"\n')
    keys.chmod(0o600)
    where = ["--endpoint-url", server.endpoint, "--credentials", str(keys), "--dry-run", "--json", *more]
    done = subprocess.run(
        [sys.executable, "-c", _CALL, ",".join(HEAVY), "sync", str(tmp_path / "tree"), target, *where],
        env=os.environ | {"STATE_DIRECTORY": str(tmp_path / "state")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout, done.stderr.splitlines()[-1]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """200 files as the server lists them, and one that it does not."""
    for number in range(200):
        path = tmp_path / "tree" / f"run0000/lane{number // 100:02}" / f"sample_{number:08}_R1.fastq"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * number)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    (tmp_path / "tree" / "another").write_bytes(b"x")
    os.utime(tmp_path / "tree" / "another", (1_700_000_000, 1_700_000_000))
    return tmp_path / "tree"


def test_it_needs_neither_the_aws_library_nor_pydantic_nor_a_database(tmp_path: Path, tree: Path) -> None:
    with Pages(5_000) as server:
        out, last = looked(tmp_path, server)
    found = json.loads(out)
    assert (found["adopted"], found["failed"], last) == (200, 0, "0 ")
    assert [os.path.basename(step["path"]) for step in found["steps"] if step["what"] == "send"] == ["another"]
    assert not (tmp_path / "state").exists()


def test_sizes_and_times_decide(tmp_path: Path, tree: Path) -> None:
    (tree / "run0000/lane00/sample_00000007_R1.fastq").write_bytes(b"another size")
    os.utime(tree / "run0000/lane00/sample_00000007_R1.fastq", (1_700_000_000, 1_700_000_000))
    os.utime(tree / "run0000/lane00/sample_00000008_R1.fastq")  # newer than the copy
    with Pages(5_000) as server:
        found = json.loads(looked(tmp_path, server)[0])
    assert (found["adopted"], found["failed"], found["writing"]) == (198, 1, 1)
    assert found["failures"][0]["code"] == "conflict"


@pytest.mark.parametrize(
    ("target", "more", "said"),
    [("s3://xyz/y", ["--endpoint-url", "ftp://there"], "is not an endpoint"), ("s3://", [], "is not a bucket name"),
     ("s3://ok/../x", [], "holds"), ("s3://ok", ["--credentials", "AKIAABCDEFGHIJKLMNOP"], "is an access key itself")],
)  # fmt: skip
def test_what_is_given_is_held_to_the_rules_of_the_configuration(
    tmp_path: Path, tree: Path, target: str, more: list[str], said: str
) -> None:
    arguments = ["sync", str(tree), target, *more]
    for dry in ([], ["--dry-run"]):
        done = subprocess.run(
            [sys.executable, "-m", "quaymaster", *arguments, *dry],
            env=os.environ | {"STATE_DIRECTORY": str(tmp_path / "state")}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
