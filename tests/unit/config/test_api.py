"""[api]: an address for others needs a token, and what cannot be served is said with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quaymaster.config import read_token
from quaymaster.errors import ConfigError
from quaymaster.service.api.guard import Rules

REST = """
[destination.out]
type = "directory"
path = "/out"
[watch.in]
path = "/in"
destinations = ["out"]
"""


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:8440", ("127.0.0.1", 8440)), ("localhost:1", ("127.0.0.1", 1)), ("[::1]:65535", ("::1", 65535)),
     ("none", None)],
)  # fmt: skip
def test_an_address_is_understood(site, listen: str, address: tuple[str, int] | None) -> None:
    assert site.load(f'[api]\nlisten = "{listen}"' + REST).api.address == address


@pytest.mark.parametrize("listen", ["8440", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "host:1", ":1", "::1:1:x"])
def test_what_is_no_address_is_refused(site, listen: str) -> None:
    with pytest.raises(ConfigError, match=r'\[api\] listen: .*write one like "127.0.0.1:8440"'):
        site.load(f'[api]\nlisten = "{listen}"' + REST)


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.1.2.3:1"])
def test_an_address_for_others_needs_a_token(site, listen: str) -> None:
    with pytest.raises(ConfigError, match=r":2: \[api\] listen: .* is open to others without a token"):
        site.load(f'[api]\nlisten = "{listen}"' + REST)
    assert site.load(f'[api]\nlisten = "{listen}"\nread_token = "x"' + REST).api.address


@pytest.mark.parametrize("line", ['hosts = ["http://a"]', 'hosts = ["a/b"]', 'hosts = "a"', 'socket = "api.sock"',
                                  'act_token = "two words"', 'token = "abc"'])  # fmt: skip
def test_other_mistakes_are_named(site, line: str) -> None:
    with pytest.raises(ConfigError, match=r":2: \[api\]"):
        site.load(f"[api]\n{line}" + REST)


def test_a_token_is_the_one_line_of_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("x" * 32 + "\n")
    with pytest.raises(ConfigError, match="can be read by others"):
        read_token(str(file), {})
    file.chmod(0o600)
    assert read_token(str(file), {}) == "x" * 32
    assert read_token("token", {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "x" * 32
    for wrong in ("", "short", "x" * 600, "two words are none", "a" * 20 + "\n" + "b" * 20, "ü" * 20):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match="does not hold a token") as failed:
            read_token(str(file), {})
        assert not wrong or wrong not in str(failed.value)
    os.unlink(file)
    with pytest.raises(ConfigError, match="does not exist; create it with one line"):
        read_token(str(file), {})


def test_where_every_address_is_listened_on_one_may_ask_by_any_and_by_no_foreign_name() -> None:
    everywhere = Rules(address="0.0.0.0")
    assert everywhere.serves("10.1.2.3:8440")
    assert everywhere.serves("[fd00::1]")
    assert not everywhere.serves("evil.example.org")
    assert not Rules(address="127.0.0.1").serves("10.1.2.3")
    assert Rules(address="10.1.2.3").serves("10.1.2.3:8440")
    assert Rules().serves("localhost")
