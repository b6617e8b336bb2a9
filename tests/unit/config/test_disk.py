"""What is missing on this machine is said in one line each, and stops nothing."""

from __future__ import annotations

import threading

import pytest

from quaymaster.config import disk, problems_on_disk

TEXT = """\
[service]
state_dir = "{0}/state"
staging_dir = "{0}/staging"
[destination.out]
type = "directory"
path = "{0}/out"
[destination.cloud]
type = "s3"
bucket = "lab"
[watch.in]
path = "{0}/in"
destinations = ["out", "cloud"]
"""


@pytest.fixture
def place(open_directory):
    for name in ("state", "staging", "out", "in"):
        (open_directory / name).mkdir(mode=0o777)
        (open_directory / name).chmod(0o777)
    return open_directory


@pytest.fixture
def found(site, place):
    """The problems of TEXT with ``more`` added."""

    def look(more: str = "", environ: dict[str, str] | None = None) -> list[str]:
        return problems_on_disk(site.load(TEXT.format(place) + more), environ or {})

    return look


def test_nothing_missing(found):
    assert found() == []


def test_own_directories_need_not_exist_yet(found, place):
    (place / "state").rmdir()
    (place / "staging").rmdir()
    assert found() == []


def test_missing_directories(found, place, site):
    (place / "in").rmdir()
    (place / "out").rmdir()
    assert found() == [
        f"{site.main}:6: [destination.out] path: {place}/out does not exist; create it, or mount what it is on",
        f"{site.main}:11: [watch.in] path: {place}/in does not exist; create it, or mount what it is on",
    ]


def test_files_in_place_of_directories(found, place, site):
    for name in ("in", "out", "state", "staging"):
        (place / name).rmdir()
        (place / name).write_text("")
    assert [problem.split(": ")[1] for problem in found()] == [
        "[service] state_dir",
        "[service] staging_dir",
        "[destination.out] path",
        "[watch.in] path",
    ]
    assert "is not a directory; name the directory" in found()[3]


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("in", 0o000, "[watch.in] path: {}/in cannot be read"),
        ("out", 0o555, "[destination.out] path: {}/out cannot be written to"),
        ("state", 0o555, "[service] state_dir: {}/state cannot be written to"),
    ],
)
def test_permissions(site, place, nobody, name, mode, words):
    config = site.load(TEXT.format(place))
    (place / name).chmod(mode)
    with nobody():
        (problem,) = problems_on_disk(config, {})
    assert words.format(place) in problem


def test_own_directories_that_cannot_be_made(site, place, nobody):
    config = site.load(TEXT.format(place).replace("/state", "/locked/a/state"))
    (place / "locked").mkdir(mode=0o555)
    with nobody():
        problems = problems_on_disk(config, {})
    assert any(f"state_dir: {place}/locked/a/state cannot be created in {place}/locked" in line for line in problems)


def test_a_watch_that_removes_its_sources_must_be_writable(site, place, nobody):
    (place / "in").chmod(0o555)
    keeping = site.load(TEXT.format(place))
    with nobody():
        assert problems_on_disk(keeping, {}) == []
    deleting = site.load(TEXT.format(place) + 'after = "delete"\n')
    with nobody():
        (problem,) = problems_on_disk(deleting, {})
    assert "[watch.in] path: " in problem
    assert "cannot be written to" in problem


def test_move_directory(found, place):
    assert found(f'after = "move:{place}/done"\n') == []
    (place / "file").write_text("")
    (problem,) = found(f'after = "move:{place}/file/done"\n')
    assert f"[watch.in] after: {place}/file/done cannot be created" in problem


def test_credentials_and_certificates(found, place):
    (place / "key").write_text("access_key = hunter2\nsecret_key = hunter2\n")
    (place / "key").chmod(0o644)
    more = f'[destination.cloud]\nca_bundle = "{place}/ca.pem"\ncredentials = "{place}/key"\n'
    cloud = '[destination.more]\ntype = "s3"\nbucket = "more"\n' + more.partition("\n")[2]
    problems = found(cloud)
    assert [problem.split(": ")[1] for problem in problems] == [
        "[destination.more] ca_bundle",
        "[destination.more] credentials",
    ]
    assert f"chmod 0600 {place}/key" in problems[1]
    assert "hunter2" not in "".join(problems)


def test_a_hung_mount_is_one_line_and_does_not_hang(site, place, monkeypatch):
    config = site.load(TEXT.format(place))
    release = threading.Event()
    check = disk._readable
    monkeypatch.setattr(disk, "_readable", lambda path: release.wait() and "" if path.endswith("/in") else check(path))
    try:
        (problem,) = problems_on_disk(config, {}, patience=0.5)
    finally:
        release.set()
    assert problem.endswith(f"[watch.in] path: {place}/in does not answer within 0.5 s; is its mount hung?")


def test_a_mount_that_fails_is_one_line(site, place, monkeypatch):
    config = site.load(TEXT.format(place))
    monkeypatch.setattr(disk.os.path, "isdir", fail)
    problems = problems_on_disk(config, {})
    assert "(Stale file handle); check the mount" in problems[0]


def fail(path: str) -> bool:
    raise OSError(116, "Stale file handle")
