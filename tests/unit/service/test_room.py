"""A pass reckons before it begins whether there is room, and says with figures what to change (PRODUCT P12)."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from quaymaster.config import load
from quaymaster.errors import OutOfSpace
from quaymaster.model import FileVersion, Identity
from quaymaster.service import room

MIB = 1 << 20


class Disk:
    """So many bytes free on every filesystem."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.free = 0
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=self.free, f_frsize=1))

    def check(
        self, free: int, sizes: list[int], *, watch: str = "", limits: str = "",
        kind: str = 'type = "s3"\nbucket = "bb"', network: bool = False, ratio: float | None = None,
        name: str = "a.fastq",
    ) -> None:  # fmt: skip
        self.free = free
        file = self.folder / "q.toml"
        file.write_text(
            f'[limits]\nfiles = 2\nstaging_free = "10MiB"\n{limits}\n[destination.d]\n{kind}\n'
            f'[watch.w]\npath = "/in"\ndestinations = ["d"]\n{watch}\n'
        )
        files = [FileVersion("w", f"{n}{name}".encode(), Identity(n, size, 0)) for n, size in enumerate(sizes)]
        standing: Any = {"w": SimpleNamespace(network=lambda: network)}
        room.check(load(str(file), {}), standing, files, lambda _: ratio)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


def test_staging_must_hold_the_largest_files_that_can_be_there_at_once(disk: Disk) -> None:
    sizes = [MIB, 50 * MIB, 20 * MIB, 30 * MIB, 2 * MIB]  # one fetcher and two on their way: 50 + 30 + 20
    disk.check(110 * MIB, sizes, network=True)
    with pytest.raises(OutOfSpace) as caught:
        disk.check(110 * MIB - 1, sizes, network=True)
    said = str(caught.value)
    assert f"staging may need {100 * MIB:,} bytes at once (3 of 5 files)" in said
    assert f"{110 * MIB - 1:,} free, of which {10 * MIB:,} must stay free" in said
    assert "Make room for 1 bytes more" in said
    assert "limits.staging" in said
    disk.check(0, sizes)  # nothing is staged of a local watch
    disk.check(0, sizes, network=True, watch="stage = false")


def test_a_ceiling_of_staging_bounds_what_is_needed_but_not_below_one_file(disk: Disk) -> None:
    sizes = [50 * MIB, 20 * MIB, 30 * MIB]
    disk.check(70 * MIB, sizes, network=True, limits='staging = "60MiB"')
    with pytest.raises(OutOfSpace):
        disk.check(59 * MIB, sizes, network=True, limits='staging = "5MiB"')
    disk.check(60 * MIB, sizes, network=True, limits='staging = "5MiB"')


def test_copies_in_directories_need_room_by_the_ratio_seen_or_four_for_fastq(disk: Disk) -> None:
    beside = 'type = "beside"'
    packed = 'compress = { format = "zstd", min_size = "1MiB" }'
    disk.check(25 * MIB, [100 * MIB], kind=beside, watch=packed)
    with pytest.raises(OutOfSpace, match="the copies at d may need 26,214,400 bytes; /in has"):
        disk.check(25 * MIB - 1, [100 * MIB], kind=beside, watch=packed)
    disk.check(10 * MIB, [100 * MIB], kind=beside, watch=packed, ratio=10.0)
    with pytest.raises(OutOfSpace):
        disk.check(99 * MIB, [100 * MIB], kind=beside, watch=packed, name=".bin")
    with pytest.raises(OutOfSpace):
        disk.check(99 * MIB, [100 * MIB], kind='type = "directory"\npath = "/out"')
    disk.check(MIB, [MIB], kind='type = "directory"\npath = "/out"', watch=packed, ratio=10.0)
