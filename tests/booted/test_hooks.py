"""O4 under the unit's hardening: a command of a hook runs there, with less than the service has."""

from __future__ import annotations

import json

from booted.conftest import Machine
from servers.booted import until

SCRIPT = (
    "cat > /srv/archive/told; { id -un; grep -h -e CapEff -e CapAmb -e NoNewPrivs /proc/self/status; ulimit -c;"
    " ulimit -n; } > /srv/archive/self; touch /etc/evil 2>/dev/null && echo evil >> /srv/archive/self; exit 0"
)


def test_a_command_runs_under_the_units_hardening_and_the_mail_script_reaches_sendmail(machine: Machine) -> None:
    machine.system.put("/usr/sbin/sendmail", "#!/bin/sh\ncat > /srv/archive/mail\n")
    machine.system.run("chmod", "0755", "/usr/sbin/sendmail")
    hooks = (
        f'[hook.note]\non = ["delivered"]\ncommand = ["/bin/sh", "-c", {json.dumps(SCRIPT)}]\n'
        '[hook.mail]\non = ["parked"]\ncommand = ["/usr/share/quaymaster/examples/hook-mail", "root"]\n'
    )
    archive = '[destination.archive]\ntype = "directory"\npath = "/srv/archive"\n'
    machine.configure("", archive + hooks)
    machine.start()
    machine.land("a.txt", b"hello")
    told = machine.folder("archive") / "told"
    until(lambda: told.exists() and told.read_bytes(), 60)
    assert json.loads(told.read_text())["path"] == "a.txt"

    def took() -> bool:
        hooks = json.loads(machine.quaymaster("hooks", "--json").out)["hooks"]
        return bool(hooks[0]["confirmed"] == 1 and hooks[0]["state"] == "ok")

    until(took, 60)
    said = (machine.folder("archive") / "self").read_text().split()
    assert said == ["quaymaster", "CapEff:", "0" * 16, "CapAmb:", "0" * 16, "NoNewPrivs:", "1", "0", "1024"]
    assert "took the test that the service sent" in machine.quaymaster("hooks", "test", "mail").out
    assert "Subject: [" in (machine.folder("archive") / "mail").read_text()
    assert json.loads(machine.quaymaster("status", "--json").out)["hooks"][1]["state"] == "ok"
