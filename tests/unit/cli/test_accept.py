"""``quaymaster accept``: what is remembered of a directory is forgotten, on record."""

from __future__ import annotations

import pytest

MARK = {"type": "nfs4", "device": "server:/export", "mount_point": "/mnt", "name": "server:/export", "path": "/mnt/in"}


@pytest.mark.parametrize(
    ("name", "kept_as"), [("sequencer", "mount:watch:sequencer"), ("archive", "mount:destination:archive")]
)
def test_what_a_directory_stood_on_is_forgotten_and_that_is_on_record(scene, name: str, kept_as: str) -> None:
    scene.store.report(kept_as, MARK)
    answer = scene.run("accept", name)
    assert answer.code == 0
    assert answer.out.splitlines()[0] == "forgotten: /mnt/in on the nfs4 filesystem server:/export"
    assert set(scene.store.reports()[kept_as][1]) == {"accepted"}
    (entry,) = [entry for entry in scene.store.custody() if "filesystem-accepted" in entry.body]
    assert "server:/export" in entry.body
    assert scene.run("accept", name, "--json").json == {"name": name, "forgotten": []}


def test_the_directory_that_files_are_moved_to_belongs_to_its_watch(scene) -> None:
    scene.store.report("mount:after:sequencer", MARK)
    assert scene.run("accept", "sequencer", "--json").json["forgotten"] == [MARK]


def test_an_unknown_name_is_refused_with_those_that_there_are(scene) -> None:
    answer = scene.run("accept", "seqencer")
    assert answer.code == 2
    assert answer.err == "quaymaster: There is no watch or destination seqencer. There are archive, sequencer\n"
