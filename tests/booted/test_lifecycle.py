"""S4: packages come, are replaced and go, while the service works and afterwards."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from booted.conftest import NEWER, Machine
from booted.test_faults import arrived, third_part_hangs
from servers.booted import until
from servers.seaweed import Seaweed

Package = Callable[..., Path]


def test_installing_starts_nothing_and_says_what_to_do(bare: Machine, package: Package) -> None:
    said = bare.install(package())
    assert "edit /etc/quaymaster/quaymaster.toml" in said
    shown = bare.system.show("quaymaster.service", "ActiveState", "UnitFileState", "LoadState")
    assert shown["ActiveState"] == "inactive"
    assert shown["LoadState"] == "loaded"
    assert bare.system.run("id", "-un", "quaymaster").out.strip() == "quaymaster"
    assert " quaymaster: " in bare.system.run("journalctl", "--list-catalog", "--no-pager").out


def test_what_doctor_prints_is_all_that_the_unit_lacks(machine: Machine) -> None:
    machine.system.path("/etc/systemd/system/quaymaster.service.d/test.conf").unlink()
    machine.system.run("systemctl", "daemon-reload")
    archive = machine.folder("my archive")
    machine.configure(destinations='[destination.archive]\ntype = "directory"\npath = "/srv/my archive"\n')
    done = machine.quaymaster("doctor", check=False)
    assert done.status == 1
    assert "systemctl edit quaymaster.service" in done.out
    lines = [line.strip() for line in done.out.splitlines()]
    settings = [line for line in lines[lines.index("[Service]") + 1 :] if line.startswith("ReadWritePaths=")]
    machine.drop_in(*settings)
    done = machine.quaymaster("doctor", check=False)
    assert done.status == 0, done.out
    machine.start()
    machine.land("a.txt", b"a")
    until(lambda: (archive / "a.txt").exists(), 20, "\n".join(machine.log()))
    assert machine.quaymaster("doctor", check=False).status == 0, "also beside the running service"


def test_doctor_looks_with_the_services_own_eyes(machine: Machine) -> None:
    (machine.system.srv / "landing/private.txt").write_bytes(b"root's own")
    (machine.system.srv / "landing/private.txt").chmod(0o600)
    done = machine.quaymaster("doctor", check=False)
    assert done.status == 1
    assert "cannot be read by quaymaster, the first is /srv/landing/private.txt" in done.out
    assert "setfacl" in done.out


def test_an_upgrade_in_the_middle_of_an_upload_loses_nothing(
    machine: Machine, package: Package, seaweed: Seaweed
) -> None:
    newer = package("bookworm", NEWER)
    content = random.Random(4).randbytes(40 << 20)
    with third_part_hangs(machine, seaweed) as third:
        text = machine.system.path("/etc/quaymaster/quaymaster.toml").read_text()
        machine.system.put("/etc/quaymaster/quaymaster.toml", f'[service]\nstop_timeout = "1s"\n{text}')
        machine.start()
        pid = machine.pid()
        machine.land("big.bin", content)
        assert third.begun.wait(30), machine.log()
        machine.install(newer)
        assert not arrived(machine, seaweed, "big.bin", content)
        assert machine.pid() not in (0, pid), "it was restarted, once"
        third.over.set()
        until(lambda: arrived(machine, seaweed, "big.bin", content), 60, "\n".join(machine.log()))
    assert NEWER in machine.quaymaster("--version").out
    assert "1s" in machine.system.path("/etc/quaymaster/quaymaster.toml").read_text(), "the configuration was kept"
    assert machine.quaymaster("audit", "verify").status == 0


def test_removing_keeps_the_record_and_purging_leaves_nothing(machine: Machine) -> None:
    machine.system.run("systemctl", "enable", "quaymaster")
    machine.start()
    machine.land("a.txt", b"a")
    machine.until_arrived("a.txt", b"a")
    machine.system.run("dpkg", "--remove", "quaymaster", timeout=120)
    assert machine.system.show("quaymaster.service", "ActiveState")["ActiveState"] == "inactive"
    assert machine.system.path("/var/lib/quaymaster/quaymaster.db").exists()
    assert machine.system.path("/etc/quaymaster/quaymaster.toml").exists()
    machine.system.run("dpkg", "--purge", "quaymaster", timeout=120)
    for left in ("/var/lib/quaymaster", "/var/cache/quaymaster", "/var/log/quaymaster", "/usr/lib/quaymaster"):
        assert not machine.system.path(left).exists(), left
    wants = machine.system.path("/etc/systemd/system/multi-user.target.wants/quaymaster.service")
    assert not os.path.lexists(wants)
    assert machine.arrived("a.txt", b"a"), "what was delivered stays"


_STUB = """\
Name: distribution
Version: 1
Release: 1
Summary: What the distribution would bring
License: none
BuildArch: noarch
AutoReqProv: no
{provides}
%description
%files
"""


def test_the_rpm_is_installed_verified_upgraded_and_erased(bare: Machine, package: Package) -> None:
    system = bare.system
    older, newer = package("rpm"), package("rpm", NEWER)
    for file in (older, newer):
        shutil.copy(file, system.path(f"/root/{file.name}"))
    first, second = f"/root/{older.name}", f"/root/{newer.name}"
    rpm = ("rpm", "--dbpath", "/var/lib/rpm")
    needed = {line for line in system.run(*rpm, "-qpR", first).out.splitlines() if not line.startswith("rpmlib(")}
    provides = "\n".join(f"Provides: {line}" for line in sorted(needed) if not line.startswith("/"))
    provides += "".join(f"\nProvides: {line}" for line in sorted(needed) if line.startswith("/"))
    provides = provides.replace(">=", "=").replace(">", "=")
    system.put("/root/stub.spec", _STUB.format(provides=provides))
    system.run("rpmbuild", "-bb", "--define", "_rpmdir /root/stub", "/root/stub.spec", timeout=60)
    system.run(*rpm, "-i", "/root/stub/noarch/distribution-1-1.noarch.rpm")

    system.run(*rpm, "-i", first, timeout=120)
    assert system.show("quaymaster.service", "ActiveState")["ActiveState"] == "inactive"
    assert system.run(*rpm, "-V", "quaymaster", check=False).out == ""
    bare.configure()
    bare.drop_in("ReadWritePaths=/srv/archive")
    bare.start()
    pid = bare.pid()
    bare.land("a.txt", b"a")
    bare.until_arrived("a.txt", b"a")
    system.run(*rpm, "-U", second, timeout=120)
    assert bare.pid() not in (0, pid)
    assert NEWER in bare.quaymaster("--version").out
    bare.land("b.txt", b"b")
    bare.until_arrived("b.txt", b"b")
    changed = system.run(*rpm, "-V", "quaymaster", check=False).out.split("\n")
    assert [line for line in changed if line and "/etc/quaymaster/quaymaster.toml" not in line] == []
    system.run(*rpm, "-e", "quaymaster", timeout=120)
    assert system.show("quaymaster.service", "ActiveState")["ActiveState"] == "inactive"
    assert not system.path("/usr/bin/quaymaster").exists()
    assert system.path("/var/lib/quaymaster/quaymaster.db").exists(), "the record stays"


@pytest.mark.parametrize("bare", ["trixie"], indirect=True)
def test_the_same_unit_works_with_the_systemd_of_debian_13(bare: Machine, package: Package) -> None:
    assert bare.system.run("systemctl", "--version").out.startswith("systemd 257")
    bare.install(package("trixie"))
    bare.configure()
    bare.drop_in("ReadWritePaths=/srv/archive")
    bare.start()
    bare.land("a.txt", b"a")
    bare.until_arrived("a.txt", b"a")
    pid, other = bare.pid(), bare.folder("other")
    bare.configure(landing="/srv/other")
    bare.system.run("systemctl", "reload", "quaymaster")
    until(lambda: bare.events("config-reloaded"), 20)
    (other / "b.txt").write_bytes(b"b")
    bare.until_arrived("b.txt", b"b")
    assert bare.pid() == pid
    bare.system.run("systemctl", "stop", "quaymaster")
    assert bare.system.show("quaymaster.service", "Result")["Result"] == "success"
