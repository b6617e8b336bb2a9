"""What tables have to do with each other: nothing may feed itself, and no two watches may take the same file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from quaymaster.config.destination import BesideDestination, Destination, DirectoryDestination
from quaymaster.config.disk import within
from quaymaster.config.problems import Problems
from quaymaster.config.schema import Hook, Mirror, Service
from quaymaster.config.values import quoted
from quaymaster.config.watch import Watch
from quaymaster.keys import template_fields

RESOLVING = 2.0
"""Seconds for finding where symbolic links lead. A hung network mount must not hold up the start: then the paths count
as they are written."""


def check(
    service: Service,
    destinations: Mapping[str, Destination],
    watches: Mapping[str, Watch],
    mirrors: Mapping[str, Mirror],
    problems: Problems,
) -> None:
    directories = {name: found.path for name, found in destinations.items() if isinstance(found, DirectoryDestination)}
    own = {"state_dir": service.state_dir, "staging_dir": service.staging_dir}
    moves = {name: watch.after_dir for name, watch in watches.items() if watch.after_dir}
    real = _real_paths(
        {watch.path for watch in watches.values()}
        | {*directories.values(), *own.values()}
        | {*moves.values()}
        | {mirror.path for mirror in mirrors.values()}
    )
    watched: dict[str, str] = {}
    for name, watch in sorted(watches.items(), key=lambda item: problems.place(("watch", item[0]))):
        if real[watch.path] in watched:
            _overlap(name, watched[real[watch.path]], "is also the directory of", watches, problems)
        watched.setdefault(real[watch.path], name)
    for name, watch in watches.items():
        for outer in _holding(os.path.dirname(real[watch.path]), watched, but=real[watch.path]):
            _overlap(name, outer, "lies inside", watches, problems)
    for key, path in own.items():
        for outer in _holding(real[path], watched):
            advice = "it would take the service's own files: choose a directory outside"
            problems.add(("service", key), f"{quoted(path)} lies inside watch {outer}; {advice}")
    for name, path in directories.items():
        for outer in _holding(real[path], watched):
            advice = "it would take its own copies: choose a directory outside"
            problems.add(("destination", name, "path"), f"{quoted(path)} lies inside watch {outer}; {advice}")
    _own_directories(real, own, problems)
    _mirrors(real, mirrors, {**watched, **{real[path]: name for name, path in directories.items()}}, watches, problems)
    _watches(real, watches, destinations, directories, own["staging_dir"], problems)


def check_hooks(
    hooks: Mapping[str, Hook], watches: Mapping[str, Watch], mirrors: Mapping[str, Mirror], problems: Problems
) -> None:
    """Hooks and watches that name each other exist, and what one waits for can come."""
    known = [*watches, *mirrors]
    for name, hook in hooks.items():
        for index, watch in enumerate(hook.watches):
            if watch not in known:
                advice = f"there are {', '.join(known)}" if known else "there is none"
                problems.add(("hook", name, "watches", index), f"there is no watch or mirror {quoted(watch)}; {advice}")
    for name, found in watches.items():
        for index, wanted in enumerate(found.after_hooks):
            keys = ("watch", name, "after_hooks", index)
            awaited = hooks.get(wanted)
            if awaited is None:
                problems.add(keys, f"there is no hook {quoted(wanted)}; add a table [hook.NAME], or remove it")
            elif awaited.watches and name not in awaited.watches:
                problems.add(keys, f"hook {wanted} is not told of this watch; add {quoted(name)} to its watches")
            elif not _waited_for(found) & set(awaited.on):
                advice = ", or write after_unit = true" if "unit-complete" in awaited.on and found.unit else ""
                problems.add(keys, f'hook {wanted} is told of no delivery of it; add "delivered" to its on{advice}')
        if found.after_hooks and found.after == "keep":
            advice = 'write after = "delete" or "move:DIRECTORY", or remove it'
            problems.add(("watch", name, "after_hooks"), f"has nothing to hold back, for the source is kept; {advice}")


def _waited_for(watch: Watch) -> set[str]:
    """Events that come before a source of it is removed; that of a unit does when the source waits for that."""
    return {"delivered", "unit-complete"} if watch.unit and watch.after_unit else {"delivered"}


def _overlap(name: str, other: str, how: str, watches: Mapping[str, Watch], problems: Problems) -> None:
    advice = "both would take the same files: remove one of the two watches, or give them separate directories"
    where = f"watch {other} ({problems.place(('watch', other, 'path'))})"
    problems.add(("watch", name, "path"), f"{quoted(watches[name].path)} {how} {where}; {advice}")


def _own_directories(real: Mapping[str, str], own: Mapping[str, str], problems: Problems) -> None:
    staging = {real[own["staging_dir"]]: "staging_dir"}
    for _ in _holding(real[own["state_dir"]], staging):
        advice = "the service removes what it finds there: choose a directory outside"
        problems.add(("service", "state_dir"), f"{quoted(own['state_dir'])} lies inside staging_dir; {advice}")


def _mirrors(
    real: Mapping[str, str],
    mirrors: Mapping[str, Mirror],
    taken: Mapping[str, str],
    watches: Mapping[str, Watch],
    problems: Problems,
) -> None:
    """What is mirrored goes where nothing else is put, and nothing taken from. ``taken``: directory -> whose it is."""
    below: dict[str, str] = {}
    for name, mirror in mirrors.items():
        keys, path = ("mirror", name), quoted(mirror.path)
        if name in watches:
            problems.add(keys, f"there is a watch {name} too; give one of them another name")
        for outer in _holding(real[mirror.path], taken):
            advice = "give the mirror a directory of its own"
            problems.add((*keys, "path"), f"{path} lies inside the directory of {outer}; {advice}")
        for outer in _holding(real[mirror.path], below):
            problems.add((*keys, "path"), f"{path} lies inside that of mirror {outer}; give each its own directory")
        below[real[mirror.path]] = name
        for owner in (
            owner for directory, owner in taken.items() if any(_holding(directory, {real[mirror.path]: name}))
        ):
            problems.add((*keys, "path"), f"the directory of {owner} lies inside {path}; give each its own directory")


def _watches(
    real: Mapping[str, str],
    watches: Mapping[str, Watch],
    destinations: Mapping[str, Destination],
    directories: Mapping[str, str],
    staging: str,
    problems: Problems,
) -> None:
    delivered = {real[path]: name for name, path in directories.items()}
    for name, watch in watches.items():
        keys = ("watch", name)
        path = quoted(watch.path)
        for outer in _holding(os.path.dirname(real[watch.path]), delivered, but=real[watch.path]):
            advice = "it would take copies already delivered: choose a directory outside"
            problems.add((*keys, "path"), f"{path} lies inside the directory of destination {outer}; {advice}")
        for _ in _holding(real[watch.path], {real[staging]: ""}):
            advice = "the service removes what it finds there: choose a directory outside"
            problems.add((*keys, "path"), f"{path} lies inside staging_dir; {advice}")
        if watch.after_dir and any(_holding(real[watch.after_dir], {real[watch.path]: name})):
            advice = "moved files would be found again: choose a directory outside"
            problems.add((*keys, "after"), f"{quoted(watch.after_dir)} lies inside the watch itself; {advice}")
        beside = [found for found in watch.destinations if isinstance(destinations.get(found), BesideDestination)]
        if beside and watch.compress is None:
            advice = 'write compress = "zstd", or remove it'
            problems.add((*keys, "destinations"), f"without compress {beside[0]} has nothing to publish; {advice}")
        if watch.unit and not {"path", "dir"} & template_fields(watch.key):
            advice = 'put {path} into it, as in "{watch}/{path}"'
            problems.add(
                (*keys, "key"), f"without {{path}} or {{dir}} all units would have the same manifest; {advice}"
            )
        if beside and watch.unit:
            advice = "name a destination of another place, or remove unit"
            problems.add((*keys, "unit"), f"{beside[0]} has no copy of what is not compressed to list; {advice}")
        if len(beside) > 1:
            text = f"{' and '.join(beside)} would write the same file; remove one"
            problems.add((*keys, "destinations"), text)


def _holding(path: str, directories: Mapping[str, str], but: str = "") -> Iterator[str]:
    """The owners of ``directories`` that ``path`` is, or lies in; the directory ``but`` does not count."""
    while True:
        if path in directories and path != but:
            yield directories[path]
        above = os.path.dirname(path)
        if above == path:
            return
        path = above


def _real_paths(paths: set[str]) -> dict[str, str]:
    try:
        return within(RESOLVING, lambda: {path: os.path.realpath(path) for path in paths})
    except TimeoutError:
        return {path: path for path in paths}
