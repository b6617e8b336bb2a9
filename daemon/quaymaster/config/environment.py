"""A mirror that the environment configures, without any file: for a container beside a model server.

``QUAYMASTER_MIRROR_BUCKET`` says that it is meant. Every key of [mirror.NAME], and what reaches the bucket, has a
variable of its name in capitals behind ``QUAYMASTER_MIRROR_``: ``QUAYMASTER_MIRROR_KEEP_VERSIONS=3``. No file is read
then, and what is wrong is told with the variable's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from quaymaster.config.documents import Documents
from quaymaster.config.lines import Path
from quaymaster.config.problems import Place, Problems

NAME, SOURCE = "mirror", "bucket"
_START = "QUAYMASTER_MIRROR_"
BUCKET = f"{_START}BUCKET"
_OF_SOURCE = ("bucket", "endpoint_url", "region", "credentials", "ca_bundle", "addressing")
_ELSEWHERE: Mapping[str, Path] = {
    "QUAYMASTER_STATE_DIR": ("service", "state_dir"),
    "QUAYMASTER_LISTEN": ("api", "listen"),
    "QUAYMASTER_READ_TOKEN": ("api", "read_token"),
    "QUAYMASTER_MEMORY": ("limits", "memory"),
}
_DEFAULT_PATH = "/models"


def documents_of(environ: Mapping[str, str], problems: Problems) -> Documents | None:
    """The tables that the environment stands for; None when it does not configure a mirror."""
    if not environ.get(BUCKET):
        return None
    documents = Documents(sources=["the environment"])
    mirror: dict[str, Any] = {"source": SOURCE, "path": _DEFAULT_PATH}
    tables: dict[str, Any] = {"destination": {SOURCE: {"type": "s3"}}, "mirror": {NAME: mirror}}
    for variable in sorted(environ):
        if keys := _keys_of(variable):
            table = tables
            for key in keys[:-1]:
                table = table.setdefault(str(key), {})
            table[str(keys[-1])] = _value(environ[variable])
            documents.places[keys] = Place(0, f"environment variable {variable}", 0)
    documents.tables = tables
    problems.places = documents.places
    return documents


def _keys_of(variable: str) -> Path | None:
    if variable in _ELSEWHERE:
        return _ELSEWHERE[variable]
    if not variable.startswith(_START):
        return None
    key = variable.removeprefix(_START).lower()
    return ("destination", SOURCE, key) if key in _OF_SOURCE else ("mirror", NAME, key)


def _value(text: str) -> Any:
    """Numbers, true and false and lists as they are written in the file; else text."""
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
