"""config.json of an OpenVINO Model Server: entries of its ``model_config_list``, in the text as it stands (PRODUCT M3).

What others wrote is kept byte for byte: an entry is inserted as text, or cut out as text, and the result is compared
with what was meant before it takes the file's place. The shape is that of
https://github.com/openvinotoolkit/model_server/blob/main/src/schema.cpp (``MODELS_CONFIG_SCHEMA``).
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from quaymaster.destinations import disk
from quaymaster.errors import PermanentError

LIST = "model_config_list"
_OTHERS = ("pipeline_config_list", "mediapipe_config_list")
"""What else is served under a name of its own; a model that has the same is refused."""
_LARGEST = 16 << 20
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\n\r]*")
_NAME_REFUSED = re.compile(r"[/:?#%\x00-\x20\x7f]")
"""What cannot be part of ``/v1/models/NAME``: https://docs.openvino.ai/2024/ovms_docs_rest_api_tfs.html"""


class ConfigRefused(PermanentError):
    """The file cannot be changed as it is; it is left alone."""

    code = "ovms-config"


@dataclass(frozen=True, slots=True)
class _Item:
    value: Any
    start: int
    end: int


def model_name(path: bytes) -> str:
    """What the server calls the model in that directory; a nested one has hyphens for slashes. Raises ConfigRefused for
    a name that it would not serve."""
    try:
        name = path.decode().replace("/", "-")
    except UnicodeDecodeError:
        name = "\0"
    if not name or _NAME_REFUSED.search(name):
        raise ConfigRefused(f"The model server has no name for {path!r}", "Use letters, digits, dots, hyphens, _")
    return name


def with_model(text: str, name: str, base_path: str) -> str:
    """The text with that model in it; the same text when it is there. Raises ConfigRefused."""
    if not text.strip():
        return json.dumps({LIST: [_entry(name, base_path)]}, indent=4) + "\n"
    whole = _parsed(text)
    _require_free(whole, name)
    found = _list_of(text)
    if found is None:
        at = text.index("{") + 1
        comma = "," if whole else ""
        return _proven(
            f'{text[:at]}\n    "{LIST}": [\n        {_compact(name, base_path)}\n    ]{comma}{text[at:]}',
            {**whole, LIST: [_entry(name, base_path)]},
        )
    items = _items(text, found)
    for item in items:
        config = item.value.get("config") if isinstance(item.value, dict) else None
        if isinstance(config, dict) and config.get("name") == name:
            if config.get("base_path") == base_path:
                return text
            raise ConfigRefused(
                f"config.json has a model {name} with the base_path {config.get('base_path')!r}, which is not of the"
                " mirror",
                "Remove that entry, or give one of the two another name",
            )
    after = whole[LIST] + [_entry(name, base_path)]
    if not items:
        inner = f"\n        {_compact(name, base_path)}\n    "
        return _proven(text[: found.start + 1] + inner + text[found.end - 1 :], {**whole, LIST: after})
    last = items[-1]
    before = items[-2].end if len(items) > 1 else found.start + 1
    gap = text[before : last.start].lstrip(",") if len(items) > 1 else text[before : last.start]
    gap = gap[gap.index(",") + 1 :] if "," in gap else gap
    return _proven(
        f"{text[: last.end]},{gap or ' '}{_compact(name, base_path)}{text[last.end :]}", {**whole, LIST: after}
    )


def _require_free(whole: dict[str, Any], name: str) -> None:
    for each in _OTHERS:
        others = whole.get(each)
        for other in others if isinstance(others, list) else []:
            if isinstance(other, dict) and other.get("name") == name:
                raise ConfigRefused(
                    f"config.json has {name} in its {each}: the server would not take a model of that name",
                    "Give one of the two another name",
                )


def without_model(text: str, name: str, base_path: str) -> str:
    """The text without that very model; the same text when it is not there. Raises ConfigRefused."""
    if not text.strip():
        return text
    whole = _parsed(text)
    found = _list_of(text)
    items = _items(text, found) if found else []
    for number, item in enumerate(items):
        config = item.value.get("config") if isinstance(item.value, dict) else None
        if isinstance(config, dict) and (config.get("name"), config.get("base_path")) == (name, base_path):
            assert found is not None
            if number:
                start, end = items[number - 1].end, item.end
            elif len(items) > 1:
                start, end = item.start, items[1].start
            else:
                start, end = found.start + 1, found.end - 1
            rest = [value for at, value in enumerate(whole[LIST]) if at != number]
            return _proven(text[:start] + text[end:], {**whole, LIST: rest})
    return text


def _entry(name: str, base_path: str) -> dict[str, Any]:
    return {"config": {"name": name, "base_path": base_path}}


def _compact(name: str, base_path: str) -> str:
    return json.dumps(_entry(name, base_path))


def _parsed(text: str) -> dict[str, Any]:
    try:
        whole = json.loads(text, object_pairs_hook=_no_doubles)
    except (ValueError, RecursionError) as error:
        raise ConfigRefused(f"config.json is broken ({error})", "It is left alone: correct it") from None
    if not isinstance(whole, dict) or not isinstance(whole.get(LIST, []), list):
        raise ConfigRefused(f"config.json has no list {LIST}", "It is left alone: correct it")
    return whole


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _proven(text: str, meant: dict[str, Any]) -> str:
    if _parsed(text) != meant:
        raise ConfigRefused("config.json is written in a way that cannot be extended", "Add the model by hand")
    return text


def _list_of(text: str) -> _Item | None:
    """Where the list stands. The text is sound JSON with an object at its top."""
    at = _over(text, text.index("{") + 1)
    while text[at] == '"':
        key, at = _DECODER.raw_decode(text, at)
        at = _over(text, _over(text, at) + 1)  # over the colon
        value, end = _DECODER.raw_decode(text, at)
        if key == LIST:
            return _Item(value, at, end)
        at = _over(text, end)
        if text[at] == ",":
            at = _over(text, at + 1)
    return None


def _items(text: str, array: _Item) -> list[_Item]:
    found = []
    at = _over(text, array.start + 1)
    while text[at] != "]":
        value, end = _DECODER.raw_decode(text, at)
        found.append(_Item(value, at, end))
        at = _over(text, end)
        if text[at] == ",":
            at = _over(text, at + 1)
    return found


def _over(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def change(path: str, edit: Callable[[str], str]) -> bool:
    """Give the file the text that ``edit`` makes of it, in one step; whether that is another one. Mode and owner stay.
    Raises ConfigRefused and TransferError."""
    with disk.disk_errors(path):
        try:
            with open(path, "rb") as file:
                data, status = file.read(_LARGEST + 1), os.fstat(file.fileno())
        except FileNotFoundError:
            data, status = b"", None
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise ConfigRefused(f"{path} is not UTF-8", "It is left alone: correct it") from None
        if len(data) > _LARGEST:
            raise ConfigRefused(f"{path} is larger than {_LARGEST >> 20} MiB", "It is left alone: correct it")
        try:
            new = edit(text)
        except ConfigRefused as error:
            raise ConfigRefused(f"{path}: {error.message}", error.advice) from None
        if new == text:
            return False
        _replace(path, new.encode(), status)
        return True


def _replace(path: str, data: bytes, like: os.stat_result | None) -> None:
    beside = f"{path}.qm-new"
    with suppress(FileNotFoundError):
        os.unlink(beside)
    descriptor = os.open(beside, disk.NEW_FLAGS, 0o644)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if like is not None:
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
                mine = os.fstat(descriptor)
                if (mine.st_uid, mine.st_gid) != (like.st_uid, like.st_gid):
                    os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fsync(descriptor)
        os.rename(beside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.sync_directory(folder)
    finally:
        os.close(folder)
