"""Sources on a network filesystem: found by polling, copied to staging, and delivered from there (PRODUCT W2, P1).

The filesystem is a true one, sshfs, whose server is a child process of its client: no port, no network. Files are
landed behind its back, as another machine would, and the client hears of nothing by itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.data import MIB, fastq, make
from quaymaster.model import State
from system.bucket import Bucket
from system.conftest import Home, files_below
from system.evidence import expanded_sha256, file_sha256
from system.service import Service, until

Serve = Callable[..., Service]
COMPRESS = 'compress = { format = "zstd", level = 1, min_size = "1MiB" }'
SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")


class Share:
    """The directory ``behind`` on the server, mounted at ``mounted``."""

    def __init__(self, behind: Path, mounted: Path, wrapper: Path) -> None:
        self.behind, self.mounted, self._wrapper = behind, mounted, wrapper

    def mount(self) -> None:
        options = f"ssh_command={self._wrapper},cache=no,reconnect"
        done = subprocess.run(
            ["sshfs", f"nowhere:{self.behind}", str(self.mounted), "-o", options], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"sshfs cannot mount here: {done.stderr.strip()}")

    def unmount(self) -> None:
        subprocess.run(["fusermount3", "-uz", str(self.mounted)], check=False, capture_output=True)


@pytest.fixture
def share(home: Home) -> Iterator[Share]:
    """The landing, mounted over sshfs."""
    server = next((path for path in SFTP_SERVERS if os.access(path, os.X_OK)), "")
    missing = [name for name in ("sshfs", "fusermount3") if not shutil.which(name)]
    missing += [] if server else ["sftp-server"]
    missing += [] if os.access("/dev/fuse", os.R_OK | os.W_OK) else ["/dev/fuse"]
    if missing:
        pytest.skip(f"a network filesystem needs {', '.join(missing)}")
    wrapper = home.folder / "no-ssh"
    wrapper.write_text(f"#!/bin/sh\nexec {server}\n")
    wrapper.chmod(0o755)
    behind = home.folder / "server"
    behind.mkdir()
    found = Share(behind, home.landing, wrapper)
    found.mount()
    yield found
    found.unmount()


def land(share: Share) -> dict[str, str]:
    (share.behind / "run").mkdir()
    (share.behind / "run/small").write_bytes(b"small")
    (share.behind / "empty").touch()
    making = share.behind.parent / "reads.fastq"  # making it may take longer than it takes to settle
    make(making, fastq, 20 * MIB)
    making.rename(share.behind / "run/reads.fastq")
    return {name: file_sha256(share.behind / name) for name in ("run/small", "empty", "run/reads.fastq")}


def check_copies(home: Home, expected: dict[str, str]) -> None:
    for name, digest in expected.items():
        assert expanded_sha256(home.archive / (name + (".zst" if name.endswith("fastq") else ""))) == digest
    assert len(home.arrived()) == len(expected)


def test_a_share_is_polled_and_its_files_go_through_staging(home: Home, serve: Serve, share: Share) -> None:
    service = serve(home.config(f'settle = "1.5s"\npoll_interval = "0.5s"\n{COMPRESS}'))
    expected = land(share)
    copied = until(lambda: [job.checkpoint for job in service.jobs() if "staged_sha256" in job.checkpoint])
    assert {checkpoint["staged_sha256"] for checkpoint in copied} <= set(expected.values())
    service.until_done(3)
    check_copies(home, expected)
    assert not home.leftovers()
    code, answer = service.cli("status")
    (watch,) = answer["watches"]
    assert (code, watch["mode"], watch["state"]) == (0, "poll", "watching")
    assert "sshfs" in str(watch_of(service)["filesystem"])
    service.stop()


def test_a_file_that_still_grows_on_the_server_is_not_taken(home: Home, serve: Serve, share: Share) -> None:
    service = serve(home.config('settle = "2s"\npoll_interval = "0.3s"'))
    names = (f"growing{attempt}" for attempt in range(10))
    name = next(name for name in names if _grew_steadily(share, service, name))
    service.until_done(1)
    until(lambda: (home.archive / name).exists())
    assert (home.archive / name).read_bytes() == (share.behind / name).read_bytes()
    assert len(service.deliveries(name)) == 1
    service.stop()


def _grew_steadily(share: Share, service: Service, name: str) -> bool:
    """Make a file in eight pieces, while the watch is looked through between them. False when this machine was so slow
    that the file stood still for long enough to be taken."""
    written = []
    with open(share.behind / name, "wb") as file:
        for number in range(8):
            file.write(b"%d" % number * 50_000)
            file.flush()
            written.append(time.monotonic())
            scans = watch_of(service)["scans"]
            until(lambda scans=scans: watch_of(service)["scans"] > scans + 1)
            if time.monotonic() - written[-1] > 1.5:
                return False
            assert not service.lines(name), "it was taken while it grew"
    assert written[-1] - written[0] > 2, "long enough to be taken, had nobody looked at its changes"
    return True


def watch_of(service: Service) -> dict[str, object]:
    with service.store() as store:
        return store.reports().get("watch:landing", (0.0, {"scans": 0}))[1]


def test_a_share_that_goes_away_is_an_outage_and_no_loss(home: Home, serve: Serve, share: Share) -> None:
    """Nor is what was delivered sent again, though sshfs gives every file another inode number after each mount."""
    service = serve(home.config(f'settle = "1s"\npoll_interval = "0.3s"\n{COMPRESS}'))
    (share.behind / "before").write_bytes(b"before the outage")
    service.until_done(1)
    share.unmount()
    until(lambda: watch_of(service)["state"] == "outage")
    (share.behind / "meanwhile").write_bytes(b"landed while nobody could see it")
    share.mount()
    service.until_done(2)
    assert home.arrived() == {b"before": b"before the outage", b"meanwhile": b"landed while nobody could see it"}
    assert len(service.deliveries("before")) == 1
    service.stop()


def test_a_local_source_is_staged_when_the_config_says_so(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(home.config(f'stage = true\nafter = "delete"\n{COMPRESS}', bucket.destination()))
    made = make(home.folder / "made", fastq, 30 * MIB)
    expected = file_sha256(made)
    os.rename(made, home.landing / "reads.fastq")
    until(lambda: any("staged_sha256" in job.checkpoint for job in service.jobs()))
    service.until_done(1)
    bucket.download("reads.fastq.zst", home.folder / "back.zst")
    assert expanded_sha256(home.folder / "back.zst") == expected
    assert bucket.metadata("reads.fastq.zst")["quaymaster-sha256"] == expected
    assert list(files_below(os.fsencode(home.landing))) == []
    assert not home.leftovers()
    service.stop()


def test_staged_copies_survive_a_kill_or_are_made_again(home: Home, serve: Serve, bucket: Bucket) -> None:
    service = serve(home.config("stage = true", bucket.destination()))
    expected = {f"f{number}": os.urandom(8 * MIB) for number in range(6)}
    for name, content in expected.items():
        home.land(name, content)
    until(lambda: [job for job in service.jobs(states=(State.RUNNING,)) if "staged_sha256" in job.checkpoint])
    service.kill()
    service.start()
    service.until_done(6)
    assert {name: bucket.content(name) for name in bucket.objects()} == expected
    service.stop()
    assert not home.leftovers()
    assert bucket.uploads() == []
