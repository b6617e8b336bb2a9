"""P12, M2: room is taken before a file is written, and what is written past the cache is what was given."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from quaymaster.destinations import disk


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    yield opened
    os.close(opened)


def pages(number: int) -> memoryview:
    memory = memoryview(mmap.mmap(-1, number * disk.PAGE))
    memory[:] = os.urandom(len(memory))
    return memory


def test_room_is_taken_and_the_length_stays(descriptor: int) -> None:
    disk.reserve(descriptor, 1 << 20)
    status = os.fstat(descriptor)
    assert status.st_size == 0
    assert status.st_blocks * 512 >= 1 << 20
    with pytest.raises(OSError, match=r"No space left|File too large"):
        disk.reserve(descriptor, 1 << 55)


def test_whole_pages_and_the_rest_are_written(descriptor: int) -> None:
    data = pages(5)
    disk.write_past_cache(descriptor, data[: 4 * disk.PAGE], 0)
    disk.write_past_cache(descriptor, data[4 * disk.PAGE : -100], 4 * disk.PAGE)
    assert os.pread(descriptor, len(data), 0) == data[:-100]


def test_a_filesystem_that_knows_no_direct_writing_gets_it_by_the_cache(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, refused = os.pwrite, list[int]()

    def strict(to: int, data: memoryview, offset: int) -> int:
        import fcntl

        if fcntl.fcntl(to, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(to, data[:3000], offset)

    monkeypatch.setattr(os, "pwrite", strict)
    data = pages(2)
    disk.write_past_cache(descriptor, data, disk.PAGE)
    assert refused == [disk.PAGE]
    assert os.pread(descriptor, len(data), disk.PAGE) == data
