"""A share that goes away or stops answering: its watch says so and waits, the others go on, nothing is taken for
removed, and when it is back everything that landed meanwhile arrives (PRODUCT W6, S1, P13)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from quaymaster.model import State
from system.conftest import Home, quoted
from system.faulty_filesystem import FaultyFilesystem, reason_to_skip
from system.mishaps import is_calm, no_mounts, small_disk
from system.service import Service, until

Serve = Callable[..., Service]
CONTENT = os.urandom(70_000)
# Almost: a call that a FUSE process has taken cannot be interrupted, not even by SIGKILL (a hard NFS mount's can), and
# no command that looks at the mount point would end.
EVERYTHING_HANGS = {"every": "hang", "flush": "", "getattr": ""}

pytestmark = [
    pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip()),
    pytest.mark.skipif(bool(no_mounts()), reason=no_mounts()),
]


@pytest.fixture
def share(home: Home) -> Iterator[FaultyFilesystem]:
    with FaultyFilesystem(home.folder / "fuse") as filesystem:
        yield filesystem


def two_watches(home: Home, share: FaultyFilesystem, more: str = "") -> str:
    """The local "landing" and "share" on the faulty filesystem; two shared workers, which one hang would use up."""
    settings = f"""
[watch.share]
path = {quoted(share.seen)}
destinations = ["archive"]
key = "share/{{path}}"
settle = "0.3s"
poll_interval = "0.2s"
hang_after = "1s"
{more}
"""
    return home.config(limits="files = 2", service='stop_timeout = "3s"') + settings


def arrives(home: Home, name: str, content: bytes = CONTENT, timeout: float = 30) -> None:
    def there() -> bool:
        try:
            return (home.archive / name).read_bytes() == content
        except FileNotFoundError:
            return False

    until(there, timeout, f"{name} in the archive")


def out(service: Service, *texts: str) -> None:
    """The watch of the share is away, for this reason, and that was told once."""

    def away() -> bool:
        watch = service.watch("share")
        return watch["state"] == "outage" and all(text in watch["reason"] for text in texts)

    until(away, what=f"an outage for {texts}, not {service.watch('share')}")
    assert time.time() - service.watch("share")["since"] < 60
    person = " ".join(service.command("status", "--all").stdout.split())
    assert "since 20" in person
    assert len(service.lines("error", *texts)) == 1, service.log
    is_calm(service.log)


def is_back(service: Service) -> None:
    until(lambda: service.watch("share")["state"] == "watching")


def local_goes_on(home: Home, service: Service, name: str) -> None:
    """More files than there are shared workers, and quickly."""
    for number in range(4):
        home.land(f"{name}{number}", CONTENT)
    for number in range(4):
        arrives(home, f"{name}{number}", timeout=10)
    assert service.watch("landing")["state"] == "watching"


def nothing_failed(service: Service) -> None:
    """No job was blamed for what happened to its whole watch."""
    assert [(job.version.path, job.attempts, job.error) for job in service.jobs() if job.attempts] == []
    assert not service.states()[State.SUPERSEDED]


# -- it goes away --


def is_unmounted(share: FaultyFilesystem) -> None:
    share.unmount()


def is_mounted_over(share: FaultyFilesystem) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", share.seen], check=True)
    (share.seen / "a0").write_bytes(b"not ours")


def is_dead(share: FaultyFilesystem) -> None:
    share.die()


def answers_with_errors(share: FaultyFilesystem) -> None:
    share.fail(every="EIO")


def is_stale(share: FaultyFilesystem) -> None:
    share.fail(every="ESTALE")


def is_emptied(share: FaultyFilesystem) -> None:
    share.held.rename(share.held.with_name("elsewhere"))
    share.held.mkdir()


def is_mounted_again(share: FaultyFilesystem) -> None:
    share.unmount()
    share.mount()


def is_uncovered(share: FaultyFilesystem) -> None:
    subprocess.run(["umount", share.seen], check=True)


def answers_again(share: FaultyFilesystem) -> None:
    share.fail()


def is_filled_again(share: FaultyFilesystem) -> None:
    shutil.rmtree(share.held)
    share.held.with_name("elsewhere").rename(share.held)


@pytest.mark.parametrize(
    ("goes", "reason", "comes_back"),
    [
        (is_unmounted, "is not mounted: it was the fuse filesystem", FaultyFilesystem.mount),
        (is_mounted_over, "is not on the same filesystem as before", is_uncovered),
        (is_dead, "endpoint is not connected", is_mounted_again),
        (answers_with_errors, "Input/output error", answers_again),
        (is_stale, "Stale file handle", answers_again),
        (is_emptied, "is empty, and was not before", is_filled_again),
    ],
)
def test_a_share_that_goes_away_is_an_outage_of_its_watch_and_loses_nothing(
    home: Home,
    serve: Serve,
    share: FaultyFilesystem,
    goes: Callable[[FaultyFilesystem], None],
    reason: str,
    comes_back: Callable[[FaultyFilesystem], None],
) -> None:
    service = serve(two_watches(home, share))
    for number in range(20):
        (share.held / f"a{number}").write_bytes(CONTENT)
    arrives(home, "share/a1")
    goes(share)  # while some of its files are on their way, and others wait
    out(service, reason)
    local_goes_on(home, service, "local")
    held = share.held.with_name("elsewhere") if goes is is_emptied else share.held
    (held / "meanwhile").write_bytes(CONTENT)
    comes_back(share)
    service.until_done(25)
    is_back(service)
    arrived = home.arrived()
    assert all(arrived[b"share/a%d" % number] == CONTENT for number in range(20))
    assert arrived[b"share/meanwhile"] == CONTENT
    nothing_failed(service)
    service.stop()


def test_a_missing_sentinel_is_an_outage_and_the_sentinel_is_never_taken(
    home: Home, serve: Serve, share: FaultyFilesystem
) -> None:
    sentinel = share.held / ".quaymaster-sentinel"
    sentinel.touch()
    service = serve(two_watches(home, share, 'sentinel = ".quaymaster-sentinel"\nafter = "delete"'))
    (share.held / "a").write_bytes(CONTENT)
    arrives(home, "share/a")
    until(lambda: os.listdir(share.held) == [sentinel.name])
    until(lambda: service.watch("share")["state"] == "watching", what="empty but for it, which is right")
    sentinel.unlink()
    (share.held / "b").write_bytes(CONTENT)
    out(service, "does not hold its sentinel .quaymaster-sentinel")
    sentinel.touch()
    arrives(home, "share/b")
    service.until_done(2)
    assert not any(b"sentinel" in name for name in home.arrived())


# -- it is away when the service starts --


def test_after_a_restart_without_the_mount_the_directory_below_is_not_taken_for_the_share(
    home: Home, serve: Serve, share: FaultyFilesystem
) -> None:
    config = two_watches(home, share, 'after = "delete"\nafter_grace = "2s"')
    service = serve(config)
    (share.held / "a").write_bytes(CONTENT)
    arrives(home, "share/a")
    service.stop()
    share.unmount()
    (share.seen / "not-of-the-share").write_bytes(b"on the local disk")
    service.start()
    out(service, f"{share.seen} is not mounted: it was the fuse filesystem", "quaymaster accept share")
    local_goes_on(home, service, "local")
    time.sleep(2.5)  # the grace period of the delivered file passes while nobody can see it
    assert service.jobs(path=b"a")[0].state is not State.DONE, "its source was not removed by us, nor by anybody"
    (share.seen / "not-of-the-share").unlink()
    share.mount()
    service.until_done(5)
    assert not (share.held / "a").exists()
    assert [found.disposal for found in service.deliveries("a", "share")] == ["deleted"]
    assert b"share/not-of-the-share" not in home.arrived()
    nothing_failed(service)


def test_a_change_that_was_meant_is_accepted_by_command(home: Home, serve: Serve, share: FaultyFilesystem) -> None:
    service = serve(two_watches(home, share))
    (share.held / "a").write_bytes(CONTENT)
    arrives(home, "share/a")
    share.unmount()
    with small_disk(share.seen, "size=10m"):
        (share.seen / "b").write_bytes(CONTENT)
        out(service, "is not on the same filesystem as before", "quaymaster accept share")
        assert service.cli("accept", "share")[1]["forgotten"][0]["type"] == "fuse"
        arrives(home, "share/b")
        is_back(service)


# -- it does not answer --


@pytest.fixture
def hung(home: Home, serve: Serve, share: FaultyFilesystem) -> Iterator[Service]:
    """A service whose share does not answer; one of its files is being read."""
    service = serve(two_watches(home, share))
    (share.held / "first").write_bytes(CONTENT)
    arrives(home, "share/first")
    share.fail(read="hang")
    for number in range(4):
        (share.held / f"a{number}").write_bytes(CONTENT)
    out(service, "No answer from the fuse filesystem")
    yield service
    share.fail()


def test_a_hang_while_a_file_is_read_holds_up_its_own_watch_alone(
    home: Home, hung: Service, share: FaultyFilesystem
) -> None:
    local_goes_on(home, hung, "local")
    share.fail(**EVERYTHING_HANGS)
    local_goes_on(home, hung, "more")
    assert len(hung.jobs(states=(State.RUNNING,), watch="share")) == 1
    assert len(hung.jobs(states=(State.QUEUED,), watch="share")) == 3, "no more of its jobs are claimed"
    (share.held / "meanwhile").write_bytes(CONTENT)
    share.fail()
    hung.until_done(14)
    arrives(home, "share/meanwhile")
    is_back(hung)
    assert len(hung.lines("answers again after")) == 1
    nothing_failed(hung)


def test_a_stop_does_not_wait_for_what_hangs_and_a_start_goes_on_without_it(
    home: Home, hung: Service, share: FaultyFilesystem
) -> None:
    assert hung.stop() < 3 + 5
    share.fail(**EVERYTHING_HANGS)
    hung.start()
    local_goes_on(home, hung, "local")
    until(lambda: hung.watch("share")["state"] == "outage" and "No answer" in hung.watch("share")["reason"])
    share.fail()
    hung.until_done(9)
    nothing_failed(hung)


def test_a_reload_does_not_wait_for_what_hangs(home: Home, hung: Service, share: FaultyFilesystem) -> None:
    hung.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    until(lambda: hung.lines("the configuration was read again"), 20)
    local_goes_on(home, hung, "local")
    share.fail()
    hung.until_done(9)
    nothing_failed(hung)


@pytest.mark.parametrize("operation", ["rename", "unlink"])
def test_a_hang_while_a_source_is_removed_holds_up_its_own_watch_alone(
    home: Home, serve: Serve, share: FaultyFilesystem, operation: str
) -> None:
    service = serve(two_watches(home, share, 'after = "delete"'))
    share.fail(**{operation: "hang"})
    for number in range(4):
        (share.held / f"a{number}").write_bytes(CONTENT)
    out(service, "No answer from the fuse filesystem")
    local_goes_on(home, service, "local")
    share.fail()
    service.until_done(8)
    assert os.listdir(share.held) == []
    nothing_failed(service)


def test_copying_and_compressing_beside_a_share_overlap_and_hang_with_it_alone(
    home: Home, serve: Serve, share: FaultyFilesystem
) -> None:
    settings = 'compress = { format = "zstd", min_size = "1KiB" }'
    config = two_watches(home, share, settings).replace('destinations = ["archive"]\nkey = "share/{path}"',
                                                        'destinations = ["beside"]')  # fmt: skip
    service = serve(config + '\n[destination.beside]\ntype = "beside"\n')
    share.fail(write="hang")
    for number in range(4):
        (share.held / f"a{number}").write_bytes(b"reads " * 20_000)

    def stages() -> list[str]:
        return sorted(str(job["stage"]) for job in service.progress().values())

    until(lambda: stages() == ["fetch", "transfer"], what="one is copied while another one is compressed")
    local_goes_on(home, service, "local")
    share.fail()
    service.until_done(8)
    assert sorted(os.listdir(share.held)) == sorted(f"a{n}{suffix}" for n in range(4) for suffix in ("", ".zst"))
    nothing_failed(service)


# -- a destination --


def delivers_to(home: Home, share: FaultyFilesystem) -> str:
    below = quoted(share.seen / "archive")
    return home.config(destinations=f'[destination.archive]\ntype = "directory"\npath = {below}')


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("below", ["nothing", "a directory of the same name"])
def test_nothing_is_delivered_below_the_mount_point_of_a_share_that_is_not_mounted(
    home: Home, serve: Serve, share: FaultyFilesystem, restart: bool, below: str
) -> None:
    (share.held / "archive").mkdir()
    service = serve(delivers_to(home, share))
    home.land("a", CONTENT)
    service.until_done(1)
    if restart:
        service.stop()
    share.unmount()
    if below != "nothing":
        (share.seen / "archive").mkdir()
    if restart:
        service.start()
    home.land("b", CONTENT)
    (job,) = until(lambda: service.jobs(states=(State.WAITING,), path=b"b"))
    assert job.error_code == "unreachable"
    assert "is not mounted: it was the fuse filesystem" in job.error
    assert "quaymaster accept archive" in job.error
    assert [name for _, _, names in os.walk(share.seen) for name in names] == []
    if below != "nothing":
        (share.seen / "archive").rmdir()
    share.mount()
    service.until_done(2)  # by itself
    assert sorted(name for name in os.listdir(share.held / "archive") if not name.startswith(".")) == ["a", "b"]


def test_files_are_not_moved_to_below_the_mount_point_either(home: Home, serve: Serve, share: FaultyFilesystem) -> None:
    (share.held / "done").mkdir()
    service = serve(home.config(f'after = "move:{share.seen}/done"'))
    home.land("a", CONTENT)
    service.until_done(1)
    share.unmount()
    (share.seen / "done").mkdir()
    home.land("b", CONTENT)
    (job,) = until(lambda: service.jobs(states=(State.WAITING,), path=b"b"))
    assert "is not mounted: it was the fuse filesystem" in job.error
    assert (home.landing / "b").read_bytes() == CONTENT
    assert os.listdir(share.seen / "done") == []
    (share.seen / "done").rmdir()
    share.mount()
    service.until_done(2)
    assert (share.held / "done/b").read_bytes() == CONTENT


def goes_far_and_near(home: Home, share: FaultyFilesystem) -> str:
    """The local "landing" goes to the archive and "travels" to the share; two workers, which one hang would use up."""
    settings = f"""
[destination.far]
type = "directory"
path = {quoted(share.seen)}
hang_after = "1s"
[watch.travels]
path = {quoted(home.folder / "travels")}
destinations = ["far"]
key = "{{path}}"
settle = "0.3s"
compress = {{ format = "zstd", min_size = "1KiB" }}
"""
    (home.folder / "travels").mkdir()
    compressing = 'compress = { format = "zstd", min_size = "1KiB" }'
    return home.config(compressing, limits="files = 2", service='stop_timeout = "3s"') + settings


def says_why(service: Service) -> None:
    """``status`` does, as soon as the service has come round to telling."""

    def said() -> bool:
        return "No answer from the filesystem of" in " ".join(service.command("status", "--all").stdout.split())

    until(said, 60, "status says why the files wait")


def test_a_destination_that_hangs_from_the_start_says_why_its_files_wait(
    home: Home, serve: Serve, share: FaultyFilesystem
) -> None:
    share.fail(**EVERYTHING_HANGS, statfs="hang")
    service = serve(goes_far_and_near(home, share))
    (home.folder / "travels/a").write_bytes(CONTENT)
    until(lambda: service.jobs(states=(State.WAITING,), error_code="unreachable"), 60, "it waits")
    says_why(service)
    share.fail()
    service.cli("jobs", "retry", "--all")
    service.until_done(1, 60)


@pytest.mark.parametrize("operation", ["write", "fsync", "link", "every"])
def test_a_destination_that_hangs_holds_up_its_own_files_alone(
    home: Home, serve: Serve, share: FaultyFilesystem, operation: str
) -> None:
    service = serve(goes_far_and_near(home, share))
    (home.folder / "travels/first").write_bytes(CONTENT)
    service.until_done(1)
    share.fail(**(EVERYTHING_HANGS if operation == "every" else {operation: "hang"}))
    for number in range(6):
        (home.folder / f"travels/a{number}").write_bytes(CONTENT)
    find = {"states": (State.WAITING,), "watch": "travels", "error_code": "unreachable"}
    until(lambda: len(service.jobs(**find)) == 6, 60, "all of them wait")
    assert all("No answer from the filesystem of" in job.error for job in service.jobs(**find))
    local_goes_on(home, service, "local")
    says_why(service)
    with service.begin("check", "--destinations") as check:
        assert check.stdout is not None
        assert any("No answer from the filesystem of" in line for line in check.stdout)
        share.fail()  # before that, the call that hangs keeps the process
        assert check.wait(30) == 1
    service.cli("jobs", "retry", "--all")
    service.until_done(11, 90)
    until(
        lambda: not [name for name in os.listdir(share.held) if f"-{service.pid}-" in name], 60, "nothing is left over"
    )
    assert all((share.held / f"a{number}").read_bytes() == CONTENT for number in range(6))
    is_calm(service.log)
    service.stop()
