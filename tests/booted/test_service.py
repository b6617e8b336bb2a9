"""S1 to S3 in a real systemd: start, work, tell, reload, stop."""

from __future__ import annotations

import hashlib
import json
import random
import time

from booted.conftest import Machine
from servers.booted import until
from servers.seaweed import Seaweed


def test_it_is_ready_when_it_watches_and_a_file_that_lands_arrives(machine: Machine) -> None:
    machine.start()
    shown = machine.system.show("quaymaster.service", "ActiveState", "SubState", "StatusText", "User", "NRestarts")
    assert (shown["ActiveState"], shown["SubState"], shown["User"]) == ("active", "running", "quaymaster")
    machine.land("a.txt", b"hello")
    machine.until_arrived("a.txt", b"hello")

    def told() -> tuple[str, str]:
        status = json.loads(machine.quaymaster("status", "--json").out)
        return status["service"]["state"], status["watches"][0]["mode"]

    until(lambda: told() == ("running", "inotify"), 10)
    until(lambda: "idle" in machine.system.show("quaymaster.service", "StatusText")["StatusText"], 10)


def test_the_status_line_has_live_figures(machine: Machine) -> None:
    machine.configure('after = "move:/srv/nowhere"\nafter_grace = "1h"')
    machine.start()
    machine.land("a.txt", b"hello")
    machine.until_arrived("a.txt", b"hello")
    until(lambda: "1 waiting" in machine.system.show("quaymaster.service", "StatusText")["StatusText"], 15)


def test_the_journal_tells_one_files_life_by_its_fields(machine: Machine) -> None:
    machine.start()
    machine.land("reads 1.fastq", b"ACGT")
    machine.until_arrived("reads 1.fastq", b"ACGT")
    until(lambda: machine.events("delivered"), 10)
    (entry,) = machine.events("delivered")
    life = machine.system.journal(f"QUAYMASTER_JOB={entry['QUAYMASTER_JOB']}")
    assert [line["QUAYMASTER_EVENT"] for line in life] == ["delivered"]
    assert entry["QUAYMASTER_WATCH"] == "landing"
    assert entry["QUAYMASTER_PATH"] == "reads 1.fastq"
    assert entry["QUAYMASTER_DESTINATION"] == "archive"
    assert entry["QUAYMASTER_BYTES"] == "4"
    assert entry["QUAYMASTER_SHA256"] == hashlib.sha256(b"ACGT").hexdigest()
    assert entry["PRIORITY"] == "6"


def test_a_file_that_is_not_utf_8_is_named_byte_for_byte(machine: Machine) -> None:
    machine.start()
    name = b"caf\xe9\n.txt".decode("utf-8", "surrogateescape")
    machine.land(name, b"x")
    machine.until_arrived(name, b"x")
    until(lambda: machine.events("delivered"), 10)
    assert bytes(machine.events("delivered")[0]["QUAYMASTER_PATH"]) == b"caf\xe9\n.txt"


def test_journalctl_explains_what_an_operator_must_do(machine: Machine) -> None:
    machine.start()
    (machine.folder("archive") / "a.txt").write_bytes(b"somebody else's")
    machine.land("a.txt", b"ours")
    until(lambda: machine.events("parked"), 20)
    (entry,) = machine.events("parked")
    explained = machine.system.run("journalctl", "--no-pager", "-x", "QUAYMASTER_EVENT=parked").out
    assert "A file waits for an operator" in explained
    assert f"quaymaster jobs retry {entry['QUAYMASTER_JOB']}" in " ".join(explained.replace("░░", " ").split())
    assert entry["PRIORITY"] == "3"


def test_it_reaches_an_s3_server_with_a_credential_that_only_root_can_read(machine: Machine, seaweed: Seaweed) -> None:
    bucket = seaweed.make_bucket("booted")
    machine.configure(
        'destinations = ["s3"]',
        f'[destination.s3]\ntype = "s3"\nbucket = "{bucket}"\nendpoint_url = "{seaweed.http_endpoint}"\n'
        'credentials = "lab"\n',
    )
    secret = f'access_key = "{seaweed.access_key}"\nsecret_key = "{seaweed.secret_key}"\n'
    machine.system.put("/etc/quaymaster/credentials/lab", secret, 0o600)
    machine.start()
    content = random.Random(1).randbytes(40 << 20)  # three parts
    machine.land("big.bin", content)
    until(lambda: machine.events("delivered"), 60, "\n".join(machine.log()))
    assert seaweed.client().get_object(Bucket=bucket, Key="big.bin")["Body"].read() == content
    assert seaweed.secret_key not in json.dumps(machine.system.journal())
    done = machine.quaymaster("doctor", check=False)
    assert done.status == 0, done.out
    assert "ok       credential lab: /etc/quaymaster/credentials/lab is read by its owner alone" in done.out
    assert "the server of s3" in done.out
    assert seaweed.secret_key not in done.out
    assert not list(machine.system.path("/run").glob("quaymaster-*")), "no copy of the secret is left"


def test_a_reload_applies_a_right_configuration_and_refuses_a_wrong_one(machine: Machine) -> None:
    machine.start()
    pid = machine.pid()
    other = machine.folder("other")
    machine.configure(landing="/srv/other")
    machine.system.run("systemctl", "reload", "quaymaster")
    until(lambda: machine.events("config-reloaded"), 20)
    (other / "b.txt").write_bytes(b"b")
    machine.until_arrived("b.txt", b"b")
    machine.system.put("/etc/quaymaster/quaymaster.toml", "[watch.landing]\npath = 3\n")
    assert machine.system.run("systemctl", "reload", "quaymaster", check=False).status != 0, "the operator is told"
    (other / "c.txt").write_bytes(b"c")
    machine.until_arrived("c.txt", b"c")
    machine.system.run("kill", "-HUP", str(machine.pid()))  # without the check that comes first
    until(lambda: machine.events("config-kept"), 20)
    (other / "d.txt").write_bytes(b"d")
    machine.until_arrived("d.txt", b"d")
    assert machine.pid() == pid
    assert machine.system.show("quaymaster.service", "ActiveState")["ActiveState"] == "active"


def test_a_wrong_configuration_is_told_once_and_not_tried_again_and_again(machine: Machine) -> None:
    machine.system.put("/etc/quaymaster/quaymaster.toml", "[watch.landing]\npath = 3\n")
    assert machine.system.run("systemctl", "start", "quaymaster", check=False).status != 0
    shown = machine.system.show("quaymaster.service", "ActiveState", "NRestarts", "ExecMainStatus")
    assert shown == {"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "2"}
    assert any("quaymaster.toml:2: [watch.landing] path" in line for line in machine.log())


def test_a_stop_is_orderly_and_what_landed_meanwhile_is_found(machine: Machine) -> None:
    machine.start()
    began = time.monotonic()
    machine.system.run("systemctl", "stop", "quaymaster")
    assert time.monotonic() - began < 10
    assert machine.system.show("quaymaster.service", "Result")["Result"] == "success"
    machine.land("late.txt", b"late")
    machine.start()
    machine.until_arrived("late.txt", b"late")


def test_an_instance_has_its_own_configuration_and_state(machine: Machine) -> None:
    machine.folder("lab-landing")
    machine.folder("lab-archive")
    archive = '[destination.archive]\ntype = "directory"\npath = "/srv/lab-archive"\n'
    machine.configure(destinations=archive, name="lab", landing="/srv/lab-landing")
    machine.drop_in("ReadWritePaths=/srv/lab-archive", unit="quaymaster@lab.service")
    machine.start()
    machine.start("quaymaster@lab.service")
    machine.land("l.txt", b"lab", "lab-landing")
    machine.land("m.txt", b"main")
    machine.until_arrived("l.txt", b"lab", "lab-archive")
    machine.until_arrived("m.txt", b"main")
    assert machine.system.path("/var/lib/quaymaster/lab/quaymaster.db").exists()
    shown = json.loads(machine.quaymaster("jobs", "--json", "--config", "/etc/quaymaster/lab.toml").out)
    assert [job["path"] for job in shown["jobs"]] == ["l.txt"], "a command finds the instance's state by its name"
    machine.system.run("systemctl", "stop", "quaymaster")
    machine.land("n.txt", b"still", "lab-landing")
    machine.until_arrived("n.txt", b"still", "lab-archive")


def test_the_unit_leaves_little_to_do_harm_with(machine: Machine) -> None:
    done = machine.system.run("systemd-analyze", "security", "--no-pager", "--threshold=15", "quaymaster.service")
    assert "Overall exposure level" in done.out
