"""The effective configuration as text: TOML that can be loaded again, and JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quaymaster.config.bandwidth import Bandwidth
from quaymaster.config.problems import NAMED
from quaymaster.config.units import Seconds, Size
from quaymaster.model import shown

if TYPE_CHECKING:
    from pydantic import BaseModel

    from quaymaster.config.schema import Config

Setting = tuple[tuple[str, ...], object, str]
"""Keys, value, and the value as TOML (empty: not set, and no word for it)."""


def settings(config: Config) -> Iterator[Setting]:
    yield from _table(config.service, "service")
    yield from _table(config.limits, "limits")
    yield from _table(config.verify, "verify")
    yield from _table(config.api, "api")
    for name, destination in config.destinations.items():
        yield from _table(destination, "destination", name)
    for name, watch in config.watches.items():
        yield from _table(watch, "watch", name)
    for name, hook in config.hooks.items():
        yield from _table(hook, "hook", name)
    for name, mirror in config.mirrors.items():
        yield from _table(mirror, "mirror", name)


def _table(table: BaseModel, *keys: str) -> Iterator[Setting]:
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if (name == "name" and len(keys) > 1) or name == "after_dir":
            continue
        if name == "after" and value == "move":
            value = f"move:{getattr(table, 'after_dir', '')}"
        if name == "compress" and value is not None:
            yield from _table(value, *keys, name)
            continue
        if isinstance(value, Bandwidth):
            yield (*keys, name), value.record(), value.toml()
            continue
        unit = next((item for item in field.metadata if isinstance(item, Size | Seconds)), None)
        yield (*keys, name), value, _toml_value(name, value, unit)


def _toml_value(name: str, value: Any, unit: Size | Seconds | None) -> str:
    if value is None:
        word = {"compress": "none", "stage": "auto", "unit": "none", "profile": "none"}.get(
            name, unit.word if unit else ""
        )
        return f'"{word}"' if word else ""
    return _literal(unit.show(value) if unit else value)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_literal(k)} = {_literal(value[k])}" for k in sorted(value)) + " }" if value else "{}"
        )
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    # JSON's escapes are TOML's, except that TOML refuses a bare DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def to_toml(config: Config) -> str:
    """The effective configuration; each line ends in a comment that says where the value comes from.

    Loading it gives the same configuration.
    """
    blocks: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for keys, _, text in settings(config):
        depth = 2 if keys[0] in NAMED else 1
        key = ".".join(keys[depth:])
        line = (f"{key} = {text}", config.where(*keys)) if text else (f"# {key} is not set", "")
        blocks.setdefault(keys[:depth], []).append(line)
    lines = [f"# read from {shown(os.fsencode(source))}" for source in config.sources]
    if config.compression_disabled:
        lines.append("# QUAYMASTER_DISABLE_COMPRESSION is set: nothing is compressed")
    for header, pairs in blocks.items():
        width = min(48, max(len(text) for text, origin in pairs if origin))
        lines += ["", f"[{'.'.join(header)}]"]
        lines += [f"{text:<{width}}  # {origin}" if origin else text for text, origin in pairs]
    return "\n".join(lines).lstrip("\n") + "\n"


def to_json(config: Config) -> str:
    """The effective configuration for programs: sizes in bytes, durations in seconds."""
    return json.dumps(
        {
            "sources": config.sources,
            "digest": config.digest,
            "compression_disabled": config.compression_disabled,
            "settings": [{"key": key, "value": value, "where": where} for key, value, where in config.effective()],
        },
        indent=2,
    )


def digest(config: Config) -> str:
    """What :attr:`Config.digest` is to hold."""
    facts = [[*keys, text] for keys, _, text in settings(config)]
    facts.append(["compression_disabled", str(config.compression_disabled)])
    return hashlib.sha256(json.dumps(sorted(facts)).encode()).hexdigest()
