"""Secrets stand in files of their own, never in the configuration (PRODUCT S5, X4)."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field

from quaymaster.config.values import hook_url
from quaymaster.errors import ConfigError
from quaymaster.model import shown

DIRECTORY = "/etc/quaymaster/credentials"
LARGEST = 64 << 10  # bytes

_ACCESS_KEYS = ("access_key", "aws_access_key_id")
_SECRET_KEYS = ("secret_key", "aws_secret_access_key")
PREFIX = "quaymaster_"
"""Of the names of what the unit hands over by LoadCredential=quaymaster:DIRECTORY."""

_TOKENS = ("session_token", "aws_session_token")
_ONE_LINE = "one line of 16 to 512 characters without spaces, e.g. from: openssl rand -hex 32"
_EXAMPLE = 'access_key = "..." and secret_key = "..."'


@dataclass(frozen=True, slots=True)
class Credentials:
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def read_credentials(name: str, environ: Mapping[str, str] = os.environ, directory: str = DIRECTORY) -> Credentials:
    """The key pair called ``name``: a systemd credential (systemd.exec(5), $CREDENTIALS_DIRECTORY), an absolute path,
    or a file in ``directory``, in that order.

    Raises ConfigError with one line that never holds a part of the file.
    """
    found = _found(name, environ, directory, "credentials")
    return _parsed(_read(found, _EXAMPLE), found.path)


def read_token(name: str, environ: Mapping[str, str] = os.environ, directory: str = DIRECTORY) -> str:
    """The token called ``name``, for the API: the one line of a file that is found like that of a key pair.

    Raises ConfigError with one line that never holds a part of the file.
    """
    found = _found(name, environ, directory, "the token's name")
    token = _read(found, _ONE_LINE).strip()
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", token):
        raise _error(found.path, f"does not hold a token; it should hold only {_ONE_LINE}")
    return token


def read_url(url: str, environ: Mapping[str, str] = os.environ, directory: str = DIRECTORY) -> str:
    """``url``, or for "credential:NAME" the one line of that file, which is one.

    Raises ConfigError with one line that never holds a part of the file.
    """
    if not url.startswith("credential:"):
        return url
    found = _found(url.removeprefix("credential:"), environ, directory, "the URL's name")
    text = _read(found, "one line with a URL").strip()
    try:
        if text.startswith("credential:"):
            raise ValueError("names another credential; write the URL itself")
        return hook_url(text) or ""
    except ValueError as error:
        raise _error(found.path, str(error)) from None


@dataclass(frozen=True, slots=True)
class _Found:
    path: str
    private: bool
    """Nobody but the owner may be able to read it; systemd guards its own directory."""
    late: bool = False
    """systemd has handed over what was in the directory at the start, and this was not."""


def _found(name: str, environ: Mapping[str, str], directory: str, what: str) -> _Found:
    given = environ.get("CREDENTIALS_DIRECTORY", "")
    if given and "/" not in name:
        # A credential of its own, or of those that the unit loads as a directory.
        for inside in (os.path.join(given, name), os.path.join(given, PREFIX + name)):
            if os.path.lexists(inside):
                return _Found(inside, private=False)
    if "/" in name and not name.startswith("/"):
        raise _error("credential", f"{_shown(name)} is neither a name nor an absolute path; correct {what}")
    if name.startswith("/"):
        return _Found(name, private=True)
    return _Found(os.path.join(directory, name), private=True, late=bool(given))


def _read(found: _Found, holding: str) -> str:
    path = found.path
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        if found.late:
            advice = f"create it with {holding} and mode 0600, then systemctl restart quaymaster"
            raise _error(path, f"was not there when the service was started; {advice}") from None
        if isinstance(error, FileNotFoundError):
            raise _error(path, f"does not exist; create it with {holding} and mode 0600") from None
        reason = getattr(error, "strerror", None) or "not a file name"
        raise _error(path, f"cannot be read ({reason}); make the service's user its owner") from None
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):  # which open() would refuse with an error of its own
        os.close(descriptor)
        raise _error(path, f"is a directory; put {holding} into a file")
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(status.st_mode):
            raise _error(path, f"is not a regular file; put {holding} into one")
        if found.private and status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise _error(path, f"can be read by others (mode {mode:04o}); run: chmod 0600 {_shown(path)}")
        try:
            data = file.read(LARGEST + 1)
        except OSError as error:
            raise _error(path, f"cannot be read ({error.strerror}); try again") from None
    if len(data) > LARGEST:
        raise _error(path, f"is larger than {LARGEST >> 10} KiB; it should hold only {holding}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _error(path, "is not UTF-8 text; save it as UTF-8") from None


def _parsed(text: str, path: str) -> Credentials:
    pairs = _toml_pairs(text) or _ini_pairs(text)
    values = []
    for names in (_ACCESS_KEYS, _SECRET_KEYS, _TOKENS):
        value = next((pairs[name] for name in names if name in pairs), "")
        if not value and names is not _TOKENS:
            raise _error(path, f"has no {names[0]}; write {_EXAMPLE}")
        # Anything else would be a forged header of an HTTP request.
        if not re.fullmatch(r"[\x21-\x7e]*", value):
            raise _error(path, f"has spaces or control characters in {names[0]}; write it as it was issued")
        values.append(value)
    access_key, secret_key, session_token = values
    return Credentials(access_key, secret_key, session_token or None)


def _toml_pairs(text: str) -> dict[str, str]:
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError):
        return {}
    default = tables.get("default")
    chosen = {**tables, **default} if isinstance(default, dict) else tables
    return {key: value for key, value in chosen.items() if isinstance(value, str)}


def _ini_pairs(text: str) -> dict[str, str]:
    """The form of ~/.aws/credentials: values without quotes; what stands before a header or under [default] counts."""
    pairs: dict[str, str] = {}
    section = "default"
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif line and line[0] not in "#;" and section == "default":
            key, _, value = line.partition("=")
            value = value.strip()
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            pairs[key.strip().lower()] = value
    return pairs


def _shown(path: str) -> str:
    return shown(os.fsencode(path))


def _error(path: str, text: str) -> ConfigError:
    return ConfigError([f"{_shown(path)}: {text}"])
