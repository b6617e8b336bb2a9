"""Secrets come from files that nobody else can read, and never show (PRODUCT X4)."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quaymaster.config import Credentials, read_credentials
from quaymaster.errors import ConfigError

PAIR = Credentials("AKIDEXAMPLE", "wJalr/+=secret")


@pytest.fixture
def store(tmp_path):
    """A directory of credentials, each readable by its owner only."""

    def write(name: str, text: str | bytes, mode: int = 0o600):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return path

    return write


def read(tmp_path, name="archive", **environ) -> Credentials:
    return read_credentials(name, environ, str(tmp_path))


FORMS = {
    "TOML": 'access_key = "AKIDEXAMPLE"\nsecret_key = "wJalr/+=secret"\n',
    "TOML with AWS's names": 'aws_access_key_id = "AKIDEXAMPLE"\naws_secret_access_key = "wJalr/+=secret"\n',
    "TOML with a header": '[default]\naccess_key = "AKIDEXAMPLE"\nsecret_key = "wJalr/+=secret"\n',
    "AWS's file": "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key=wJalr/+=secret\n",
    "without header": "# mine\naws_access_key_id=AKIDEXAMPLE\r\n; x\r\naws_secret_access_key = wJalr/+=secret",
    "other profiles": "[other]\nsecret_key = no\n[default]\naccess_key = AKIDEXAMPLE\nsecret_key = 'wJalr/+=secret'\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(store, tmp_path, form):
    store("archive", FORMS[form])
    assert read(tmp_path) == PAIR


def test_session_token(store, tmp_path):
    store("archive", FORMS["AWS's file"] + "aws_session_token = tok\n")
    assert read(tmp_path).session_token == "tok"


def test_systemd_comes_first_and_guards_its_own(store, tmp_path):
    store("archive", "access_key = other\nsecret_key = other\n")
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / "archive").write_text(FORMS["TOML"])
    (tmp_path / "systemd" / "archive").chmod(0o440)
    assert read(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "systemd")) == PAIR


def test_what_systemd_does_not_have_is_looked_for_elsewhere(store, tmp_path):
    store("archive", FORMS["TOML"])
    assert read(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "nothing")) == PAIR


def test_absolute_path(store, tmp_path):
    path = store("elsewhere", FORMS["TOML"])
    assert read(tmp_path / "nothing", str(path)) == PAIR


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_file_that_others_can_read_is_refused_with_the_command_to_run(store, tmp_path, mode):
    path = store("archive", FORMS["TOML"], mode)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{path}: can be read by others (mode {mode:04o}); run: chmod 0600 {path}"


def test_nothing_shows():
    for text in (repr(PAIR), str(PAIR), f"{PAIR}", repr([PAIR]), repr({"x": PAIR})):
        assert "AKID" not in text
        assert "wJalr" not in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no access_key"),
        ("hunter2", "has no access_key"),
        ("access_key = hunter2\n", "has no secret_key"),
        ("access_key = hunter2\nsecret_key =\n", "has no secret_key"),
        ('access_key = "hunter2\\n"\nsecret_key = "hunter2"\n', "spaces or control characters in access_key"),
        ("access_key = hunter2\nsecret_key = hunter2 hunter2\n", "spaces or control characters in secret_key"),
        (b"access_key = hunter2\xff", "is not UTF-8 text"),
        (b"hunter2" * 10_000, "is larger than 64 KiB"),
    ],
)
def test_what_is_wrong_is_said_without_a_word_of_the_file(store, tmp_path, text, words):
    path = store("archive", text)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    assert words in problem
    assert "hunter2" not in problem


def test_missing_says_how_to_provide_it(tmp_path):
    with pytest.raises(ConfigError, match=r"does not exist; create it with .* and mode 0600$"):
        read(tmp_path)


def test_of_those_that_the_unit_loads_as_a_directory(store, tmp_path):
    (tmp_path / "loaded").mkdir()
    store("loaded/quaymaster_archive", FORMS["TOML"])
    assert read(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "loaded")).access_key


def test_one_that_came_after_the_start_needs_another(tmp_path):
    """The service itself cannot look into the directory."""
    (tmp_path / "loaded").mkdir()
    with pytest.raises(ConfigError, match=r"was not there when the service .* systemctl restart quaymaster$"):
        read(tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path / "loaded"))


def test_a_relative_path_is_refused(store, tmp_path):
    store("archive", FORMS["TOML"])
    with pytest.raises(ConfigError, match="neither a name nor an absolute path"):
        read(tmp_path / "x", "../archive", CREDENTIALS_DIRECTORY=str(tmp_path / "x"))


def test_a_pipe_or_directory_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "archive", 0o600)
    with pytest.raises(ConfigError, match="not a regular file"):
        read(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        read(tmp_path, "folder")


def test_a_file_of_somebody_else(open_directory, nobody):
    path = open_directory / "archive"
    path.write_text(FORMS["TOML"])
    path.chmod(0)
    with nobody(), pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\); make the service's user"):
        read(open_directory)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: f"access_key = {text}".encode())))
def test_no_bytes_raise_anything_but_configuration_errors(store, tmp_path, data):
    store("archive", data)
    with contextlib.suppress(ConfigError):
        read(tmp_path)
