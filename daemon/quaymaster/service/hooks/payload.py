"""What a hook is told: one JSON object for each event, the same for commands and webhooks (schema 1, quaymaster(1)).

Names are those of ``--json``. Fields that mean nothing for an event are left out; others may be added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from quaymaster.store.outbox import Message

SCHEMA = 1

_AS_THEY_ARE = (
    "watch",
    "path",
    "job",
    "unit",
    "mirror",
    "generation",
    "files",
    "bytes",
    "missing",
    "digest",
    "forced_by",
    "manifests",
    "size",
    "mtime_ns",
    "destination",
    "key",
    "stored_size",
    "stored_sha256",
    "compression",
    "etag",
    "version_id",
    "evidence",
    "error",
)
"""Fields of a custody entry that the payload has under the same name."""
_RENAMED = {"source_sha256": "sha256", "code": "error_code", "what": "fault", "text": "error"}
_SENTENCES = {
    "delivered": "{what} was delivered to {destination} as {key}",
    "parked": "{what} is parked: {error}",
    "unit-complete": "unit {what} is complete, generation {generation}",
    "outage": "{what} is away: {error}",
    "recovered": "{what} is back after {seconds} s",
    "integrity-failure": "{what}: integrity failure: {error}",
    "released": "{what} was released",
}


def payload(message: Message, log: str, host: str) -> dict[str, Any]:
    """``log`` tells this custody log from others. ``id`` stays the same however often an event is sent."""
    fields = _of_lane(message.fields)
    number = f"test-{message.since * 1000:.0f}-{message.id}" if message.test else str(message.entry)
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "id": f"{log}:{number}:{message.event}",
        "event": message.event,
        "time": _iso(message.since),
        "at": message.since,
        "host": host,
        "text": _sentence(message, fields),
    }
    if message.test:
        found["test"] = True
    found |= {name: fields[name] for name in _AS_THEY_ARE if fields.get(name) not in (None, "")}
    found |= {new: fields[old] for old, new in _RENAMED.items() if fields.get(old) not in (None, "")}
    if message.event == "unit-complete" and "path" in fields:
        found["unit"] = fields["path"]
    if fields.get("path_hex") and fields["path_hex"] != str(fields.get("path", "")).encode().hex():
        found["path_bytes_hex"] = fields["path_hex"]
    for name in ("since", "seconds"):
        if name in fields:
            found[name] = fields[name]
    return found


def _of_lane(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """A list of a unit has a watch of its own for each destination: an event names the watch that it is about."""
    name = str(fields.get("watch", ""))
    watch, _, destination = name.partition("@")
    return fields if watch == name else {**fields, "watch": watch, "destination": destination}


def encoded(found: Mapping[str, Any]) -> bytes:
    return json.dumps(found, separators=(",", ":")).encode()


class _Known(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return ""


def _sentence(message: Message, fields: Mapping[str, Any]) -> str:
    about = "/".join(str(fields[name]) for name in ("watch", "path") if fields.get(name))
    if not fields.get("path"):
        about = next((f"{name} {fields[name]}" for name in ("mirror", "watch", "destination") if fields.get(name)), "")
    known = _Known(fields, what=about, error=fields.get("error") or fields.get("text", ""))
    sentence = _SENTENCES[message.event].format_map(known)
    return f"Test: {sentence}" if message.test else sentence


def sample(event: str, watch: str, destination: str) -> dict[str, Any]:
    """What the custody log might say of such an event, for a test."""
    about: dict[str, Any] = {"watch": watch, "path": "test/file.txt", "job": 0, "destination": destination}
    match event:
        case "outage":
            return {"watch": watch, "error": "this is a test"}
        case "recovered":
            return {"watch": watch, "seconds": 42.0}
        case "unit-complete":
            return {"watch": watch, "path": "test", "generation": 1, "files": 0, "bytes": 0}
        case "parked" | "integrity-failure":
            return {**about, "code": "integrity", "error": "this is a test"}
        case _:
            return {**about, "key": "test/file.txt", "size": 0, "source_sha256": _EMPTY}


_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
