"""Whether the model server has taken a version, and the command that is told of releases (PRODUCT M3).

The REST API is that of https://github.com/openvinotoolkit/model_server/blob/main/docs/model_server_rest_api_tfs.md:
``POST /v1/config/reload`` applies config.json and looks for new versions, ``GET /v1/models/NAME/versions/N`` tells the
state of one (START, LOADING, AVAILABLE, UNLOADING, END; tensorflow_serving/apis/get_model_status.proto).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from quaymaster import command as commands
from quaymaster.errors import IntegrityError, TemporaryError, Unreachable

_LARGEST = 4 << 20
_REQUEST = 10.0
"""Seconds that one request may take; a reload takes as long as its models."""
_PAUSE = 0.2


class VersionRefused(IntegrityError):
    """The server does not serve the version."""

    code = "version-refused"


class ModelServer:
    """``url``: http(s)://HOST:PORT. Used by one thread."""

    def __init__(self, url: str, timeout: float, cancelled: Callable[[], bool]) -> None:
        self._url, self._timeout, self._cancelled = url.rstrip("/"), timeout, cancelled

    def confirm(self, name: str, version: int) -> None:
        """Return when the version is AVAILABLE. Raises VersionRefused when it is not within the timeout, Unreachable
        while the server does not answer at all: that says nothing of the version."""
        end = time.monotonic() + self._timeout
        self.reload()
        said = "it is not listed"
        while True:
            state, said = self._state(name, version, said)
            if state == "AVAILABLE":
                return
            if state == "END" or time.monotonic() >= end:
                raise VersionRefused(
                    f"The model server does not serve version {version} of {name}: {said}",
                    "Look at the server's log; the version is tried again when it changes upstream",
                )
            if self._cancelled():
                raise Unreachable("The service is stopping", "The version is confirmed after the next start")
            time.sleep(_PAUSE)

    def reload(self) -> None:
        """An error that it answers with may be of another model: what counts is the state of the one asked for."""
        self._ask("POST", "/v1/config/reload", max(_REQUEST, self._timeout))

    def _state(self, name: str, version: int, before: str) -> tuple[str, str]:
        status, said = self._ask("GET", f"/v1/models/{quote(name, safe='')}/versions/{version}", _REQUEST)
        versions = said.get("model_version_status") if status == 200 else None
        for each in versions if isinstance(versions, list) else []:
            if isinstance(each, dict) and str(each.get("version")) == str(version):
                status_of = each.get("status")
                told = status_of if isinstance(status_of, dict) else {}
                state = str(each.get("state"))[:100]
                code, text = str(told.get("error_code", ""))[:100], str(told.get("error_message", ""))[:500]
                failed = code not in ("", "OK") and state == "LOADING"
                return ("END" if failed else state), f"{state} {code} {text}".strip()
        return "", str(said.get("error", before))[:500]

    def _ask(self, method: str, path: str, timeout: float) -> tuple[int, dict[str, Any]]:
        from http.client import HTTPConnection, HTTPException, HTTPSConnection

        target = urlsplit(self._url)
        kind = HTTPSConnection if target.scheme == "https" else HTTPConnection
        connection = kind(target.hostname or "", target.port, timeout=timeout)
        try:
            connection.request(method, path, body=b"" if method == "POST" else None)
            answer = connection.getresponse()
            body = answer.read(_LARGEST)
        except (OSError, HTTPException) as error:
            raise Unreachable(f"The model server {self._url} does not answer ({error})", "Is it running?") from None
        finally:
            connection.close()
        try:
            said = json.loads(body) if body else {}
        except (ValueError, RecursionError):
            said = {}
        return answer.status, said if isinstance(said, dict) else {}


def run_command(command: Sequence[str], said: Mapping[str, Any], timeout: float) -> None:
    """Run it, without a shell, with ``said`` as JSON on its standard input. Raises TemporaryError when it fails."""
    body = json.dumps(said).encode() + b"\n"
    environment = {"QUAYMASTER_MIRROR": str(said.get("mirror", "")), "QUAYMASTER_EVENT": str(said.get("event", ""))}
    if error := commands.run(command, body, timeout=timeout, environment=environment):
        raise TemporaryError(f"{command[0]}: {error}", "It is run again; if it is the wrong one, correct on_release")
