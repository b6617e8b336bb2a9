"""O4: what a hook may be, and what is said of one that cannot work."""

from __future__ import annotations

import pytest

BASE = """
[destination.a]
type = "directory"
path = "/archive"
[watch.w]
path = "/w"
destinations = ["a"]
after = "delete"
"""
GOOD = '[hook.h]\non = ["delivered"]\ncommand = ["/bin/true"]\n'


def test_a_command_and_a_webhook(site) -> None:
    config = site.load(
        BASE + 'after_hooks = ["h"]\n' + GOOD + '[hook.web]\non = ["parked", "outage"]\nwatches = ["w"]\n'
        'url = "https://example.org:8443/hook?x=1"\nsecret = "web"\ntimeout = "5s"\ngive_up = "7d"\n'
    )
    assert config.hooks["h"].command == ("/bin/true",)
    assert (config.hooks["h"].timeout, config.hooks["h"].parallel, config.hooks["h"].give_up) == (30.0, 4, None)
    assert (config.hooks["web"].timeout, config.hooks["web"].give_up) == (5.0, 7 * 86400)
    assert config.watches["w"].after_hooks == ("h",)
    assert ("hook.web.give_up", 604800.0) in [(key, value) for key, value, _ in config.effective()]


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ('on = ["delivered"]', "[hook.h] command: has neither command nor url; write one"),
        ('on = ["delivered"]\ncommand = ["/x"]\nurl = "http://h/"', "[hook.h] command: has both command and url"),
        ('on = ["delivered"]\ncommand = ["mail", "x"]', '"mail" is not an absolute path'),
        ('on = ["delivery"]\ncommand = ["/x"]', "[hook.h] on (item 1): has an unknown value; write"),
        ('on = []\ncommand = ["/x"]', "[hook.h] on: is empty"),
        ('command = ["/x"]', '[hook.h] on: is missing; write on = ["delivered", "parked"]'),
        ('on = ["parked"]\nurl = "ftp://h/"', "[hook.h] url: is not a URL"),
        ('on = ["parked"]\nurl = "https://me:pass@h/"', "holds a user or password"),
        ('on = ["parked"]\ncommand = ["/x"]\nsecret = "s"', "has secret or ca_file, which are for url"),
        ('on = ["parked"]\ncommand = ["/x"]\nwatches = ["v"]', 'there is no watch or mirror "v"; there are w'),
    ],
)
def test_what_is_wrong_is_one_line_that_says_what_to_do(site, hook: str, told: str) -> None:
    (line,) = site.problems(BASE + "[hook.h]\n" + hook)
    assert told in line


@pytest.mark.parametrize(
    ("watch", "hook", "told"),
    [
        ('after_hooks = ["g"]', GOOD, 'there is no hook "g"'),
        ('after_hooks = ["h"]', GOOD.replace("delivered", "parked"), "is told of no delivery"),
        ('after_hooks = ["h"]', GOOD.replace("delivered", "unit-complete"), "is told of no delivery"),
        ('after_hooks = ["h"]', GOOD + 'watches = ["v"]\n[watch.v]\npath = "/v"\ndestinations = ["a"]', "not told of"),
    ],
)
def test_a_watch_waits_for_no_hook_that_cannot_come(site, watch: str, hook: str, told: str) -> None:
    (line,) = site.problems(BASE + watch + "\n" + hook)
    assert "[watch.w] after_hooks (item 1)" in line
    assert told in line


def test_a_source_that_does_not_wait_for_its_unit_waits_for_no_hook_that_is_told_of_units_alone(site) -> None:
    units = BASE + 'unit = "directory"\nunit_idle = "1min"\nafter_hooks = ["h"]\n'
    hook = GOOD.replace("delivered", "unit-complete")
    assert site.load(units + hook).watches["w"].after_hooks == ("h",)
    (line,) = site.problems(units + "after_unit = false\n" + hook)
    assert line.endswith('is told of no delivery of it; add "delivered" to its on, or write after_unit = true')


def test_a_source_that_is_kept_waits_for_nobody(site) -> None:
    (line,) = site.problems(BASE.replace('after = "delete"', 'after_hooks = ["h"]') + GOOD)
    assert "has nothing to hold back" in line


def test_a_url_that_is_a_secret_stands_elsewhere(site, tmp_path) -> None:
    from quaymaster.config import read_url

    secret = tmp_path / "chat"
    secret.write_text("https://hooks.example.org/services/T0/B0/abc\n")
    secret.chmod(0o600)
    config = site.load(BASE + f'[hook.h]\non = ["parked"]\nurl = "credential:{secret}"')
    assert config.hooks["h"].url == f"credential:{secret}"
    assert read_url(config.hooks["h"].url, {}) == "https://hooks.example.org/services/T0/B0/abc"
