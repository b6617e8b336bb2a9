"""How hooks stand, and why one is not well: for status, health, figures and ``quaymaster hooks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quaymaster.service.view.records import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from quaymaster.config import Config, Hook
    from quaymaster.store import Store
    from quaymaster.store.outbox import Message, Standing

FAILING_AFTER = 600.0
"""Seconds of failing after which somebody should look."""


def hook_records(config: Config, store: Store, now: float) -> list[Record]:
    """Every configured hook. Raises StoreError."""
    known = {standing.name: standing for standing in store.outbox.standing()} if config.hooks else {}
    return [_record(hook, known.get(name), now) for name, hook in config.hooks.items()]


def _record(hook: Hook, standing: Standing | None, now: float) -> Record:
    found: Record = {
        "name": hook.name,
        "type": "command" if hook.command else "webhook",
        "on": list(hook.on),
        "watches": list(hook.watches),
        "state": "not served yet",
        "waiting": 0,
        "refused": 0,
        "parked": 0,
        "behind": 0,
        "oldest": None,
        "next_try": None,
        "confirmed": 0,
        "failing_since": None,
        "last_success": None,
        "last_error": "",
        "last_error_at": None,
    }
    if standing is None:
        return found
    since = min((at for at in (standing.failing_since, standing.refused_since) if at is not None), default=None)
    state = "failing" if since is not None and standing.refused else "parked" if standing.parked else "ok"
    return found | {
        "state": state,
        "waiting": standing.waiting,
        "refused": standing.refused,
        "parked": standing.parked,
        "behind": standing.behind,
        "oldest": standing.oldest,
        "next_try": standing.next_try,
        "confirmed": standing.confirmed,
        "failing_since": since if state == "failing" else None,
        "last_success": standing.last_success,
        "last_error": standing.last_error,
        "last_error_at": standing.last_error_at,
    }


def message_record(message: Message) -> Record:
    """One event that a hook was not told."""
    fields = message.fields
    return {
        "id": message.id,
        "event": message.event,
        "entry": message.entry,
        "at": message.since,
        "state": "parked" if message.parked_at is not None else "waiting",
        "attempts": message.attempts,
        "retry_at": message.retry_at,
        "error": message.error,
        **{name: fields[name] for name in ("watch", "path", "job", "unit", "destination", "mirror") if name in fields},
    }


def failing(hooks: Iterable[Record], now: float) -> list[str]:
    """A line for each hook that has been failing for long."""
    return [
        f"hook {hook['name']} has not taken {hook['refused']:,} of {hook['waiting'] + hook['behind']:,} events,"
        f" for {(now - hook['failing_since']) / 60:.0f} min: {hook['last_error']}"
        for hook in hooks
        if hook["failing_since"] is not None and now - hook["failing_since"] > FAILING_AFTER
    ]
