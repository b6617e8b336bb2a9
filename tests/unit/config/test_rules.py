"""No two watches take the same file, and nothing feeds itself."""

from __future__ import annotations

import threading

import pytest

from quaymaster.config import rules
from quaymaster.config.disk import within

NEAR = '[destination.near]\ntype = "beside"\n'


def watch(name: str, path: object, destinations: str = "out", more: str = "") -> str:
    return f'[watch.{name}]\npath = "{path}"\ndestinations = ["{destinations}"]\n{more}\n'


def out(path: object) -> str:
    return f'[destination.out]\ntype = "directory"\npath = "{path}"\n'


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


@pytest.mark.parametrize("inner_first", [False, True])
def test_a_watch_inside_another_would_take_the_same_files(site, inner_first):
    tables = [watch("all", "/data"), watch("some", "/data/some/where")]
    text = out("/out") + "".join(reversed(tables) if inner_first else tables)
    (problem,) = site.problems(text)
    inner, outer = line_of(text, '"/data/some/where"'), line_of(text, '"/data"')
    assert problem.startswith(f"{site.main}:{inner}: [watch.some] path: ")
    assert f"lies inside watch all ({site.main}:{outer}); both would take the same files: remove one" in problem


def test_two_watches_of_one_directory_in_two_files(site):
    (problem,) = site.problems(out("/out") + watch("a", "/data"), site=watch("b", "/data/"))
    assert problem.startswith(f"{site.drop_in('site')}:2: [watch.b] path: ")
    assert f"is also the directory of watch a ({site.main}:5)" in problem


def test_every_enclosing_watch_is_named(site):
    problems = site.problems(out("/out") + watch("a", "/d") + watch("b", "/d/e") + watch("c", "/d/e/f"))
    assert len(problems) == 3


def test_overlap_through_a_symbolic_link(site, tmp_path):
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (problem,) = site.problems(out("/out") + watch("a", tmp_path / "real") + watch("b", tmp_path / "link" / "below"))
    assert "[watch.b] path: " in problem
    assert "lies inside watch a" in problem


def test_names_that_only_begin_alike_do_not_overlap(site):
    site.load(out("/data-out") + watch("a", "/data") + watch("b", "/data2") + watch("c", "/dat"))


@pytest.mark.parametrize("key", ["state_dir", "staging_dir"])
def test_the_services_own_directories_are_not_watched(site, key):
    text = out("/out") + watch("in", "/data") + f'[service]\n{key} = "/data/own"\n'
    (problem,) = site.problems(text)
    assert problem.startswith(f"{site.main}:{line_of(text, key)}: [service] {key}: ")
    assert "lies inside watch in" in problem


def test_their_defaults_are_not_watched_either(site):
    problems = site.problems(out("/out") + watch("in", "/var/lib"))
    assert problems == [
        f'{site.main}: [service] state_dir: "/var/lib/quaymaster" lies inside watch in; '
        "it would take the service's own files: choose a directory outside"
    ]


@pytest.mark.parametrize("path", ["/data", "/data/done"])
def test_a_destination_inside_a_watch_would_feed_itself(site, path):
    (problem,) = site.problems(out(path) + watch("in", "/data"))
    assert problem.startswith(f"{site.main}:3: [destination.out] path: ")
    assert "it would take its own copies" in problem


def test_a_watch_inside_a_destination_would_take_what_was_delivered(site):
    (problem,) = site.problems(out("/data") + watch("in", "/data/in"))
    assert problem.startswith(f"{site.main}:5: [watch.in] path: ")
    assert "lies inside the directory of destination out" in problem


@pytest.mark.parametrize("path", ["/scratch", "/scratch/in"])
def test_a_watch_inside_staging_would_be_cleared(site, path):
    problems = site.problems(out("/out") + watch("in", path) + '[service]\nstaging_dir = "/scratch"\n')
    assert any("[watch.in] path: " in problem and "lies inside staging_dir" in problem for problem in problems)


@pytest.mark.parametrize("path", ["/scratch", "/scratch/state"])
def test_state_inside_staging_would_be_cleared(site, path):
    text = out("/out") + watch("in", "/in") + f'[service]\nstaging_dir = "/scratch"\nstate_dir = "{path}"\n'
    (problem,) = site.problems(text)
    assert "[service] state_dir: " in problem
    assert "lies inside staging_dir" in problem


def test_staging_inside_state_is_fine(site):
    site.load(out("/out") + watch("in", "/in") + '[service]\nstaging_dir = "/state/x"\nstate_dir = "/state"\n')


@pytest.mark.parametrize("path", ["/data", "/data/done"])
def test_moved_files_must_leave_the_watch(site, path):
    text = out("/out") + watch("in", "/data", more=f'after = "move:{path}"')
    (problem,) = site.problems(text)
    assert problem.startswith(f"{site.main}:{line_of(text, 'after =')}: [watch.in] after: ")
    assert "moved files would be found again" in problem


def test_beside_without_compression_has_nothing_to_publish(site):
    (problem,) = site.problems(NEAR + watch("in", "/data", "near"))
    assert problem.startswith(f"{site.main}:5: [watch.in] destinations: without compress near has nothing to publish")


def test_two_destinations_beside_the_source_would_collide(site):
    text = NEAR + NEAR.replace("near", "too") + watch("in", "/data", 'near", "too', 'compress = "zstd"')
    (problem,) = site.problems(text)
    assert "near and too would write the same file; remove one" in problem


@pytest.mark.timeout(60)
def test_a_hung_mount_does_not_hold_up_the_start(site, monkeypatch):
    """realpath(3) on a dead hard NFS mount never returns; then paths count as written."""
    release = threading.Event()
    monkeypatch.setattr(rules, "RESOLVING", 0.05)
    monkeypatch.setattr(rules.os.path, "realpath", lambda path: release.wait() and path)
    try:
        site.load(out("/out") + watch("a", "/data/a"))
        (problem,) = site.problems(out("/out") + watch("a", "/data/a") + watch("b", "/data/a/b"))
        assert "lies inside watch a" in problem
    finally:
        release.set()


def test_within_gives_the_answer_the_error_or_up():
    def fail() -> None:
        raise PermissionError(13, "no")

    release = threading.Event()
    assert within(5, lambda: 3) == 3
    with pytest.raises(PermissionError):
        within(5, fail)
    with pytest.raises(TimeoutError):
        within(0.01, release.wait)
    release.set()
