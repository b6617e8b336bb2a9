"""P10: a source is touched only when it is the version that was proven, and its copy is still there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from quaymaster.destinations.base import Put
from quaymaster.destinations.directory import Directory
from quaymaster.errors import IntegrityError, SourceChanged
from quaymaster.model import Compression, Digests, Event, FileVersion, Job, Proof, State
from quaymaster.pipeline import dispose as module
from quaymaster.pipeline.budget import Cancelled
from quaymaster.pipeline.dispose import Disposal, dispose, older
from quaymaster.source import Root, identity_of

DATA = b"reads" * 1000


class Case:
    """A delivered file and everything about it."""

    def __init__(self, folder: Path) -> None:
        self.events: list[Event] = []
        for name in ("watch/run", "archive", "done"):
            (folder / name).mkdir(parents=True)
        self.folder = folder
        self.root = Root(str(folder / "watch"))
        self.source = folder / "watch/run/a.fastq"
        self.source.write_bytes(DATA)
        self.archive = Directory("archive", str(folder / "archive"), emit=self.events.append)
        self.mover = Directory("done", str(folder / "done"), emit=self.events.append)
        version = FileVersion("w", b"run/a.fastq", identity_of(os.stat(self.source)))
        self.job = Job(7, version, State.RUNNING, None, 0, 0, None, "", "", 0.0, 0.0, None)
        digests = Digests(len(DATA), hashlib.sha256(DATA).hexdigest())
        upload = self.archive.begin(Put("run/a.fastq", len(DATA)))
        upload.write(DATA)
        stored = upload.publish(digests, {})
        self.proof = Proof(7, version, "archive", digests, digests, Compression.NONE, "", stored, 1.0)
        self.begun = 0

    def dispose(self, after: str = "delete", cancelled: Callable[[], bool] = lambda: False) -> str:
        rule = Disposal(after, self.mover if after == "move" else None, str(self.folder / "done"))

        def begin() -> None:
            self.begun += 1

        return dispose(self.job, self.root, rule, [(self.proof, self.archive)], cancelled, begin)

    @property
    def aside(self) -> Path:
        """Its name while it is set aside: of the job and of the file, since other hosts count their jobs too."""
        return self.source.parent / f".qm-7-{self.job.version.identity.inode:x}.aside"

    def names(self) -> list[str]:
        return sorted(os.listdir(self.source.parent))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_keep_touches_nothing(case: Case) -> None:
    assert case.dispose("keep") == "kept"
    assert case.source.read_bytes() == DATA


def test_delete_removes_the_proven_source_and_nothing_else(case: Case) -> None:
    (case.source.parent / "other").write_bytes(b"x")
    assert case.dispose() == "deleted"
    assert case.names() == ["other"]
    assert case.begun == 1


def test_move_keeps_bytes_and_mtime_under_the_other_directory(case: Case) -> None:
    mtime = case.source.stat().st_mtime_ns
    assert case.dispose("move") == f"moved:{case.folder}/done/run/a.fastq"
    moved = case.folder / "done/run/a.fastq"
    assert moved.read_bytes() == DATA
    assert moved.stat().st_mtime_ns == mtime
    assert case.names() == []


@pytest.mark.parametrize("harm", ["gone", "other bytes"])
def test_the_source_stays_when_the_copy_is_not_what_was_proven(case: Case, harm: str) -> None:
    copy = case.folder / "archive/run/a.fastq"
    copy.unlink()
    if harm == "other bytes":
        copy.write_bytes(DATA[::-1])
    with pytest.raises(IntegrityError, match="The source stays"):
        case.dispose()
    assert case.source.read_bytes() == DATA


def test_a_source_that_changed_since_gets_its_name_back(case: Case) -> None:
    case.source.write_bytes(b"newer")
    with pytest.raises(SourceChanged):
        case.dispose()
    assert case.names() == ["a.fastq"]
    assert case.source.read_bytes() == b"newer"


def test_bytes_that_rotted_under_the_same_size_and_mtime_are_not_deleted(case: Case) -> None:
    status = case.source.stat()
    with open(case.source, "r+b") as file:
        file.write(b"X")
    os.utime(case.source, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(IntegrityError, match="now reads as"):
        case.dispose()
    assert case.names() == ["a.fastq"]


def test_a_writer_that_comes_back_makes_a_new_file_which_stays(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = module._checked

    def write_then_check(*args, **kwargs):  # type: ignore[no-untyped-def]
        case.source.write_bytes(b"a new run")
        return checked(*args, **kwargs)

    monkeypatch.setattr(module, "_checked", write_then_check)
    assert case.dispose() == "deleted"
    assert case.source.read_bytes() == b"a new run"


def test_both_stay_visible_when_the_older_must_go_back_and_its_name_is_taken(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_then_fail(*args, **kwargs):  # type: ignore[no-untyped-def]
        case.source.write_bytes(b"a new run")
        raise IntegrityError("differs")

    monkeypatch.setattr(module, "_checked", write_then_fail)
    with pytest.raises(IntegrityError):
        case.dispose()
    assert case.names() == ["a.fastq", "a.fastq.older-7"]
    assert (case.source.parent / "a.fastq.older-7").read_bytes() == DATA


def test_a_restart_finishes_what_was_set_aside(case: Case) -> None:
    os.rename(case.source, case.aside)
    assert case.dispose() == "deleted"
    assert case.names() == []


def test_what_another_host_has_set_aside_for_a_job_of_the_same_number_is_left_alone(case: Case) -> None:
    other = case.source.with_name("b.fastq")
    other.write_bytes(b"of another host")
    version = FileVersion("w", b"run/b.fastq", identity_of(os.stat(other)))
    set_aside = other.with_name(module._aside(replace(case.job, version=version)).decode())
    os.rename(other, set_aside)
    assert case.dispose() == "deleted"
    assert case.names() == [set_aside.name]


@pytest.mark.parametrize("after", ["delete", "move"])
def test_a_restart_in_the_midst_of_putting_back_removes_both_names(case: Case, after: str) -> None:
    """Between the link and the removal of the hidden name the file has both: one that stayed would be a source that
    the record says is gone."""
    os.link(case.source, case.aside)
    assert case.dispose(after).startswith("deleted" if after == "delete" else "moved:")
    assert case.names() == []


def test_somebody_elses_removal_is_not_claimed_as_ours(case: Case) -> None:
    case.source.unlink()
    assert case.dispose() == "gone"


def test_a_stop_in_the_middle_leaves_the_source_in_its_place(case: Case) -> None:
    with pytest.raises(Cancelled):
        case.dispose(cancelled=lambda: True)
    assert case.names() == ["a.fastq"]


@pytest.mark.parametrize("newer_is_still_there", [True, False])
def test_an_older_version_that_was_set_aside_gets_a_name_of_its_own(case: Case, newer_is_still_there: bool) -> None:
    """Never its own name again: it would be taken for the newest, and take the place of the newer copy."""
    os.rename(case.source, case.aside)
    if newer_is_still_there:
        case.source.write_bytes(b"newer")
    assert older(case.job, case.root)
    assert case.names() == ["a.fastq"] * newer_is_still_there + ["a.fastq.older-7"]
    assert (case.source.parent / "a.fastq.older-7").read_bytes() == DATA


def test_a_version_is_older_when_its_name_holds_another_or_nothing(case: Case) -> None:
    assert not older(case.job, case.root)
    assert case.source.read_bytes() == DATA
    case.source.write_bytes(b"newer")
    assert older(case.job, case.root)
    case.source.unlink()
    assert older(case.job, case.root)
    assert case.names() == []
