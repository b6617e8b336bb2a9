"""The API of the real service (PRODUCT O2, X5): every route, who may ask and act, and that no client holds it up."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quaymaster.model import State
from quaymaster.service.api import openapi
from quaymaster.service.api.routes import page_files
from servers.ports import free_ports
from system.service import Service, until

READ, ACT = "r" * 32, "a" * 32
JSON = {"content-type": "application/json"}

CONFIG = """
[service]
state_dir = "{folder}/state"
staging_dir = "{folder}/staging"
[api]
{api}
[destination.archive]
type = "directory"
path = "{folder}/archive"
[watch.landing]
path = "{folder}/landing"
destinations = ["archive"]
settle = "200ms"
settle_closed = "100ms"
exclude = ["*.later"]
"""


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class OverUnix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = connected(self._path)


def connected(path: str, timeout: float = 30) -> socket.socket:
    """unix(7) has room for 107 bytes of a path, and those of tests are longer."""
    directory = os.open(os.path.dirname(path), os.O_PATH)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    found.settimeout(timeout)
    try:
        found.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)
    return found


class Site:
    """A service with an API."""

    def __init__(self, folder: Path, api: str = "") -> None:
        for name in ("landing", "archive"):
            (folder / name).mkdir()
        self.folder, self.socket = folder, str(folder / "run/api.sock")
        self.service = Service(CONFIG.format(folder=folder, api=api), folder)

    def ask(
        self, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None, port: int = 0
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30) if port else OverUnix(self.socket)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, data, (JSON if data else {}) | (headers or {}))
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.ask(path, "POST", body, **more)

    def land(self, name: str | bytes, size: int = 1000) -> str:
        path = os.path.join(os.fsencode(self.folder / "landing"), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(os.urandom(size))
        return os.fsdecode(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    one, two = free_ports(2)
    return one, two


@pytest.fixture(scope="module")
def site(folder: Path, ports: tuple[int, int]) -> Iterator[Site]:
    """With both tokens on TCP, one file delivered and one parked."""
    for name, token in (("read", READ), ("act", ACT)):
        (folder / name).write_text(token + "\n")
        (folder / name).chmod(0o600)
    api = f'listen = "127.0.0.1:{ports[0]}"\nread_token = "{folder}/read"\nact_token = "{folder}/act"\n'
    made = Site(folder, api + 'hosts = ["quay.example.org"]')
    (folder / "archive/landing").mkdir()
    (folder / "archive/landing/in-the-way").write_text("not ours")
    with made.service:
        made.land("a")
        made.land("in-the-way")
        until(lambda: made.service.states()[State.PARKED] == made.service.states()[State.DONE] == 1)
        yield made


def job_of(site: Site, path: str) -> int:
    return max(job.id for job in site.service.jobs(path=path.encode()))


# -- what can be asked --


def test_the_socket_is_for_the_service_and_its_group(site: Site) -> None:
    status = os.stat(site.socket)
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == os.getegid()


def test_the_status_is_that_of_the_command(site: Site) -> None:
    # What has moved is told every ten seconds at most.
    until(lambda: len(site.ask("/api/v1/system/upload-status").json["failures"]) == 1)
    until(lambda: site.ask("/api/v1/system/upload-status").json["destinations"][0]["delivered"])
    answer = site.ask("/api/v1/system/upload-status")
    assert answer.status == 200
    _, printed = site.service.cli("status")
    assert answer.json.keys() == printed.keys()
    for same in ("totals", "parked", "service", "version"):
        assert answer.json[same] == printed[same]
    assert answer.json["totals"]["done"]["jobs"] == 1
    (moved,) = answer.json["destinations"][0]["delivered"]
    assert moved == {"watch": "landing", "files": 1, "source_bytes": 1000, "stored_bytes": 1000}
    assert answer.json["failures"] == [{"kind": "parked", "error_code": "conflict", "jobs": 1}]


def test_a_job_is_shown_with_its_proof_and_history(site: Site) -> None:
    number = job_of(site, "a")
    _, printed = site.service.cli("jobs", str(number))
    assert site.ask(f"/api/v1/jobs/{number}").json == printed
    assert site.ask(f"/api/v1/system/upload-progress/{number}").json["state"] == "done"
    for missing in ("/api/v1/jobs/99999", "/api/v1/system/upload-progress/99999", f"/api/v1/jobs/{2**63}",
                    "/api/v1/jobs/x", "/api/v1/jobs/0"):  # fmt: skip
        answer = site.ask(missing)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")


def test_jobs_are_filtered_and_paged(site: Site) -> None:
    every = site.ask("/api/v1/jobs?limit=1000").json["jobs"]
    assert [job["id"] for job in every] == sorted((job["id"] for job in every), reverse=True)
    first = site.ask("/api/v1/jobs?limit=1").json
    assert first["more"]
    second = site.ask(f"/api/v1/jobs?limit=1&after={first['after']}").json
    assert [first["jobs"][0], second["jobs"][0]] == every[:2]
    (parked,) = site.ask("/api/v1/jobs?state=parked&state=waiting&error=conflict").json["jobs"]
    assert parked["path"] == "in-the-way"
    assert site.ask(f"/api/v1/jobs?path={site.folder}/landing/a").json["jobs"][0]["path"] == "a"
    assert site.ask("/api/v1/jobs?watch=landing&path=a").json["jobs"][0]["path"] == "a"


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "after=-1", "state=nope", "nope=1", "watch=nowhere", "watch=%00", "path=%00",
     "limit=1&limit=2", "path=/nowhere/at/all", "error=%ff"],
)  # fmt: skip
def test_a_wrong_filter_is_explained(site: Site, query: str) -> None:
    answer = site.ask(f"/api/v1/jobs?{query}")
    assert (answer.status, answer.json["status"]) == (400, 400)
    assert answer.json["detail"]


def test_a_file_says_what_became_of_it_and_its_proof(site: Site) -> None:
    path = str(site.folder / "landing/a")
    _, why = site.service.cli("why", path)
    _, prove = site.service.cli("prove", path)
    found = site.ask(f"/api/v1/files?path={path}").json
    assert found["why"] == why
    assert found["prove"] == prove | {"chain_checked": False}
    later = site.land("x.later")
    evidence = site.ask(f"/api/v1/files?path={later}").json["why"]["evidence"]
    assert any("*.later" in item["text"] and item["ok"] is False for item in evidence)
    assert site.ask("/api/v1/files").status == 400
    assert site.ask("/api/v1/files?path=relative").status == 400


def test_a_name_that_is_not_utf8_is_asked_for_by_its_bytes(site: Site) -> None:
    site.land(b"odd-\xff\n")
    until(lambda: site.service.jobs(path=b"odd-\xff\n") and site.service.states()[State.DONE] >= 2)
    found = site.ask(f"/api/v1/files?path={quote(os.fsencode(site.folder))}/landing/odd-%FF%0A").json
    assert found["why"]["path_bytes_hex"] == b"odd-\xff\n".hex()
    assert found["why"]["state"] == "done"


def test_the_metrics_are_what_prometheus_reads_and_say_the_same(site: Site) -> None:
    answer = site.ask("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
    assert all(name.startswith("quaymaster_") for name in families)
    assert all(family.documentation for family in families.values())
    of_state = {s.labels["state"]: s.value for s in families["quaymaster_jobs"].samples}
    assert of_state["parked"] == 1
    (delivered, *_) = families["quaymaster_delivered_files"].samples
    assert delivered.name == "quaymaster_delivered_files_total"
    assert delivered.value >= 1
    assert families["quaymaster_healthy"].samples[0].value == 1
    assert families["quaymaster_process_resident_memory_bytes"].samples[0].value > 10e6


def test_the_dashboard_asks_for_metrics_that_there_are(site: Site) -> None:
    text = (Path(__file__).parents[2] / "packaging/grafana/quaymaster.json").read_text()
    dashboard = json.loads(text)
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", ())]
    assert len(queries) >= 10
    source = (Path(__file__).parents[2] / "daemon/quaymaster/service/api/metrics.py").read_text()
    for query in queries:
        names = re.findall(r"quaymaster_(\w+)", query)
        assert names, query
        for name in names:
            assert f'"{name}"' in source, name


def test_the_page_holds_no_data_and_asks_nobody_else(site: Site) -> None:
    answer = site.ask("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert site.ask("/page.js").headers["content-type"].startswith("text/javascript")
    for path in ("/../quaymaster.toml", "/%2e%2e/x", "//etc/passwd", "/page.js/", "/routes.py"):
        assert site.ask(path).status == 404
    assert b"http" not in b"".join(page_files().values()).replace(b"http://www.w3.org", b"")


def test_routes_and_description_agree(site: Site) -> None:
    document = site.ask("/api/v1/openapi.json").json
    assert document == json.loads(json.dumps(openapi.document()))
    for path, operations in document["paths"].items():
        filled = path.replace("{job}", "99999")
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            if path.endswith("/events") and method == "GET":
                continue
            status = site.ask(filled, method, headers={"content-type": "text/plain"}).status
            assert (status == 405) == (method.lower() not in operations), (method, path, status)
            if status != 405 and not (path == "/healthz" and status == 503):
                assert str(status) in operations[method.lower()]["responses"], (method, path, status)


# -- acting --


def test_a_parked_job_is_retried_and_dropped(site: Site) -> None:
    site.land("in-the-way", 77)
    (site.folder / "archive/landing/stays").write_text("not ours")
    site.land("stays")
    until(lambda: site.service.jobs(path=b"stays", states=(State.PARKED,)))
    stays = job_of(site, "stays")
    assert site.post(f"/api/v1/jobs/{stays}/retry").json["retried"] == [stays]
    until(lambda: site.service.jobs(path=b"stays", states=(State.PARKED,)))
    assert site.post(f"/api/v1/jobs/{stays}/drop").json == {"dropped": [stays], "state": "dropped"}
    answer = site.post(f"/api/v1/jobs/{stays}/drop")
    assert (answer.status, answer.json["detail"]) == (409, f"Job {stays} is dropped, so it cannot be dropped")
    assert site.post("/api/v1/jobs/99999/retry").status == 404
    history = [json.loads(entry["body"]) for entry in site.ask(f"/api/v1/jobs/{stays}").json["history"]]
    assert [(entry["kind"], entry["by"]) for entry in history if "by" in entry] == [
        ("retried", "root (API)" if os.getuid() == 0 else history[1]["by"]),
        ("dropped", "root (API)" if os.getuid() == 0 else history[1]["by"]),
    ]
    assert site.post("/api/v1/jobs/retry", {"state": ["dropped"], "path": "stays"}).json == {"retried": 1}
    until(lambda: site.service.jobs(path=b"stays", states=(State.PARKED,)))
    site.post(f"/api/v1/jobs/{stays}/drop")


@pytest.mark.parametrize(
    ("body", "status"),
    [({}, 400), ({"all": False}, 400), ({"nope": 1}, 400), ({"state": "parked"}, 400), ({"state": ["done"]}, 400),
     ([], 400), (b"{", 400), (b"[" * 60000, 400), (b'{"path": "\\ud800"}', 400), ({"watch": "nowhere"}, 400),
     (b"x" * 65537, 413), ({"error": "no-such-error"}, 200)],
)  # fmt: skip
def test_what_to_retry_must_be_said(site: Site, body: Any, status: int) -> None:
    answer = site.post("/api/v1/jobs/retry", body)
    assert answer.status == status
    assert site.ask("/healthz").status == 200


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_defect(site: Site) -> None:
    for _ in range(5):
        with connected(site.socket) as client:
            client.sendall(b"POST /api/v1/pause HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    assert site.ask("/healthz").status == 200
    assert site.service.cli("status")[1]["watches"][0]["paused"] is None
    assert not site.service.lines("the API failed")


def test_a_body_must_be_json(site: Site) -> None:
    assert site.post("/api/v1/pause", b"{}", headers={"content-type": "text/plain"}).status == 415
    assert site.post("/api/v1/pause", {"watches": "landing"}).status == 400
    assert site.post("/api/v1/pause", {"watches": [1]}).status == 400
    assert site.post("/api/v1/pause", {"watches": ["nowhere"]}).status == 400
    assert site.service.cli("status")[1]["watches"][0]["paused"] is None


@pytest.mark.parametrize("way", ["cli", "api"])
def test_a_paused_watch_begins_nothing_over_a_restart_until_it_is_resumed(tmp_path: Path, way: str) -> None:
    site = Site(tmp_path)

    def do(action: str) -> None:
        if way == "cli":
            assert site.service.cli(action, "landing")[0] == 0
        else:
            assert site.post(f"/api/v1/{action}", {"watches": ["landing"]}).json["changed"] == ["landing"]

    with site.service:
        site.land("before")
        site.service.until_done(1)
        do("pause")
        paused = site.ask("/api/v1/system/upload-status").json["watches"][0]["paused"]
        assert paused["since"] == pytest.approx(time.time(), abs=10)
        assert any("paused by" in note for note in site.ask("/healthz").json["notes"])
        time.sleep(1.5)  # the service looks every second
        site.land("during")
        until(lambda: site.service.states()[State.QUEUED] == 1)
    with site.service:
        site.land("after-the-restart")
        until(lambda: site.service.states()[State.QUEUED] == 2)
        time.sleep(1.5)
        assert site.service.states()[State.DONE] == 1
        assert site.ask("/api/v1/system/upload-status").json["eta_seconds"] == 0
        do("resume")
        site.service.until_done(3)
    with site.service.store() as store:
        kinds = [e.fields["kind"] for e in store.custody() if e.fields["kind"] in ("paused", "resumed")]
    assert kinds == ["paused", "resumed"]


@pytest.mark.parametrize("way", ["cli", "api"])
def test_a_scan_happens_when_it_is_asked_for(site: Site, way: str) -> None:
    scans = site.service.watch()["seen"]["scans"]
    if way == "cli":
        assert site.service.cli("rescan")[1]["changed"] == ["landing"]
    else:
        assert site.post("/api/v1/rescan").json["changed"] == ["landing"]
    until(lambda: site.service.watch()["seen"]["scans"] > scans)


# -- who may ask, who may act --


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("token", "reads", "acts"),
    [(None, 401, 401), (READ, 200, 403), (ACT, 200, 200), ("wrong" * 6, 401, 401), ("", 401, 401),
     (READ[:-1], 401, 401), (READ + ACT, 401, 401)],
)  # fmt: skip
def test_over_tcp_reading_and_acting_have_tokens_of_their_own(
    site: Site, ports: tuple[int, int], token: str | None, reads: int, acts: int
) -> None:
    headers = {} if token is None else bearer(token)
    read = site.ask("/api/v1/system/upload-status", headers=headers, port=ports[0])
    act = site.post("/api/v1/rescan", headers=headers, port=ports[0])
    assert (read.status, act.status) == (reads, acts)
    for answer in (read, act):
        if answer.status == 401:
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json["detail"] == "Not authorized"
    assert site.ask("/", headers=headers, port=ports[0]).status == (200)
    assert site.ask("/nothing", headers=headers, port=ports[0]).status == (404 if reads == 200 else 401)


def test_other_ways_to_give_a_token_are_none(site: Site, ports: tuple[int, int]) -> None:
    for headers in ({"authorization": f"Basic {READ}"}, {"authorization": READ}, {"x-token": READ}, {"cookie": READ}):
        assert site.ask("/metrics", headers=headers, port=ports[0]).status == 401
    assert site.ask(f"/metrics?token={READ}", port=ports[0]).status == 401


def test_tokens_are_in_no_output(site: Site) -> None:
    texts = [site.service.log, site.service.command("config").stdout, site.service.command("status", "--json").stdout]
    texts += [site.ask(path).body.decode() for path in ("/metrics", "/api/v1/system/upload-status")]
    assert not any(READ in text or ACT in text for text in texts)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("127.0.0.1:8440", 200), ("[::1]:1", 200), ("LOCALHOST.", 200), ("quay.example.org", 200),
     ("evil.example.org", 421), ("localhost.evil.org", 421), ("10.0.0.1", 421), ("", 421), ("localhost@evil.org", 421)],
)  # fmt: skip
def test_a_name_that_is_not_ours_is_refused(site: Site, host: str, status: int) -> None:
    assert site.ask("/healthz", headers={"host": host}).status == status
    assert site.ask("/", headers={"host": host}).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"origin": "http://localhost"}, 200), ({"origin": "http://evil.example.org"}, 403), ({"origin": "null"}, 403),
     ({"origin": "http://localhost:81"}, 403), ({"sec-fetch-site": "cross-site"}, 403),
     ({"sec-fetch-site": "same-origin", "origin": "http://localhost"}, 200)],
)  # fmt: skip
def test_a_page_of_another_origin_may_not_act(site: Site, headers: dict[str, str], status: int) -> None:
    assert site.post("/api/v1/rescan", headers=headers).status == status


def test_without_tokens_a_loopback_address_is_for_reading_alone(tmp_path: Path, ports: tuple[int, int]) -> None:
    site = Site(tmp_path, f'listen = "127.0.0.1:{ports[1]}"')
    with site.service:
        assert site.ask("/healthz", port=ports[1]).status == 200
        answer = site.post("/api/v1/pause", port=ports[1])
        assert (answer.status, "act_token" in answer.json["detail"]) == (403, True)
        assert site.ask("/healthz", headers=bearer("any"), port=ports[1]).status == 401


def test_a_token_that_cannot_be_read_keeps_tcp_closed(tmp_path: Path, ports: tuple[int, int]) -> None:
    site = Site(tmp_path, f'listen = "127.0.0.1:{ports[1]}"\nread_token = "{tmp_path}/missing"')
    with site.service:
        with pytest.raises(ConnectionRefusedError):
            site.ask("/healthz", port=ports[1])
        assert site.ask("/healthz").status == 200
        assert site.service.lines("stays closed", "does not exist")
        (tmp_path / "missing").write_text(READ)
        (tmp_path / "missing").chmod(0o600)


def test_an_address_for_others_needs_a_token(tmp_path: Path) -> None:
    site = Site(tmp_path, 'listen = "0.0.0.0:1"')
    answer = site.service.command("check")
    assert answer.returncode == 2
    assert "is open to others without a token" in answer.stderr + answer.stdout


# -- it never holds up the service --


def test_a_service_that_is_not_asked_has_loaded_nothing_of_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.service:

        def loaded() -> int:
            with open(f"/proc/{site.service.pid}/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

        before = loaded()
        assert site.ask("/healthz").status == 200
        assert loaded() > before + 3000  # KiB of web libraries


def test_without_a_directory_for_its_socket_the_service_does_its_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    site = Site(tmp_path, f'socket = "{tmp_path}/file/api.sock"')
    with site.service:
        assert site.service.lines("cannot be listened on")
        site.land("a")
        site.service.until_done(1)


def test_a_socket_that_nobody_serves_any_more_is_replaced(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.service:
        site.service.kill()
        assert os.path.exists(site.socket)
        site.service.start()
        assert site.ask("/healthz").status == 200
    assert not os.path.exists(site.socket)


def test_a_socket_in_use_is_an_error_when_it_was_chosen_and_else_a_warning(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = Site(tmp_path / "one")
    with one.service:
        two = Site(tmp_path / "two", f'socket = "{one.socket}"')
        answer = two.service.command("run", timeout=30)
        assert answer.returncode == 2
        assert f"another process serves {one.socket}" in answer.stderr
        assert f"{two.service.config_file}:" in answer.stderr
        two.service.config_file.write_text(two.service.config_file.read_text().replace("socket =", "#"))
        two.service.environment["RUNTIME_DIRECTORY"] = str(tmp_path / "one/run")
        with two.service:
            assert two.service.lines(f"another process listens on {one.socket}")
            two.land("a")
            two.service.until_done(1)
        assert one.ask("/healthz").status == 200, "it was not taken away"


def until_closed(connection: socket.socket, within: float) -> float:
    """Seconds until the other side has closed."""
    began = time.monotonic()
    connection.settimeout(within)
    with suppress(ConnectionError):
        while connection.recv(65536):
            pass
    return time.monotonic() - began


def test_one_who_never_finishes_is_let_go(site: Site) -> None:
    """All at once: each has ten seconds for what it owes."""
    openings = {
        "nothing": b"",
        "a head": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ",
        "a body": b"POST /api/v1/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{",
        "blank lines": b"\r\n",
    }
    with ExitStack() as stack:
        clients = {}
        for name, said in openings.items():
            clients[name] = stack.enter_context(connected(site.socket))
            clients[name].sendall(said)
        began = time.monotonic()
        assert site.ask("/healthz").status == 200
        assert time.monotonic() - began < 5
        for client in clients.values():
            until_closed(client, 20)
        assert 5 < time.monotonic() - began < 20


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 70000, b"\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
     b"GET /healthz HTTP/1.1\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
     b"POST /api/v1/pause HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_request_is_refused(site: Site, head: bytes) -> None:
    with connected(site.socket) as client:
        with suppress(ConnectionError):
            client.sendall(head)
        client.settimeout(15)
        try:
            said = client.recv(4096)
        except ConnectionError:
            said = b""
    assert said == b"" or said.split()[1] in (b"400", b"421")
    assert site.ask("/healthz").status == 200


def test_more_connections_than_it_serves_are_turned_away_and_the_rest_go_on(site: Site) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(site.socket)) for _ in range(200)]
        turned_away = 0
        for client in clients:
            client.settimeout(0.2)
            with suppress(TimeoutError):
                turned_away += client.recv(100).startswith(b"HTTP/1.1 503")
            if turned_away >= 90:
                break
        assert turned_away >= 90
        site.land("meanwhile")
        until(lambda: site.service.jobs(path=b"meanwhile", states=(State.DONE,)))
    until(lambda: site.ask("/healthz").status == 200)


def listening(site: Site, path: str = "/api/v1/events") -> socket.socket:
    client = connected(site.socket)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return client


def test_events_tell_what_happens_and_begin_with_the_status(site: Site) -> None:
    with listening(site) as client:
        heard = b""

        def has(*texts: bytes) -> Callable[[], bool]:
            def look() -> bool:
                nonlocal heard
                client.settimeout(0.5)
                with suppress(TimeoutError):
                    heard += client.recv(1 << 20)
                return all(text in heard for text in texts)

            return look

        until(has(b"event: status\n", b"text/event-stream", b"event: health\n", b'"status":"ok"'))
        site.land("told")
        until(has(b"event: delivered\n", b'"path":"told"'))
        statuses = heard.count(b"event: status\n")
        assert statuses >= 2


def test_fifty_listeners_that_come_at_once_all_stay(site: Site) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(listening(site)) for _ in range(50)]
        for client in clients:
            until(lambda client=client: b"event: status\n" in client.recv(1 << 20))
        site.land("for-all")
        for client in clients:
            until(lambda client=client: b'"path":"for-all"' in client.recv(1 << 20))


def test_a_listener_that_never_reads_is_dropped(site: Site) -> None:
    """It is let go once its socket and a bounded buffer are full, which takes some hundred KiB of events."""
    client = listening(site)
    hung_up = select.poll()
    hung_up.register(client, 0)  # POLLHUP is always told: poll(2)
    number = 0

    def let_go() -> bool:
        nonlocal number
        number += 1
        site.land(f"busy-{number % 50}", 10)
        return bool(hung_up.poll(50))

    with client:
        until(let_go, timeout=140)
    assert site.ask("/healthz").status == 200


def test_a_reload_with_another_socket_moves_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.service:
        assert site.ask("/healthz").status == 200
        text = site.service.config_file.read_text()
        site.service.config_file.write_text(text.replace("[api]", f'[api]\nsocket = "{tmp_path}/run/other.sock"'))
        os.kill(site.service.pid, 1)
        until(lambda: os.path.exists(tmp_path / "run/other.sock"))
        site.socket = str(tmp_path / "run/other.sock")
        until(lambda: site.ask("/healthz").status == 200)
        assert not os.path.exists(tmp_path / "run/api.sock")


def test_health_says_what_is_wrong(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.service:
        assert site.ask("/healthz").json["status"] == "ok"
        os.rename(tmp_path / "landing", tmp_path / "gone")
        until(lambda: site.ask("/healthz").status == 503, timeout=60)
        (reason,) = site.ask("/healthz").json["reasons"]
        assert reason.startswith("watch landing is away")
        assert b"quaymaster_healthy 0" in site.ask("/metrics").body
        os.rename(tmp_path / "gone", tmp_path / "landing")
        until(lambda: site.ask("/healthz").status == 200, timeout=60)


def test_nothing_that_its_description_allows_confuses_it(site: Site, ports: tuple[int, int], tmp_path: Path) -> None:
    """Schemathesis asks everything, right and wrong, and compares what comes back with the description. That a request
    is right by its form and still refused (no such watch) is not a fault."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("schemathesis")), "run", f"http://127.0.0.1:{ports[0]}/api/v1/openapi.json",
         "--header", f"Authorization: Bearer {ACT}", "--exclude-path", "/api/v1/events", "--exclude-path",
         "/api/v1/jobs/{job}/drop", "--phases", "examples,coverage,fuzzing", "--max-examples", "5", "--no-color",
         "--exclude-checks", "positive_data_acceptance", "--max-failures", "3", "--workers", "2", "--seed", "1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert site.ask("/healthz").status == 200
    assert not site.service.lines("api-defect")
    assert not site.service.lines("the API failed")
    site.post("/api/v1/resume")
