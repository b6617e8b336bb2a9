"""The page in a real browser, on a real service at work (PRODUCT O3)."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from quaymaster.model import State
from servers.browser import chromium, inaccessible, reason_to_skip
from servers.ports import free_ports
from system.service import until
from system.test_api import ACT, READ, Site, bearer

pytestmark = pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip() or "-")
PATIENCE = 60_000
"""Milliseconds: machines that test may be loaded."""
HOSTILE = '<img src=x onerror="window.hurt=1">&amp;.bin'
NOT_TEXT = b"caf\xe9 \xff.bin"
LARGE = 192 << 20

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Site]:
    """With both tokens: one file delivered, three parked, and one on its way for as long as the tests take."""
    folder = tmp_path_factory.mktemp("page")
    for name, token in (("read", READ), ("act", ACT)):
        (folder / name).write_text(token)
        (folder / name).chmod(0o600)
    made = Site(folder, f'listen = "127.0.0.1:{port}"\nread_token = "{folder}/read"\nact_token = "{folder}/act"\n')
    with made.service.config_file.open("a") as config:
        config.write('[limits]\nbandwidth = "512KiB/s"\n')
    archive = folder / "archive/landing"
    archive.mkdir()
    for name in (HOSTILE, NOT_TEXT, "in-the-way"):
        with open(os.path.join(os.fsencode(archive), os.fsencode(name)), "wb") as file:
            file.write(b"not ours")
    made.service.start()
    try:
        for name in ("arrives", HOSTILE, NOT_TEXT, "in-the-way"):
            made.land(name)
        until(lambda: (now := made.service.states())[State.PARKED] == 3 and now[State.DONE] == 1, 60)
        made.land("large.bin", LARGE)
        until(lambda: made.service.states()[State.RUNNING] == 1, 60)
        yield made
    finally:
        made.service.kill()  # a stop would wait for the large one


@pytest.fixture
def visit(browser: Browser, site: Site, port: int) -> Iterator[Open]:
    """Opens the page; everything that it asked for and complained of is looked at in the end."""
    opened: list[tuple[Page, str]] = []
    told: list[str] = []

    def visit(token: str = ACT, at: int = port, **options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        context.set_default_timeout(PATIENCE)
        if token:
            context.add_init_script(f"sessionStorage.setItem('quaymaster-token', '{token}')")
        page = context.new_page()
        page.on("request", lambda request: told.append(request.url) if f"127.0.0.1:{at}/" not in request.url else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("console", lambda said: told.append(said.text) if "Security Policy" in said.text else None)
        page.goto(f"http://127.0.0.1:{at}/")
        opened.append((page, token))
        return page

    yield visit
    for page, _ in opened:
        page.context.close()
    assert not [text for text in told if not text.startswith("blob:")], "it asks nobody else, and has no defect"


def flying(page: Page) -> Locator:
    return page.locator("#flight li", has_text="large.bin")


def failed(page: Page, text: str) -> Locator:
    return page.locator("#failures tbody tr", has_text=text)


def test_a_file_on_its_way_is_seen_to_move(visit: Open) -> None:
    page = visit(READ)
    bar = flying(page).get_by_role("progressbar")
    expect(bar).to_be_visible()
    expect(flying(page)).to_contain_text("landing · transferring")
    before = float(bar.get_attribute("value") or 0)
    until(lambda: float(bar.get_attribute("value") or 0) > before, 60)
    assert float(bar.get_attribute("max") or 0) == LARGE
    expect(page.locator("#totals [data-of=running] .figure")).to_have_text("1")
    expect(page.locator("#health")).to_have_text("ok")
    expect(page.locator("#limits")).to_contain_text("512 KiB/s")
    expect(page.locator("#destinations")).to_contain_text("archive")
    until(lambda: any(float(bar.get_attribute("height") or 0) for bar in page.locator("#plot .sent").all()), 60)
    page.get_by_text("The same as a table").click()
    expect(page.locator("#minutes tbody tr").first).to_be_visible()


def test_failures_are_shown_with_their_reason_filtered_and_retried(visit: Open, site: Site) -> None:
    page = visit()
    row = failed(page, "in-the-way")
    expect(row).to_contain_text("parked")
    expect(row).to_contain_text("Something else is already at")
    page.get_by_label("State").select_option("waiting")
    expect(page.locator("#failures-empty")).to_have_text("None of these.")
    page.get_by_label("State").select_option("parked")
    expect(page.locator("#failures tbody tr")).to_have_count(3)
    os.unlink(site.folder / "archive/landing/in-the-way")
    row.get_by_role("button", name="Retry job").press("Enter")
    until(lambda: site.service.jobs(path=b"in-the-way")[-1].state is State.DONE, 60)
    expect(row).to_have_count(0)
    expect(page.locator("#said")).to_contain_text("2 parked")
    assert page.evaluate("document.activeElement.id") == "failures-title", "who went by keyboard is not lost"
    with site.service.store() as store:
        assert any("act_token" in entry.fields.get("by", "") for entry in store.custody())


def test_pages_of_failures(visit: Open, site: Site) -> None:
    """Whoever has many sees twenty at a time."""
    page = visit()
    expect(failed(page, "img")).to_be_visible()
    for number in range(25):
        (site.folder / f"archive/landing/many-{number:02}").write_text("not ours")
        site.land(f"many-{number:02}", 10)
    until(lambda: site.service.states()[State.PARKED] >= 27, 60)
    rows = page.locator("#failures tbody tr")
    expect(rows).to_have_count(20)
    page.get_by_role("button", name="Older").click()
    expect(failed(page, "img")).to_be_visible()
    assert 7 <= rows.count() <= 8
    page.get_by_role("button", name="Newest").click()
    expect(rows).to_have_count(20)
    for number in range(25):
        os.unlink(site.folder / f"archive/landing/many-{number:02}")
    page.get_by_label("State").select_option("parked")
    page.get_by_role("button", name="Retry all of these").click()
    until(lambda: site.service.states()[State.PARKED] <= 3, 60)
    expect(failed(page, "many")).to_have_count(0)


def test_a_file_is_found_with_its_proof(visit: Open, site: Site, tmp_path: Path) -> None:
    page = visit(READ)
    path = page.get_by_label("Its path")
    path.fill(f"{site.folder}/landing/arrives")
    path.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("and proven")
    with site.service.store() as store:
        proof = next(d.proof for d in store.deliveries("landing", b"arrives"))
        entry = next(e for e in store.custody() if e.fields["kind"] == "delivered" and e.fields["job"] == proof.job)
    for text in (proof.source.sha256, proof.stored.key, entry.sha256, "readback"):
        expect(dialog).to_contain_text(text)
    with page.expect_download() as download:
        dialog.get_by_role("button", name="Download as JSON").click()
    download.value.save_as(tmp_path / "proof.json")
    (delivery,) = json.loads((tmp_path / "proof.json").read_text())["prove"]["deliveries"]
    assert delivery["sha256"] == proof.source.sha256
    assert delivery["mtime_ns"] == proof.version.identity.mtime_ns, "to the last digit"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    dialog.get_by_role("button", name="Copy as JSON").click()
    expect(dialog.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == (tmp_path / "proof.json").read_text()
    page.keyboard.press("Escape")
    path.fill("/elsewhere/file")
    path.press("Enter")
    expect(page.locator("#found")).to_contain_text("is under no watch")
    path.fill("arrives")
    path.press("Enter")
    page.locator("#found").get_by_role("button", name="arrives").click()
    expect(dialog).to_contain_text("and proven")


def test_a_file_of_a_mirror_is_shown_with_its_origin(visit: Open) -> None:
    """This service has no mirror: the answers are put in."""
    download = {"job": 7, "key": "m/1/model.bin", "etag": "e", "version_id": "", "stored_size": 5, "size": 9,
                "sha256": "ab" * 32, "compression": "zstd", "evidence": "crc64nvme", "downloaded_at": 1e9}  # fmt: skip
    entry = {"seq": 3, "sha256": "cd" * 32, "body": json.dumps({"kind": "released", "at": 1e9})}
    origin = {"mirror": "models", "mirror_path": "/srv/models", "path": "m/1/model.bin", "here": "changed",
              "downloads": [download], "jobs": [], "custody": [entry], "fault": "", "chain_checked": False}  # fmt: skip
    page = visit(READ)
    jobs, files = {"jobs": [], "more": False, "after": None}, {"why": None, "prove": origin}
    page.route("**/api/v1/jobs?*", lambda route: route.fulfill(json=jobs))
    page.route("**/api/v1/files?*", lambda route: route.fulfill(json=files))
    path = page.get_by_label("Its path")
    path.fill("/srv/models/m/1/model.bin")
    path.press("Enter")
    dialog = page.get_by_role("dialog")
    for text in ("mirror models", "It was CHANGED since", "crc64nvme", "ab" * 32, "cd" * 32, "released"):
        expect(dialog).to_contain_text(text)
    assert inaccessible(page) == []


def test_names_are_text_whatever_they_hold(visit: Open) -> None:
    page = visit()
    expect(failed(page, "<img src=x onerror=")).to_be_visible()
    failed(page, "<img src=x onerror=").get_by_role("button", name="img src").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", level=2)).to_have_text(HOSTILE)
    expect(dialog).to_contain_text("Parked after 1 failure")
    dialog.get_by_role("button", name="Close").click()
    failed(page, r"caf\xe9").get_by_role("button", name=r"caf\xe9").click()
    expect(dialog).to_contain_text(r"caf\xe9 \xff.bin")
    expect(dialog).to_contain_text("Parked after 1 failure")  # it was found by its bytes
    assert page.evaluate("[document.images.length, window.hurt]") == [1, None]


def test_the_token_is_asked_for_when_it_is_needed(visit: Open, site: Site) -> None:
    page = visit("")
    dialog = page.get_by_role("dialog", name="A token is needed")
    token = dialog.get_by_label("Token", exact=True)
    expect(token).to_be_focused()
    dialog.get_by_role("button", name="Cancel").click()
    expect(page.locator("#away")).to_have_text("The figures are shown to those who have a token.")
    page.get_by_role("button", name="Enter the token").click()
    token.fill("wrong")
    token.press("Enter")
    expect(dialog).to_contain_text("That token was not accepted.")
    token.fill(READ)
    dialog.get_by_role("button", name="Use it").click()
    expect(flying(page)).to_be_visible()
    assert not page.locator("#trouble #away").is_visible()
    page.get_by_role("button", name="Pause landing").click()
    expect(dialog).to_contain_text("may not change anything")
    page.keyboard.press("Escape")
    expect(page.locator("#watches")).to_contain_text("Nothing was changed")
    page.get_by_role("button", name="Pause landing").click()
    token.fill(ACT)
    token.press("Enter")
    expect(page.locator("#watches .state")).to_have_text("paused")
    assert site.service.cli("status")[1]["watches"][0]["paused"]
    page.get_by_role("button", name="Resume landing").click()
    expect(page.locator("#watches .state")).to_have_text("watching")
    page.reload()
    expect(flying(page)).to_be_visible()
    assert not dialog.is_visible(), "it is kept in this tab"
    assert page.evaluate("[localStorage.length, document.cookie, location.href.includes('rrr')]") == [0, "", False]


def test_everything_can_be_done_by_keyboard(visit: Open, site: Site) -> None:
    page = visit()
    expect(flying(page)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the figures")).to_be_focused()
    page.keyboard.press("Enter")
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        of = "document.activeElement"
        if page.evaluate(f"{of} === document.body"):
            break
        seen.add(page.evaluate(f"{of}.getAttribute('aria-label') || {of}.textContent.trim() || {of}.name || {of}.id"))
        assert page.evaluate(f"getComputedStyle({of}).outlineStyle") != "none", f"nobody sees where {seen} is"
    wanted = {"large.bin", "Find", "path", "The same as a table", "Pause landing", "Rescan landing", "Rescan all"}
    assert wanted <= seen
    button = flying(page).get_by_role("button")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#file-title")).to_be_focused()
    expect(page.get_by_role("dialog")).to_contain_text("Being delivered")
    page.keyboard.press("Escape")
    expect(button).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out(visit: Open, scheme: str) -> None:
    for size in ({"width": 1280, "height": 800}, {"width": 360, "height": 740}):
        page = visit(color_scheme=scheme, viewport=size, reduced_motion="reduce")
        expect(flying(page)).to_be_visible()
        expect(failed(page, "img")).to_be_visible()
        page.get_by_text("The same as a table").click()
        assert inaccessible(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        failed(page, "img").get_by_role("button", name="img src").click()
        expect(page.get_by_role("dialog")).to_contain_text("Parked after")
        assert inaccessible(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert page.evaluate("document.getElementById('file').scrollWidth") <= size["width"]
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor").split("(")[1].startswith("1")
    assert dark == (scheme == "dark")


def test_a_service_that_is_away_is_told_from_one_that_has_nothing_to_do(visit: Open, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    site = Site(tmp_path, f'listen = "127.0.0.1:{port}"')
    with site.service:
        page = visit("", at=port)
        expect(page.locator("#flight-empty")).to_contain_text("Nothing is on its way")
        expect(page.locator("#failures-empty")).to_contain_text("None. Everything that was begun has arrived.")
        expect(page.locator("#health")).to_have_text("ok")
    expect(page.locator("#health")).to_have_text("away")
    expect(page.locator("#away")).to_contain_text("The service does not answer since")
    expect(page.locator("#as-of")).to_contain_text("Not of now")
    expect(page.locator("#said")).to_have_text("The service does not answer.")
    with site.service:
        site.land("later")
        expect(page.locator("#health")).to_have_text("ok")
        expect(page.locator("#totals [data-of=done] .figure")).to_have_text("1")
        assert not page.locator("#away").is_visible()
        page.get_by_role("button", name="Pause landing").click()
        expect(page.locator("#watches")).to_contain_text("nothing can be changed without [api] act_token")


def test_what_not_every_service_has_is_shown_where_it_is(visit: Open, site: Site, port: int) -> None:
    """Mirrors, hooks and units, put into what the service says."""
    status = site.ask("/api/v1/system/upload-status", headers=bearer(READ), port=port).json
    status["watches"][0]["units"] = {
        "open": 2, "complete": 0, "published": 5, "overdue": 1, "examples": [{"path": "run7", "why": "no marker"}]
    }  # fmt: skip
    status["mirrors"] = [
        {"name": "models", "path": "/srv/models", "source": "bucket", "state": "outage", "reason": "nobody answers",
         "paused": None, "last_good": status["at"] - 120, "listed": 1200, "bytes": 3 << 30, "released": 4,
         "waiting": {"a/1": "of 3"}, "quarantined": {"b/2": "its digest differs"}, "refused": {}, "server": ""}
    ]  # fmt: skip
    status["hooks"] = [
        {"name": "mail", "type": "command", "state": "failing", "confirmed": 7, "waiting": 2, "behind": 1, "parked": 0,
         "last_error": "exit status 1"}
    ]  # fmt: skip
    page = visit(READ)
    expect(flying(page)).to_be_visible()
    assert not page.get_by_role("heading", name="Mirrors").is_visible()
    body = f"event: status\ndata: {json.dumps(status)}\n\n"
    page.route("**/api/v1/events", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.reload()
    mirrors, hooks = page.locator("#mirrors li"), page.locator("#hooks li")
    for text in ("models", "outage", "1,200 objects listed (3.00 GiB)", "b/2 was not taken", "listed 2 min ago"):
        expect(mirrors).to_contain_text(text)
    for text in ("mail", "failing", "command · 7 told · 3 waiting", "exit status 1"):
        expect(hooks).to_contain_text(text)
    expect(page.locator("#watches")).to_contain_text("units: 2 open, 5 published")
    expect(page.locator("#watches")).to_contain_text("Unit run7 is overdue: no marker.")
    assert inaccessible(page) == []


def test_a_page_elsewhere_can_neither_drive_nor_show_it(browser: Browser, site: Site, port: int) -> None:
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title><p>mine")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"http://localhost:{server.server_address[1]}/")
        script = """async ([url, token]) => {
            const answers = [];
            for (const headers of [{}, {authorization: `Bearer ${token}`}]) {
                for (const options of [{}, {method: "POST"}, {method: "POST", mode: "no-cors"}]) {
                    try { answers.push((await fetch(url, {headers, ...options})).status) }
                    catch { answers.push("refused") }
                }
            }
            return answers;
        }"""
        for path in ("api/v1/pause", "api/v1/system/upload-status"):
            answers = page.evaluate(script, [f"http://127.0.0.1:{port}/{path}", ACT])
            assert set(answers) <= {"refused", 0}, "nothing can be read"
        page.evaluate(f"document.body.innerHTML = '<iframe src=\"http://127.0.0.1:{port}/\"></iframe>'")
        until(lambda: len(page.frames) == 2)
        page.wait_for_timeout(500)
        assert page.frames[1].locator("#totals").count() == 0, "it cannot be framed"
    finally:
        context.close()
        server.shutdown()
        thread.join()
        server.server_close()
    status = site.ask("/api/v1/system/upload-status", headers=bearer(READ), port=port).json
    assert status["watches"][0]["paused"] is None
