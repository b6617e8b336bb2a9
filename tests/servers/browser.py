"""A real Chromium, without a window, for tests of the page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_SEEN = "violations => violations.map(v => `${v.id}: ${v.help}: ${v.nodes.map(n => n.html).join(' | ')}`)"


def executable() -> str:
    """Empty when this machine has none."""
    return next(filter(None, map(shutil.which, NAMES)), "")


def reason_to_skip() -> str:
    """Where everything must be tested, a missing browser is a failure."""
    return "" if executable() or os.environ.get("CI") else f"no browser is installed: {', '.join(NAMES)}"


@contextmanager
def chromium() -> Iterator[Browser]:
    assert executable(), f"install one of {', '.join(NAMES)}"
    with sync_playwright() as playwright:
        # Its sandbox needs a user that is not root; what it is shown here are our own pages.
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def inaccessible(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it is (WCAG 2.2 A and AA, and its best practices)."""
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(axe)
    found: list[Any] = page.evaluate(f"axe.run().then(found => ({_SEEN})(found.violations))")
    return [str(violation) for violation in found]
