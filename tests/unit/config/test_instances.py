"""S4: several services on one machine, each with its own configuration and directories."""

from __future__ import annotations

from quaymaster.config import load
from quaymaster.config.load import _own_paths

SMALLEST = """\
[destination.out]
type = "directory"
path = "/out"
[watch.in]
path = "/in"
destinations = ["out"]
"""


def test_state_and_staging_are_where_systemd_made_them_unless_the_file_says_otherwise(site) -> None:
    environ = {"STATE_DIRECTORY": "/var/lib/quaymaster/lab:/other", "CACHE_DIRECTORY": "/var/cache/quaymaster/lab"}
    (site.directory / "quaymaster.toml").write_text(SMALLEST)
    config = load(str(site.directory / "quaymaster.toml"), environ)
    assert (config.service.state_dir, config.service.staging_dir) == (
        "/var/lib/quaymaster/lab", "/var/cache/quaymaster/lab",
    )  # fmt: skip
    (site.directory / "quaymaster.toml").write_text('[service]\nstate_dir = "/srv/state"\n' + SMALLEST)
    assert load(str(site.directory / "quaymaster.toml"), environ).service.state_dir == "/srv/state"


def test_a_command_finds_the_state_of_an_instance_by_the_name_of_its_configuration() -> None:
    assert _own_paths("/etc/quaymaster/lab.toml", {}) == {
        "state_dir": "/var/lib/quaymaster/lab", "staging_dir": "/var/cache/quaymaster/lab",
        "socket": "/run/quaymaster/lab/api.sock",
    }  # fmt: skip
    main = {"socket": "/run/quaymaster/api.sock"}
    assert _own_paths("/etc/quaymaster/quaymaster.toml", {}) == main
    assert _own_paths("/etc/quaymaster/x.toml", {"RUNTIME_DIRECTORY": "/run/y"})["socket"] == "/run/y/api.sock"
    assert _own_paths("/srv/lab.toml", {}) == main, "only what is in /etc/quaymaster belongs to an instance"


def test_an_instance_reads_drop_ins_of_its_own_and_not_those_of_the_main_service(site) -> None:
    (site.directory / "conf.d").mkdir()
    (site.directory / "conf.d/a.toml").write_text("[limits]\nfiles = 3\n")
    (site.directory / "lab.d").mkdir()
    (site.directory / "lab.d/a.toml").write_text("[limits]\nfiles = 4\n")
    for name, files in (("quaymaster.toml", 3), ("lab.toml", 4)):
        (site.directory / name).write_text(SMALLEST)
        assert load(str(site.directory / name), {}).limits.files == files
