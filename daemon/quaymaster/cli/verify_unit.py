"""``--unit`` of ``verify`` and ``restore``: a unit as a destination holds it, by its manifest alone (PRODUCT W5)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from quaymaster.cli import records, show
from quaymaster.cli.session import Session
from quaymaster.errors import NotSupported, UsageError
from quaymaster.model import MANIFEST

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.pipeline.delivered_unit import DeliveredUnit
    from quaymaster.service.places import Places

_WORKERS = 4
_TOLD = 1000
"""Faults that are named; all are counted."""
_FAULTS = ("missing", "changed", "damaged")


def verify(session: Session, unit: str, destination: str | None, level: str) -> int:
    """Compare a unit with its manifest. Needs no ledger."""
    from quaymaster.service.places import Places

    config = session.config()
    with closing(Places(config, None, lambda _: None)) as places, delivered(config, places, unit, destination) as found:
        counts = dict.fromkeys(("good", *_FAULTS, "unanswered"), 0)
        faults: list[records.Record] = []
        for entry, what, text in found.faults(level == "readback", _WORKERS):
            counts[what or "good"] += 1
            if what and len(faults) < _TOLD:
                faults.append({"what": what, "path": show.plain(os.fsdecode(entry.path)), "text": text})
                print(show.plain(f"{what.upper()}: {os.fsdecode(entry.path)}: {text}"), file=sys.stderr)
        head = found.head.head
    ok = counts["good"] == sum(counts.values())
    if session.json:
        names = ("unit", "watch", "generation", "digest", "file_count", "missing_count")
        print(show.as_json({**{name: head.get(name) for name in names}, **counts, "ok": ok, "faults": faults}))
    else:
        print(show.plain(f"unit {head['unit']}, generation {head['generation']}: {head['digest']}"))
        troubles = ", ".join(f"{show.count(n)} {name.upper()}" for name, n in counts.items() if n and name != "good")
        print(f"{show.count(counts['good'], 'file')} as its manifest says" + (f", {troubles}" if troubles else ""))
        if head["missing_count"]:
            print(f"its manifest was published without {show.count(head['missing_count'], 'file')}")
    return 3 if any(counts[name] for name in _FAULTS) else 1 if counts["unanswered"] else 0


@contextmanager
def delivered(config: Config, places: Places, unit: str, destination: str | None) -> Iterator[DeliveredUnit]:
    """The unit at a destination. ``unit`` is its directory (absolute), or the key of its manifest, or that key without
    the last name. Raises QuaymasterError."""
    from quaymaster.pipeline import delivered_unit

    named: tuple[str, bytes] | None = None
    if unit.startswith("/"):
        from quaymaster.service.view.locate import locate

        place = locate(config, os.fsencode(unit))
        named = place.watch.name, place.watch.unit_of(os.path.join(place.path, b"x")) or place.path
    name = _destination(config, destination, named[0] if named else "")
    held = places.shared(name)
    if held is None:
        raise NotSupported(f"{name} is beside the sources of each watch, where no manifest is", "Name another one")
    if named:
        key = delivered_unit.key_of(held, config.watches[named[0]].key, named[0], config.service.host, named[1])
    else:
        key = unit if unit.endswith(".json") else f"{unit.rstrip('/')}/{MANIFEST}"
    with delivered_unit.opened(held, key) as found:
        yield found


def _destination(config: Config, given: str | None, watch: str) -> str:
    if given:
        if given not in config.destinations:
            known = ", ".join(config.destinations)
            raise UsageError(f"There is no destination {given}", f"The destinations are: {known}")
        return given
    names = config.watches[watch].destinations if watch else tuple(config.destinations)
    if len(names) > 1:
        raise UsageError("It is not said at which destination", f"Name it with --destination: {', '.join(names)}")
    return names[0]
