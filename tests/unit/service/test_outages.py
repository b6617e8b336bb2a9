"""W6, O4: what is away, and is back, is noted once each: watches, destinations, and the other way mirrors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quaymaster.service.hooks.payload import payload
from quaymaster.service.outages import Outages
from quaymaster.store import Store
from quaymaster.store.outbox import Settled, Wants

EVENTS = frozenset({"outage", "recovered"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(str(tmp_path / "state"), create=True)
    yield made
    made.close()


def mirror(state: str, since: float, reason: str = "") -> dict[str, dict[str, Any]]:
    return {"models": {"state": state, "reason": reason, "since": since}}


def told(store: Store, hook: str) -> list[dict[str, Any]]:
    """What the hook is told, in order."""
    found: list[dict[str, Any]] = []
    store.outbox.feed(hook)
    while messages := store.outbox.due(hook, 10, 1e12):
        found += [payload(message, "log", "host") for message in messages]
        store.outbox.settle(hook, [Settled(message, 0.0) for message in messages])
    return found


def test_a_mirror_that_fails_for_long_and_follows_again_is_told_to_hooks_that_name_it(store: Store) -> None:
    of_watches = {"all": (), "its": ("models",), "other": ("w",)}
    store.outbox.register({name: Wants(EVENTS, frozenset(watches)) for name, watches in of_watches.items()})
    outages = Outages(store)
    outages.look([], {}, mirror("outage", 1000.0, "no such bucket"), 1005.0)  # one listing may fail
    outages.look([], {}, mirror("ok", 1006.0), 1006.0)
    outages.look([], {}, mirror("outage", 2000.0, "no such bucket"), 2011.0)
    outages = Outages(store)  # a restart falls into it
    outages.look([], {}, mirror("starting", 0.0), 2020.0)
    outages.look([], {}, mirror("outage", 2021.0, "no such bucket"), 2040.0)
    outages.look([], {}, mirror("ok", 2050.0), 2050.0)
    for name in ("all", "its"):
        away, back = told(store, name)
        assert (away["event"], away["mirror"], away["watch"]) == ("outage", "models", "models")
        assert away["text"] == "mirror models is away: no such bucket"
        assert (back["event"], back["text"]) == ("recovered", "mirror models is back after 50.0 s")
    assert told(store, "other") == []
