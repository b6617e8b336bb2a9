"""``quaymaster mirror``: one pass of the mirrors, or what one would do (PRODUCT M5)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import click

from quaymaster.cli import show
from quaymaster.cli.session import Session, in_session
from quaymaster.errors import StoreUnwritable, TransferError, UsageError
from quaymaster.model import Event, Level, shown

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.service.mirrors import MirrorService
    from quaymaster.store import Store


@click.command("mirror")
@click.argument("name", required=False)
@click.option("--once", is_flag=True, help="List the bucket, download, verify, release, and end.")
@click.option("--dry-run", is_flag=True, help="Say what a pass would do; change nothing.")
@click.option("--retry", is_flag=True, help="Let what was quarantined be tried again.")
@click.option("--healthy", is_flag=True, help="Say nothing but what is wrong: exit code 1 then, or without service.")
@in_session
def command(session: Session, name: str | None, once: bool, dry_run: bool, retry: bool, healthy: bool) -> int:
    """Show the mirrors, or let them do one pass. NAME is one of them; else all.

    The service follows the buckets by itself; a pass by hand is for hosts where none runs, and is refused while one
    does. Where nothing but the listing says that a version is whole, a pass waits for a second listing.

    \b
    Examples:
      quaymaster mirror                     how they stand
      quaymaster mirror models --dry-run    what is new, changed or gone
      quaymaster mirror models --once
      quaymaster mirror models --retry      try what its server did not take again
    """
    config = session.config()
    if name is not None and name not in config.mirrors:
        known = ", ".join(config.mirrors) or "there are none"
        raise UsageError(f"There is no mirror {show.plain(name)}", f"The mirrors: {known}")
    names = [name] if name is not None else list(config.mirrors)
    if dry_run:
        return _preview(session, config, names)
    if once:
        return _once(session, config, names)
    if retry:
        return _retry(session, config, names)
    return _show(session, config, names, healthy)


@contextmanager
def _services(config: Config, store: Store, names: list[str]) -> Iterator[list[MirrorService]]:
    from quaymaster.service.ceilings import Ceilings
    from quaymaster.service.mirrors import MirrorService
    from quaymaster.service.places import Places

    with closing(Places(config, store, _tell)) as places:
        found = []
        for name in names:
            source = places.shared(config.mirrors[name].source)
            assert source is not None
            found.append(MirrorService(config.mirrors[name], store, source, Ceilings(config).bounds, _tell))
        yield found


def _tell(event: Event) -> None:
    if event.level <= Level.NOTICE:
        about = "/".join(part for part in (event.watch, shown(event.path)) if part)
        print(show.plain(f"{about}: {event.message}" if about else event.message), file=sys.stderr)


def _preview(session: Session, config: Config, names: list[str]) -> int:
    found: dict[str, list[dict[str, Any]]] = {}
    with _scratch_or_store(session, config) as store, _services(config, store, names) as services:
        for each in services:
            found[each.mirror.name] = [
                {"unit": shown(path), "what": what, "bytes": size} for path, what, size in each.follower.preview()
            ]
    if session.json:
        print(show.as_json({"mirrors": found}))
        return 0
    for name, lines in found.items():
        print(f"{name}: {show.count(len(lines), 'difference')}")
        for line in lines:
            size = f" ({show.size(line['bytes'])} to download)" if line["bytes"] else ""
            print(show.plain(f"  {line['unit']}: {line['what']}{size}"))
    return 0


@contextmanager
def _scratch_or_store(session: Session, config: Config) -> Iterator[Store]:
    """The queue, or an empty one that is thrown away where there is none yet."""
    import tempfile

    from quaymaster.store import Store

    if os.path.exists(os.path.join(config.service.state_dir, "quaymaster.db")):
        with session.store(config) as store:
            yield store
    else:
        with tempfile.TemporaryDirectory() as folder, closing(Store(folder, create=True)) as store:
            yield store


def _once(session: Session, config: Config, names: list[str]) -> int:
    from quaymaster.service.lock import Lock
    from quaymaster.store import Store

    try:
        os.makedirs(config.service.state_dir, mode=0o700, exist_ok=True)
    except OSError as error:
        where = config.service.state_dir
        raise StoreUnwritable(f"The directory {where} cannot be made ({error.strerror})", "Make it") from None
    lock = Lock(config.service.state_dir)
    try:
        with closing(Store(config.service.state_dir, create=True)) as store:
            store.recover()
            store.declare(config.mirrors, config.watches)
            with _services(config, store, names) as services:
                said = [_pass(each) for each in services]
            for each in said:
                store.report(f"mirror:{each['name']}", each)
    finally:
        lock.release()
    if session.json:
        print(show.as_json({"mirrors": said}))
    else:
        for each in said:
            print("\n".join(lines_of(each)))
    wrong = any(each["state"] != "ok" or each["waiting"] or each["quarantined"] or each["server"] for each in said)
    return 1 if wrong else 0


def _pass(service: MirrorService) -> dict[str, Any]:
    try:
        service.once()
    finally:
        service.stop(0.1)
    return service.record()


def _retry(session: Session, config: Config, names: list[str]) -> int:
    with session.store(config) as store, _services(config, store, names) as services:
        again = {each.mirror.name: [shown(p) for p in each.follower.retry_quarantined()] for each in services}
        store.rescan(names, "operator")
    if session.json:
        print(show.as_json({"retried": again}))
    else:
        for name, units in again.items():
            print(show.plain(f"{name}: {', '.join(units) or 'nothing was quarantined'}"))
    return 0


def _show(session: Session, config: Config, names: list[str], healthy: bool) -> int:
    import time

    from quaymaster.service.lock import holder
    from quaymaster.service.view.snapshot import snapshot

    pid = holder(config.service.state_dir)
    with session.store(config) as store:
        found = snapshot(config, store, pid, time.time())["mirrors"]
    found = [each for each in found if each["name"] in names]
    if session.json:
        print(show.as_json({"mirrors": found}))
    elif not healthy:
        for each in found:
            print("\n".join(lines_of(each)))
    return _complaints(config, found, pid) if healthy else 0


def _complaints(config: Config, found: list[dict[str, Any]], pid: int | None) -> int:
    import time

    from quaymaster.service.view.mirrors import wrong_with

    why = ["the service does not run"] if pid is None else []
    for each in found:
        why += wrong_with(each, time.time(), config.mirrors[each["name"]].interval)
    for line in why:
        print(show.plain(f"quaymaster: {line}"), file=sys.stderr)
    return 1 if why else 0


def lines_of(said: dict[str, Any]) -> list[str]:
    """One mirror for people."""
    listed = (
        f", {show.count(said['listed'], 'object')} ({show.size(said['bytes'])}) listed" if said["last_good"] else ""
    )
    state = said["state"] + (f": {said['reason']}" if said["reason"] else "")
    lines = [f"{said['name']}: {state}; {said['released']:,} released{listed}"]
    for word in ("waiting", "quarantined", "refused"):
        lines += [f"  {word}: {what}: {why}" for what, why in said[word].items()]
    lines += [f"  model server: {said['server']}"] if said["server"] else []
    return [show.plain(line) for line in lines]


__all__ = ["TransferError", "command", "lines_of"]
