"""The quick answer "nothing has changed" is given only when it is certain; in doubt a pass goes the whole way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from quaymaster.config import load
from quaymaster.intake.scan import Rules, walk
from quaymaster.intake.survey import Narrow
from quaymaster.model import FileVersion, State
from quaymaster.service import quick
from quaymaster.source import Root
from quaymaster.store import Filter, Store

SCOPE = {"landing": Narrow()}


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder, self.landing = folder, folder / "landing"
        for name in ("a/1", "b/2", "c/3", "top"):
            path = self.landing / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        (folder / "conf.d").mkdir()
        self.file = folder / "q.toml"
        self.file.write_text(
            f'[service]\nstate_dir = "{folder}/state"\n[destination.d]\ntype = "directory"\npath = "{folder}/d"\n'
            f'[watch.landing]\npath = "{self.landing}"\ndestinations = ["d"]\nexclude = ["*.log"]\n'
        )
        self.store = Store(str(folder / "state"), create=True)
        self.store.enqueue([FileVersion("landing", *found) for found in walk(Root(str(self.landing)), Rules())])
        for job in self.store.claim(100):
            self.store.finish(job)
        self.note = quick.Note.of(self.key, load(str(self.file), {}))

    @property
    def key(self) -> str:
        return quick.key_of(str(self.file), {})

    def answer(self, **scope: Narrow) -> int | None:
        found = quick.unchanged(self.note, scope or SCOPE)
        return found.skipped if found else None


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_all_files_are_known(place: Place) -> None:
    assert place.answer() == 4
    assert place.answer(landing=Narrow(types=(b"1", b"p"))) == 2
    (place.landing / "x.log").write_bytes(b"left out by the rules")
    assert place.answer() == 4


@pytest.mark.parametrize("name", ["a/new", "c/new", "z/new", "0", "top"])
def test_a_file_that_is_new_or_another_one_means_the_whole_way(place: Place, name: str) -> None:
    (place.landing / name).parent.mkdir(exist_ok=True)
    (place.landing / name).write_bytes(b"something new")
    assert place.answer() is None


def test_a_superseded_version_that_is_back_means_the_whole_way(place: Place) -> None:
    (place.landing / "a" / "1").write_bytes(b"newer")
    place.store.enqueue([FileVersion("landing", *found) for found in walk(Root(str(place.landing)), Rules(), b"a")])
    (job,) = place.store.claim(1)
    place.store.fail(job, State.SUPERSEDED, "source-changed", "it changed")
    assert place.answer() is None


def test_an_open_job_or_no_store_means_the_whole_way(place: Place) -> None:
    place.store.enqueue([FileVersion("landing", b"gone", place.store.jobs(Filter())[0].version.identity)])
    assert place.answer() is None
    place.store.close()
    for path in (place.folder / "state").glob("quaymaster.db*"):
        path.unlink()
    assert place.answer() is None


def test_a_directory_that_is_gone_or_cannot_be_listed_means_the_whole_way(place: Place) -> None:
    place.landing.rename(place.folder / "away")
    assert place.answer() is None


def test_every_change_of_the_configuration_changes_the_key(place: Place) -> None:
    seen = {place.key}

    def is_new() -> bool:
        known = place.key in seen
        seen.add(place.key)
        return not known

    (place.folder / "conf.d" / "a.toml").write_text("[limits]\nfiles = 3\n")
    assert is_new()
    (place.folder / "conf.d" / "a.toml").write_text("[limits]\nfiles = 4\n")
    assert is_new()
    place.file.write_text(place.file.read_text() + "#")
    assert is_new()
    assert quick.key_of(str(place.file), {"STATE_DIRECTORY": "/x"}) != place.key
    assert quick.key_of(str(place.folder / "none.toml"), {}) == ""


def test_a_note_is_read_only_by_its_owner_and_with_its_key(place: Place) -> None:
    kept = quick.place_of(place.key, {"XDG_CACHE_HOME": str(place.folder / "cache")})
    quick.write(kept, place.note)
    assert os.stat(kept).st_mode & 0o777 == 0o600
    found = quick.read(kept, place.key)
    assert found is not None
    assert quick.unchanged(found, SCOPE) is not None
    assert quick.read(kept, "another key") is None
    os.chmod(kept, 0o666)
    assert quick.read(kept, place.key) is None
    os.chmod(kept, 0o600)
    for damaged in ("", "[]", "{", json.dumps({"key": place.key, "state_dir": "/x", "watches": {"landing": {}}})):
        Path(kept).write_text(damaged)
        assert quick.read(kept, place.key) is None
    assert quick.place_of(place.key, {}) == ""
