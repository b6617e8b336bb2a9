"""O4: others are told what happens, at least once and in order, through crashes and whatever receivers do."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from quaymaster.model import State
from system.conftest import Home, quoted
from system.service import Service, until

Serve = Callable[..., Service]
SECRET = "a secret of the laboratory"


class Receiver:
    """A server that checks each signature and keeps what it took. ``answer`` says with which status."""

    def __init__(self, secret: str) -> None:
        self.told: list[dict[str, Any]] = []
        self.wrong: list[str] = []
        self.answer: Callable[[dict[str, Any]], int] = lambda event: 200
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                event = json.loads(body)
                stamp = self.headers["X-Quaymaster-Timestamp"].encode()
                expected = "sha256=" + hmac.new(secret.encode(), stamp + b"." + body, hashlib.sha256).hexdigest()
                status = outer.answer(event)
                with lock:
                    if self.headers["X-Quaymaster-Signature"] != expected or abs(time.time() - int(stamp)) > 300:
                        outer.wrong.append(str(self.headers))
                    if (self.headers["X-Quaymaster-Id"], self.headers["X-Quaymaster-Event"]) != (
                        event["id"],
                        event["event"],
                    ):
                        outer.wrong.append("headers")
                    if status == 200:
                        outer.told.append(event)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/told"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def once(self) -> list[dict[str, Any]]:
        """Without what came again."""
        return list({event["id"]: event for event in self.told}.values())


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver(SECRET.replace(" ", "-"))
    yield made
    made.close()


def webhook(home: Home, receiver: Receiver, more: str = "", on: str = '["delivered", "parked"]') -> str:
    secret = home.folder / "hook-secret"
    secret.write_text(SECRET.replace(" ", "-"))
    secret.chmod(0o600)
    return f"[hook.web]\non = {on}\nurl = {quoted(receiver.url)}\nsecret = {quoted(secret)}\n{more}\n"


def command(script: str, name: str = "run", on: str = '["delivered"]', more: str = "") -> str:
    return f'[hook.{name}]\non = {on}\ncommand = ["/bin/sh", "-c", {json.dumps(script)}]\n{more}\n'


def standing(service: Service, name: str = "web") -> dict[str, Any]:
    code, found = service.cli("hooks")
    assert code == 0
    return next(hook for hook in found["hooks"] if hook["name"] == name)


def test_every_delivery_is_told_once_it_is_proven(home: Home, serve: Serve, receiver: Receiver) -> None:
    service = serve(home.config() + webhook(home, receiver))
    home.land("run/a.txt", b"hello")
    (event,) = until(lambda: receiver.told, 60)
    (delivery,) = service.deliveries("run/a.txt")
    assert event["event"] == "delivered"
    assert (event["watch"], event["path"], event["size"]) == ("landing", "run/a.txt", 5)
    assert event["sha256"] == hashlib.sha256(b"hello").hexdigest() == delivery.proof.source.sha256
    assert (event["destination"], event["key"]) == ("archive", delivery.proof.stored.key)
    assert event["id"].endswith(":delivered")
    assert event["text"] == "landing/run/a.txt was delivered to archive as run/a.txt"
    home.land("run/a.txt", b"another version")
    (home.archive / "b.txt").write_bytes(b"somebody else's")
    home.land("b.txt", b"ours")
    until(lambda: len(receiver.told) == 3, 60)
    parked = next(event for event in receiver.told if event["event"] == "parked")
    assert (parked["path"], parked["error_code"]) == ("b.txt", "conflict")
    until(lambda: standing(service)["confirmed"] == 3)
    assert standing(service) | {"state": "ok", "waiting": 0} == standing(service)
    assert receiver.wrong == []
    service.stop()


def test_a_killed_service_tells_everything_at_least_once_and_in_order(
    home: Home, serve: Serve, receiver: Receiver
) -> None:
    """Killed in the middle of sending, with a receiver that fails now and then: no event is missing, what came again
    has the same id, and of each file the versions come in their order."""
    chance = iter(range(1_000_000))
    receiver.answer = lambda event: 500 if next(chance) % 5 == 0 else 200
    config = home.config('on_change = "keep-both"') + webhook(home, receiver, "parallel = 8")
    service = serve(config)
    for version in range(3):
        for number in range(12):
            home.land(f"f{number}", b"version %d of %d" % (version, number))
        until(lambda version=version: service.states()[State.DONE] >= 12 * (version + 1), 60)
        service.kill()
        service.start()
    until(lambda: len(receiver.once()) >= 36, 90)
    until(lambda: not standing(service)["waiting"], 60)
    with service.store() as store:
        entries = [entry.fields for entry in store.custody()]
    delivered = [entry["seq"] for entry in entries if entry["kind"] == "delivered"]
    assert sorted(int(event["id"].split(":")[1]) for event in receiver.once()) == delivered
    of_files = defaultdict(list)
    for event in receiver.once():
        of_files[event["path"]].append(int(event["id"].split(":")[1]))
    assert len(of_files) == 12
    assert all(numbers == sorted(numbers) for numbers in of_files.values())
    assert receiver.wrong == []
    service.stop()


def test_hooks_that_hang_or_fail_hold_up_neither_files_nor_each_other_nor_the_stop(
    home: Home, serve: Serve, receiver: Receiver
) -> None:
    hanging = command("trap '' TERM; sleep 1000", "hang", more='timeout = "1h"')
    shouting = command("head -c 20000000 /dev/zero; exit 1", "shout")
    service = serve(home.config() + webhook(home, receiver) + hanging + shouting)
    for number in range(20):
        home.land(f"f{number}", b"x" * number)
    service.until_done(20)
    until(lambda: len(receiver.told) == 20, 60)
    until(lambda: standing(service, "hang")["waiting"] == 20)
    until(lambda: standing(service, "shout")["refused"] > 0)
    assert "exit status 1" in standing(service, "shout")["last_error"]
    assert service.lines("hook-failing") == []  # told in words
    assert service.lines("hook shout was not told of delivered")
    assert service.stop() < 40
    with service.store() as store:
        found = {standing.name: standing.waiting for standing in store.outbox.standing()}
    assert (found["web"], found["hang"]) == (0, 20)


def test_a_source_stays_until_the_hooks_that_it_waits_for_have_confirmed(
    home: Home, serve: Serve, receiver: Receiver
) -> None:
    receiver.answer = lambda event: 503
    config = home.config('after = "delete"\nafter_hooks = ["web"]') + webhook(home, receiver)
    service = serve(config)
    home.land("a", b"content")
    until(lambda: service.states()[State.WAITING] == 1, 60)
    (job,) = service.jobs()
    assert "until hook web has confirmed" in job.error
    code, said = service.cli("why", str(home.landing / "a"))
    assert code == 0
    assert "until hook web has confirmed" in said["job"]["error"]
    service.kill()
    service.start()
    until(lambda: standing(service)["refused"] == 1, 60)
    assert (home.landing / "a").exists()
    receiver.answer = lambda event: 200
    assert service.cli("hooks", "retry", "web")[0] == 0
    until(lambda: not (home.landing / "a").exists(), 60)
    service.until_done(1)
    service.stop()


def test_what_is_given_up_is_seen_and_skipped_by_an_operator(home: Home, serve: Serve, receiver: Receiver) -> None:
    receiver.answer = lambda event: 410
    config = home.config('after = "delete"\nafter_hooks = ["web"]') + webhook(home, receiver)
    service = serve(config)
    home.land("a", b"content")
    until(lambda: standing(service)["parked"] == 1, 60)
    code, found = service.cli("hooks", "web")
    (event,) = found["events"]
    assert (code, event["state"], event["path"]) == (0, "parked", "a")
    assert "410" in event["error"]
    assert (home.landing / "a").exists()
    assert service.cli("hooks", "skip", "web", str(event["id"]))[1]["skipped"] == [event["id"]]
    until(lambda: not (home.landing / "a").exists(), 60)
    service.stop()


def test_an_outage_and_its_end_are_told_once_each_also_over_a_restart(
    home: Home, serve: Serve, receiver: Receiver
) -> None:
    service = serve(home.config("rescan_interval = 1") + webhook(home, receiver, on='["outage", "recovered"]'))
    os.rename(home.landing, home.folder / "away")
    (outage,) = until(lambda: receiver.told, 60)
    assert (outage["event"], outage["watch"]) == ("outage", "landing")
    assert str(home.landing) in outage["error"]
    service.stop()
    service.start()
    until(lambda: service.watch()["state"] == "outage", 60)
    os.rename(home.folder / "away", home.landing)
    until(lambda: len(receiver.told) == 2, 60)
    assert receiver.told[1]["event"] == "recovered"
    assert receiver.told[1]["seconds"] > 0
    service.stop()


def test_a_reload_changes_hooks_without_losing_what_is_on_its_way(
    home: Home, serve: Serve, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answer = lambda event: 500
    service = serve(home.config() + webhook(home, receiver))
    home.land("a", b"a")
    until(lambda: standing(service)["refused"] == 1, 60)
    told = tmp_path / "told"
    changed = command(f"cat >> {told}", "new")
    service.config_file.write_text(home.config() + webhook(home, receiver, "parallel = 1") + changed)
    os.kill(service.pid, 1)
    until(lambda: service.lines("the configuration was read again"), 60)
    receiver.answer = lambda event: 200
    home.land("b", b"b")
    until(lambda: {event["path"] for event in receiver.told} == {"a", "b"}, 60)
    until(told.exists, 60)
    assert json.loads(until(told.read_text))["path"] == "b"
    service.config_file.write_text(home.config())
    os.kill(service.pid, 1)
    until(lambda: service.lines("hook web is no longer configured"), 60)
    assert service.cli("hooks")[1] == {"hooks": []}
    service.stop()


def test_a_test_says_what_came_of_it_whether_the_service_runs_or_not(
    home: Home, serve: Serve, receiver: Receiver
) -> None:
    service = serve(home.config() + webhook(home, receiver) + command("echo no such list >&2; exit 4", "bad"))
    assert service.cli("hooks", "test", "web")[1] | {"seconds": 0} == {
        "hook": "web", "event": "delivered", "taken": True, "error": "", "service_running": True, "seconds": 0,
    }  # fmt: skip
    code, said = service.cli("hooks", "test", "bad", "--event", "outage")
    assert (code, said["taken"]) == (1, False)
    assert "exit status 4: no such list" in said["error"]
    assert (receiver.told[0]["test"], receiver.told[0]["watch"]) == (True, "landing")
    assert standing(service, "bad")["state"] == "ok"  # a test is no event that was missed
    service.stop()
    assert service.cli("hooks", "test", "web")[1]["service_running"] is False
    assert len(receiver.told) == 2
    assert receiver.wrong == []
    done = service.command("hooks", "test", "nobody")
    assert done.returncode == 2
    assert "There is no hook nobody. The hooks are: web, bad" in done.stderr


def test_a_kill_at_any_step_of_telling_tells_once_and_again_only_what_was_not_recorded(
    home: Home, receiver: Receiver
) -> None:
    """Taken from the custody log, told, recorded as told: only between the last two a kill makes it heard twice."""
    service = Service(home.config() + webhook(home, receiver, "parallel = 1"), home.folder)
    taken, told = "commit of Outbox.feed.<lambda>", "commit of Outbox.settle.act"
    steps = [(taken, "before"), (taken, "after"), (told, "before"), (told, "after")]
    for number, (step, when) in enumerate(steps):
        home.land(f"f{number}", b"content")
        assert service.is_killed_at(step, when), f"it never came to {step}"
    with service:
        until(lambda: standing(service)["confirmed"] == len(steps), 60)
        assert standing(service)["waiting"] == 0
    heard = [event["id"] for event in receiver.told]
    assert len(set(heard)) == len(steps)
    assert len(heard) == len(steps) + 1
    assert receiver.wrong == []


def test_a_unit_is_told_when_it_is_at_every_destination_and_its_lists_are_not(
    home: Home, serve: Serve, receiver: Receiver
) -> None:
    """One destination refuses the manifest: somebody else's is there. The sources wait for that, and for the hook."""
    receiver.answer = lambda event: 503 if event["event"] == "unit-complete" and len(receiver.told) < 6 else 200
    second = home.folder / "second"
    (second / "run").mkdir(parents=True)
    (second / "run/quaymaster-manifest.json").write_text("somebody else's")
    both = "".join(
        f'[destination.{name}]\ntype = "directory"\npath = {quoted(path)}\n'
        for name, path in (("archive", home.archive), ("second", second))
    )
    settings = 'unit = "directory"\nunit_idle = "1s"\nafter = "delete"\nafter_hooks = ["web"]\n'
    on = '["delivered", "parked", "unit-complete"]'
    service = serve(
        home.config(f'{settings}destinations = ["archive", "second"]', both) + webhook(home, receiver, on=on)
    )
    home.land("run/a", b"a")
    home.land("run/sub/b", b"b")
    until(lambda: len(receiver.told) == 5, 60, f"{receiver.told}")
    parked = next(event for event in receiver.told if event["event"] == "parked")
    assert (parked["watch"], parked["destination"]) == ("landing", "second")
    assert parked["path"] == "run/quaymaster-manifest.json"
    delivered = sorted((e["path"], e["destination"]) for e in receiver.told if e["event"] == "delivered")
    assert delivered == [(path, to) for path in ("run/a", "run/sub/b") for to in ("archive", "second")]
    assert sorted(os.listdir(home.landing / "run")) == ["a", "sub"]
    (second / "run/quaymaster-manifest.json").unlink()
    assert service.cli("jobs", "retry", "--state", "parked")[0] == 0
    until(lambda: standing(service)["refused"] == 1, 60)
    assert sorted(os.listdir(home.landing / "run")) == ["a", "sub"]
    receiver.answer = lambda event: 200
    assert service.cli("hooks", "retry", "web")[0] == 0
    until(lambda: not [name for _, _, names in os.walk(home.landing) for name in names], 60)
    (unit,) = [event for event in receiver.told if event["event"] == "unit-complete"]
    assert (unit["watch"], unit["unit"], unit["files"], sorted(unit["manifests"])) == (
        "landing", "run", 2, ["archive", "second"],
    )  # fmt: skip
    assert len(receiver.once()) == 6
    service.stop()


@pytest.mark.parametrize("how", ["retry", "skip"])
def test_sources_of_a_unit_stay_until_somebody_has_taken_the_unit(
    home: Home, serve: Serve, receiver: Receiver, how: str
) -> None:
    """A hook that is told of units alone; it takes longer than the unit's manifest."""
    receiver.answer = lambda event: 503 if how == "retry" else 410
    settings = 'unit = "directory"\nunit_idle = "1s"\nafter = "delete"\nafter_hooks = ["web"]'
    service = serve(home.config(settings) + webhook(home, receiver, on='["unit-complete"]'))
    for name in ("run/a", "run/sub/b"):
        home.land(name, b"content")
    until(lambda: [job.error for job in service.jobs(watch="landing") if "until hook web" in job.error], 60)
    until(lambda: standing(service)["refused" if how == "retry" else "parked"] == 1, 60)
    assert sorted(os.listdir(home.landing / "run")) == ["a", "sub"]
    receiver.answer = lambda event: 200
    if how == "retry":
        assert service.cli("hooks", "retry", "web")[0] == 0
    else:
        (event,) = service.cli("hooks", "web")[1]["events"]
        assert service.cli("hooks", "skip", "web", str(event["id"]))[1]["skipped"] == [event["id"]]
    until(lambda: not [name for _, _, names in os.walk(home.landing) for name in names], 60)
    service.stop()
