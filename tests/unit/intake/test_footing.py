"""W6: what a directory stands on is known again after a restart, and nothing else is taken for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quaymaster.config import Watch
from quaymaster.errors import SourceUnavailable
from quaymaster.intake import footing as module
from quaymaster.intake.footing import ACCEPTED, Footing, Memory
from quaymaster.intake.mounts import Mark, read_mountinfo

ROOT = "27 1 254:0 / / rw - ext4 /dev/vda rw\n"
NFS = "nfs4 server:/export rw"


class Scene:
    """A watch on a real directory, under a mount table of the test's choice; restarts share what was remembered."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = folder / "mnt"
        self.path.mkdir()
        self.kept: Mapping[str, Any] = {}
        self.mounted(NFS)
        patch.setattr(module, "read_mountinfo", lambda: self.table)

    def mounted(self, what: str = "", at: str = "") -> None:
        self.table = ROOT + (f"30 27 0:40 / {at or self.path} rw - {what}\n" if what else "")

    def footing(self, **settings: Any) -> Footing:
        """As after a start of the service."""
        watch = Watch(name="w", path=str(self.path), destinations=("d",), **settings)
        return Footing(watch, Memory("w", watch.path, lambda: self.kept, self.keep))

    def keep(self, body: Mapping[str, Any]) -> None:
        self.kept = dict(body)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_a_share_that_is_not_mounted_is_an_outage_also_after_a_restart(scene: Scene) -> None:
    scene.footing().stand()
    scene.mounted()
    with pytest.raises(SourceUnavailable) as refused:
        scene.footing().stand()
    assert f"{scene.path} is not mounted: it was the nfs4 filesystem server:/export on {scene.path}" in str(
        refused.value
    )
    assert "now it is the ext4 filesystem /dev/vda on /" in str(refused.value)
    assert "quaymaster accept w" in refused.value.advice
    scene.mounted(NFS)
    assert scene.footing().stand().network


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ("nfs server:/export rw", True),  # another version of the protocol
        ("nfs4 server:/other rw", False),
        ("nfs4 other:/export rw", False),
        ("cifs //server/export rw", False),
        ("tmpfs none rw", False),
        ("autofs /etc/auto.mnt rw", False),
    ],
)
def test_what_is_mounted_instead_counts_only_if_it_is_the_same_share(scene: Scene, now: str, same: bool) -> None:
    scene.footing().stand()
    scene.mounted(now)
    if same:
        scene.footing().stand()
        return
    with pytest.raises(SourceUnavailable, match="it was the nfs4 filesystem server:/export"):
        scene.footing().stand()
    assert scene.kept["device"] == "server:/export", "what is refused is not remembered"


def test_the_same_share_at_another_mount_point_is_the_same_share(scene: Scene) -> None:
    scene.footing().stand()
    scene.mounted(NFS, at=str(scene.path.parent))
    scene.footing().stand()


def test_an_operator_accepts_a_change(scene: Scene) -> None:
    footing = scene.footing()
    footing.stand()
    scene.mounted("nfs4 new:/export rw")
    with pytest.raises(SourceUnavailable):
        footing.stand()
    scene.kept = {ACCEPTED: 1.0}
    footing.stand()
    assert scene.kept["device"] == "new:/export"
    scene.mounted(NFS)
    with pytest.raises(SourceUnavailable, match="it was the nfs4 filesystem new:/export"):
        footing.stand()


def test_a_share_may_be_mounted_over_an_empty_local_directory_but_not_over_a_used_one(scene: Scene) -> None:
    scene.mounted()
    scene.footing().stand()
    assert not scene.kept
    scene.mounted(NFS)
    scene.footing().stand()
    scene.kept = {}
    scene.mounted()
    (scene.path / "file").touch()
    scene.footing().stand()
    assert scene.kept["type"] == "ext4"
    scene.mounted(NFS)
    with pytest.raises(SourceUnavailable, match="is not on the same filesystem as before"):
        scene.footing().stand()


def test_a_share_that_was_emptied_at_once_is_an_outage_until_something_is_in_it(scene: Scene) -> None:
    footing = scene.footing()
    footing.stand()
    footing.scanned(0)  # it never held anything
    footing.scanned(3)
    with pytest.raises(SourceUnavailable, match="is empty, and was not before"):
        footing.scanned(0)
    for each in (footing, scene.footing()):
        with pytest.raises(SourceUnavailable, match="is empty, and was not before"):
            each.stand()
    (scene.path / "file").touch()
    footing.stand()
    (scene.path / "file").unlink()
    scene.kept = {ACCEPTED: 1.0}
    scene.footing().stand()


@pytest.mark.parametrize("settings", [{"after": "delete"}, {"sentinel": "here"}])
def test_a_share_that_we_empty_ourselves_or_that_has_a_sentinel_may_be_empty(
    scene: Scene, settings: dict[str, Any]
) -> None:
    (scene.path / "here").touch()
    footing = scene.footing(**settings)
    footing.stand()
    footing.scanned(3)
    footing.scanned(0)


def test_a_local_directory_may_be_emptied_by_anybody(scene: Scene) -> None:
    scene.mounted()
    (scene.path / "file").touch()
    footing = scene.footing()
    footing.stand()
    (scene.path / "file").unlink()
    footing.scanned(0)
    scene.footing().stand()


def test_without_its_sentinel_nothing_counts_as_mounted(scene: Scene) -> None:
    footing = scene.footing(sentinel="deep/sentinel")
    with pytest.raises(SourceUnavailable, match="does not hold its sentinel deep/sentinel"):
        footing.stand()
    (scene.path / "deep").mkdir()
    (scene.path / "deep/sentinel").touch()
    footing.stand()


def test_a_look_by_others_remembers_nothing(scene: Scene) -> None:
    footing = scene.footing()
    footing.look()
    assert not scene.kept


def test_marks_of_one_kind_differ_by_name_and_only_if_both_have_one() -> None:
    disk = Mark("ext4", "/dev/sda1", "/srv", "a1b2")
    assert disk.is_same(Mark("ext4", "/dev/sdb1", "/mnt", "a1b2")), "device names change at boot"
    assert not disk.is_same(Mark("ext4", "/dev/sda1", "/srv", "ffff"))
    assert disk.is_same(Mark("ext3", "/dev/sda1", "/srv", ""))
    assert not disk.is_same(Mark("xfs", "/dev/sda1", "/srv", "a1b2"))
    assert Mark.of_body(disk.body()) == disk
    assert Mark.of_body({}) is None


def test_a_real_local_filesystem_has_a_lasting_name_or_none(tmp_path: Path) -> None:
    found = [module.survey(str(tmp_path), read_mountinfo()).mark for _ in range(2)]
    assert found[0] == found[1]
    if found[0].type in ("ext4", "btrfs"):
        assert len(found[0].name) > 6
