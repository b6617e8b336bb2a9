"""Where events go: the journal with fields when our output is connected to it, else plain lines.

Fields follow systemd.journal-fields(7); ours begin with QUAYMASTER_. Each kind of event has a MESSAGE_ID, derived
from the kind's name and therefore stable.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TextIO

from quaymaster.model import Event, Level, shown
from quaymaster.store import Head

_NAMESPACE = uuid.UUID("6f1c0f6e-6d0b-4b0e-9a53-5a1f7a2c9d11")
_PREFIX = {Level.ERROR: "error: ", Level.WARNING: "warning: "}


def message_id(kind: str) -> str:
    """The MESSAGE_ID of a kind of event: 32 lower-case hex digits."""
    return uuid.uuid5(_NAMESPACE, kind).hex


def sink(stream: TextIO, environ: Mapping[str, str]) -> Callable[[Event], None]:
    """The way to tell an operator. ``stream`` is where plain lines go when it is not the journal."""
    if _is_journal(stream, environ):
        return _to_journal
    return lambda event: _to_stream(event, stream)


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    # systemd.exec(5), JOURNAL_STREAM: device and inode of the socket that the output is connected to.
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _to_journal(event: Event) -> None:
    from systemd import journal

    journal.send(
        text(event),
        MESSAGE_ID=message_id(event.kind),
        PRIORITY=str(int(event.level)),
        SYSLOG_IDENTIFIER="quaymaster",
        **fields(event),
    )


def heads(log: str) -> Iterator[Head]:
    """The heads of the custody log of that name that this journal holds, as far as the caller may read it."""
    try:
        from systemd import journal
    except ImportError:
        return
    with suppress(OSError), journal.Reader() as reader:
        reader.add_match(MESSAGE_ID=message_id("custody-head"))
        for entry in reader:
            found = re.match(rf"custody log {log}: .* head ([0-9:a-f]+)$", str(entry.get("MESSAGE", "")))
            if found and (head := Head.parsed(found.group(1))):
                yield head


def fields(event: Event) -> dict[str, str | bytes]:
    """The event's journal fields; those that say nothing are left out. A path goes as the bytes that it is."""
    found: dict[str, str | bytes] = {"QUAYMASTER_EVENT": event.kind}
    for name, value in (
        ("WATCH", event.watch),
        ("PATH", event.path),
        ("JOB", str(event.job) if event.job else ""),
        ("STAGE", event.stage),
        ("DESTINATION", event.destination),
        ("BYTES", str(event.size) if event.size >= 0 else ""),
        ("SHA256", event.sha256),
        ("ERROR", event.code),
    ):
        if value:
            found[f"QUAYMASTER_{name}"] = value
    return found


def text(event: Event) -> str:
    """One line for people."""
    about = "/".join(part for part in (event.watch, shown(event.path)) if part)
    return f"{about}: {event.message}" if about else event.message


def _to_stream(event: Event, stream: TextIO) -> None:
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    line = f"{now} {_PREFIX.get(event.level, '')}{text(event)}"
    if event.sha256:
        line += f" [sha256 {event.sha256}]"
    try:
        stream.write(line + "\n")  # in one piece: many threads speak
        stream.flush()
    except (OSError, ValueError):
        pass  # the terminal went away; the journal of record is the store


def plain() -> Callable[[Event], None]:
    """The sink of this process: standard error."""
    return sink(sys.stderr, os.environ)
