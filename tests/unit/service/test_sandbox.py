"""S2, S6: what the unit lacks for a configuration is found, and put so that systemd takes it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from quaymaster.config import Config, load
from quaymaster.config.machine import Machine
from quaymaster.service.sandbox import Unit, credentials_for, drop_in, read_unit, unit_name

SHOWN = """\
LoadState=loaded
User=quaymaster
ProtectSystem=strict
ProtectHome=yes
ReadWritePaths=-/srv/archive /mnt/done
LoadCredential=archive:/etc/quaymaster/credentials/archive
StateDirectory=quaymaster
CacheDirectory=quaymaster
"""
CONFIG = """
[destination.archive]
type = "directory"
path = "/srv/archive/raw"
[watch.in]
path = "/srv/in"
destinations = ["archive"]
"""


def config(tmp_path: Path, text: str = CONFIG) -> Config:
    (tmp_path / "quaymaster.toml").write_text(text)
    return load(str(tmp_path / "quaymaster.toml"), {}, Machine(8 << 30, 4))


def unit(shown: str = SHOWN) -> Unit:
    found = read_unit("quaymaster.service", lambda _: shown)
    assert found is not None
    return found


def test_a_unit_that_allows_all_that_is_wanted_lacks_nothing(tmp_path: Path) -> None:
    assert drop_in(config(tmp_path), unit()) == []


def test_what_is_written_and_not_allowed_is_named_once_and_quoted(tmp_path: Path) -> None:
    text = CONFIG.replace("/srv/archive/raw", "/srv/new archive") + 'after = "move:/mnt/50%"\n'
    assert drop_in(config(tmp_path, text), unit()) == ['ReadWritePaths="-/srv/new archive" -/srv/in -/mnt/50%%']


def test_a_directory_beside_which_something_is_allowed_is_not_taken_for_it(tmp_path: Path) -> None:
    text = CONFIG.replace("/srv/archive/raw", "/srv/archive2")
    assert drop_in(config(tmp_path, text), unit()) == ["ReadWritePaths=-/srv/archive2"]


def test_what_is_below_home_has_to_be_let_in(tmp_path: Path) -> None:
    reads = CONFIG.replace("/srv/in", "/home/lab/in")
    assert drop_in(config(tmp_path, reads), unit()) == ["ProtectHome=read-only"]
    writes = CONFIG.replace("/srv/archive/raw", "/home/lab/archive")
    assert drop_in(config(tmp_path, writes), unit()) == ["ReadWritePaths=-/home/lab/archive", "ProtectHome=no"]
    assert drop_in(config(tmp_path, reads), unit(SHOWN.replace("ProtectHome=yes", "ProtectHome=no"))) == []


def test_a_secret_that_only_root_may_read_has_to_be_handed_over(tmp_path: Path) -> None:
    text = CONFIG.replace(
        'type = "directory"\npath = "/srv/archive/raw"', 'type = "s3"\nbucket = "b1"\ncredentials = "X"'
    )
    wanted = config(tmp_path, text.replace("X", "other"))
    assert drop_in(wanted, unit(), exists=lambda _: True) == ["LoadCredential=other:/etc/quaymaster/credentials/other"]
    assert drop_in(wanted, unit(), exists=lambda _: False) == [], "it may come by another way"
    assert drop_in(config(tmp_path, text.replace("X", "archive")), unit(), exists=lambda _: True) == []
    hook = '[hook.h]\non = ["parked"]\nurl = "credential:chat"\nsecret = "signs"\n'
    lines = drop_in(config(tmp_path, CONFIG + hook), unit(), exists=lambda _: True)
    assert lines == [f"LoadCredential={name}:/etc/quaymaster/credentials/{name}" for name in ("signs", "chat")]
    whole = unit(SHOWN.replace("archive:/etc/quaymaster/credentials/archive", "quaymaster:/etc/quaymaster/credentials"))
    assert drop_in(wanted, whole, exists=lambda _: True) == []


def test_an_open_unit_and_no_unit_at_all(tmp_path: Path) -> None:
    text = CONFIG.replace("/srv/archive/raw", "/anywhere")
    assert drop_in(config(tmp_path, text), unit(SHOWN.replace("strict", "no"))) == []
    assert read_unit("quaymaster.service", lambda _: "LoadState=not-found\n") is None

    def fails(_: str) -> str:
        raise OSError("no bus")

    assert read_unit("quaymaster.service", fails) is None


def test_the_unit_of_a_configuration_is_told_by_its_name() -> None:
    assert unit_name("/etc/quaymaster/quaymaster.toml") == "quaymaster.service"
    assert unit_name("/etc/quaymaster/lab.toml") == "quaymaster@lab.service"
    assert unit_name("/srv/lab.toml") == "quaymaster.service"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may hand secrets to another user")
def test_credentials_are_handed_over_as_systemd_does_and_are_gone_afterwards(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s")
    given = Unit("u", credentials={"archive": str(secret), "missing": str(tmp_path / "nothing")})
    nobody = pwd.getpwnam("nobody").pw_uid
    with credentials_for(given, nobody) as environment:
        folder = Path(environment["CREDENTIALS_DIRECTORY"])
        assert [path.name for path in folder.iterdir()] == ["archive"]
        for path, mode in ((folder, 0o500), (folder / "archive", 0o400)):
            status = path.stat()
            assert (status.st_uid, status.st_mode & 0o777) == (nobody, mode)
    assert not folder.exists()
    with credentials_for(None, nobody) as environment:
        assert environment == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may hand secrets to another user")
def test_a_directory_of_credentials_is_handed_over_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    for name in ("archive", "api"):
        (tmp_path / "secrets" / name).write_text("s")
    given = Unit("u", credentials={"quaymaster": str(tmp_path / "secrets")})
    with credentials_for(given, os.geteuid()) as environment:
        assert sorted(os.listdir(environment["CREDENTIALS_DIRECTORY"])) == ["quaymaster_api", "quaymaster_archive"]
