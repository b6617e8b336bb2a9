"""Which filesystem a path is on, and outages, from the mount table alone (PRODUCT W2, W6)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quaymaster.errors import SourceUnavailable
from quaymaster.intake.mounts import Ground, blind_below, filesystem_of, read_mountinfo, survey

TABLE = r"""
22 27 0:21 / /proc rw - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /mnt/nas rw - nfs4 server:/export rw,vers=4.2
31 30 0:41 / /mnt/nas/fast rw master:1 - tmpfs tmpfs rw
32 27 0:42 / /mnt/with\040space\134x rw - fuse.sshfs user@host:/a\040b rw
33 27 8:1 / /srv rw - xfs /dev/sdb1 rw
34 33 0:43 / /srv rw - cifs //server/share rw
35 27 0:44 / /mnt rw - btrfs /dev/sdc rw
36 27 0:45 / /over rw - overlay overlay rw
""".strip()


@pytest.mark.parametrize(
    ("path", "type_", "network", "inotify"),
    [
        ("/", "ext4", False, True),
        ("/home/a", "ext4", False, True),
        ("/srv", "cifs", True, False),  # the later of two on one place
        ("/srvx", "ext4", False, True),  # a prefix of the text is not a directory above
        ("/over/x", "overlay", False, False),
        ("/mnt/nas/run", "btrfs", False, True),  # hidden by what was mounted on /mnt later
    ],
)
def test_the_filesystem_of_a_path_is_the_one_that_the_kernel_would_reach(
    path: str, type_: str, network: bool, inotify: bool
) -> None:
    found = filesystem_of(path, TABLE)
    assert (found.type, found.network, found.inotify) == (type_, network, inotify)


def test_longest_prefix_and_escapes() -> None:
    table = "\n".join(line for line in TABLE.splitlines() if not line.startswith("35 "))
    assert filesystem_of("/mnt/nas/run", table).type == "nfs4"
    assert filesystem_of("/mnt/nas/fast/run", table).type == "tmpfs"
    sshfs = filesystem_of("/mnt/with space\\x/run", table)
    assert (sshfs.type, sshfs.device, sshfs.network) == ("fuse.sshfs", "user@host:/a b", True)
    assert str(sshfs) == r"fuse.sshfs filesystem user@host:/a b on /mnt/with space\x"


@pytest.mark.parametrize("type_", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse", "9p", "lustre", "gpfs", "ceph"])
def test_network_filesystems_are_polled(type_: str) -> None:
    found = filesystem_of("/x", f"1 0 0:1 / / rw - {type_} thing rw")
    assert found.network
    assert not found.inotify


@pytest.mark.parametrize("type_", ["ext4", "xfs", "btrfs", "tmpfs", "f2fs", "zfs", "bcachefs"])
def test_local_filesystems_are_watched(type_: str) -> None:
    found = filesystem_of("/x", f"1 0 0:1 / / rw - {type_} thing rw")
    assert found.inotify
    assert not found.network


@pytest.mark.parametrize(
    ("type_", "kept"), [("ext4", True), ("nfs4", True), ("cifs", True), ("fuse.sshfs", False), ("vfat", False)]
)
def test_where_inode_numbers_last_over_a_mount(type_: str, kept: bool) -> None:
    assert filesystem_of("/x", f"1 0 0:1 / / rw - {type_} thing rw").keeps_inodes is kept


def test_a_table_that_says_nothing_is_taken_as_the_worst() -> None:
    for text in ("", "nonsense", "1 2 3 - "):
        found = filesystem_of("/x", text)
        assert found.network
        assert not found.inotify


def test_network_filesystems_below_a_local_directory_are_found() -> None:
    assert [below.type for below in blind_below("/mnt", TABLE)] == ["nfs4", "fuse.sshfs"]
    assert blind_below("/mnt/nas", TABLE) == ()


def test_survey_of_a_real_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    ground = survey(str(tmp_path / "link"), read_mountinfo())
    assert ground.path == str(tmp_path / "real"), "inotify sees nothing through a link"
    assert ground.inode == (tmp_path / "real").stat().st_ino
    assert survey(str(tmp_path / "link"), read_mountinfo()) == ground


def test_survey_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"nowhere does not exist\. Create the directory"):
        survey(str(tmp_path / "nowhere"), read_mountinfo())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SourceUnavailable, match="is not a directory"):
        survey(str(tmp_path / "file"), read_mountinfo())


def test_a_ground_with_a_blind_mount_below_is_polled(tmp_path: Path) -> None:
    table = f"27 1 254:0 / / rw - ext4 /dev/vda rw\n30 27 0:40 / {tmp_path}/in rw - nfs4 server:/export rw"
    ground: Ground = survey(str(tmp_path), table)
    assert ground.filesystem.inotify
    assert not ground.inotify
    assert ground.network


def test_no_question_but_survey_touches_the_path() -> None:
    assert filesystem_of("/proc/self/does-not-exist/at/all").type == "proc"
    assert os.path.exists("/proc/self")
