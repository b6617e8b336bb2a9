"""What a file is still waiting for (PRODUCT W4): the answer of ``quaymaster why PATH``.

It looks for itself, so it needs no running service, and it looks twice but never waits for a file to settle.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quaymaster.errors import SourceRefused, SourceUnavailable
from quaymaster.intake.attend import Known
from quaymaster.intake.mounts import Ground, read_mountinfo, survey
from quaymaster.intake.observe import Looks, ignore_lease_breaks, leases_are_safe, policy_for
from quaymaster.intake.scan import Rules, has_marker
from quaymaster.intake.settle import Observation, Policy, Writer
from quaymaster.model import Identity, shown
from quaymaster.source import Root

if TYPE_CHECKING:
    from quaymaster.config import Watch

_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True, slots=True)
class Evidence:
    ok: bool | None
    """True: in order. False: this keeps the file from being taken. None: cannot be told from here."""
    text: str


def why(
    watch: Watch,
    path: bytes,
    *,
    known: Known,
    mountinfo: Callable[[], str] = read_mountinfo,
    wall: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Evidence]:
    """Everything that is known of ``path`` (relative to the watch's directory), in the order in which it matters.

    It asks for a lease: to be called in the main thread, unless that has seen to lease breaks. Raises StoreError from
    ``known``.
    """
    if not leases_are_safe():
        ignore_lease_breaks()
    try:
        ground = survey(watch.path, mountinfo())
    except SourceUnavailable as error:
        return [Evidence(False, str(error))]
    root = Root(ground.path, hard_links=watch.hard_links)
    evidence = [_how_it_is_noticed(watch, ground), _rules(watch, path)]
    standing = _standing(root, path)
    evidence += standing
    if any(item.ok is False for item in standing):
        return evidence
    if watch.marker:
        evidence.append(_marker(root, path, watch.marker))
    policy = policy_for(watch, ground)
    try:
        first = _look(root, path, policy, wall)
        sleep(_BETWEEN_LOOKS)
        second = _look(root, path, policy, wall)
    except SourceRefused as error:
        return [*evidence, Evidence(False, str(error))]
    except OSError as error:
        return [*evidence, Evidence(False, f"it cannot be read ({error.strerror})")]
    evidence += _settling(policy, ground, first, second)
    if second.identity is not None:
        evidence.append(_already(watch, path, second.identity, known))
    return evidence


def _how_it_is_noticed(watch: Watch, ground: Ground) -> Evidence:
    told = watch.mode == "inotify" or (watch.mode == "auto" and ground.inotify)
    how = "is told by inotify" if told else f"is scanned every {watch.poll_interval:g} s"
    return Evidence(True, f"the watch {watch.name} on {watch.path} ({ground.filesystem}) {how}")


def _rules(watch: Watch, path: bytes) -> Evidence:
    reason = Rules(watch.include, watch.exclude, watch.ignored).reason(path)
    return Evidence(not reason, reason or "no rule of the watch leaves it out")


def _standing(root: Root, path: bytes) -> list[Evidence]:
    """Whether there is a plain file, reached without a link."""
    parts = path.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        return [Evidence(False, f"{shown(path)} is not a path below the watch")]
    for end in range(1, len(parts) + 1):
        part = b"/".join(parts[:end])
        try:
            mode = os.lstat(os.path.join(os.fsencode(root.path), part)).st_mode
        except FileNotFoundError:
            return [Evidence(False, f"{root.shown(part)} does not exist")]
        except OSError as error:
            return [Evidence(False, f"{root.shown(part)} cannot be reached ({error.strerror})")]
        if stat.S_ISLNK(mode):
            return [Evidence(False, f"{root.shown(part)} is a symbolic link; links are not followed")]
    if stat.S_ISDIR(mode):
        return [Evidence(False, "it is a directory; the files in it are taken one by one")]
    if not stat.S_ISREG(mode):
        return [Evidence(False, "it is neither a file nor a directory; only regular files are taken")]
    return [Evidence(True, "it is a regular file")]


def _marker(root: Root, path: bytes, marker: str) -> Evidence:
    if has_marker(root, os.path.dirname(path), os.fsencode(marker)):
        return Evidence(True, f"its marker {marker} is there")
    return Evidence(False, f"the marker {marker} is missing, in its directory and in those above")


def _look(root: Root, path: bytes, policy: Policy, wall: Callable[[], float]) -> Observation:
    with Looks(root, leases=policy.leases, wall_ns=int(wall() * 1e9)) as looks:
        return looks.look(path)


def _settling(policy: Policy, ground: Ground, first: Observation, second: Observation) -> list[Evidence]:
    if second.identity is None:
        return [Evidence(False, "it vanished this moment")]
    writer = {
        Writer.OPEN: Evidence(False, "a program has it open for writing"),
        Writer.NONE: Evidence(True, "no program has it open for writing"),
        Writer.UNKNOWN: Evidence(
            None,
            "whether a program is writing it cannot be known on this filesystem"
            if not ground.inotify or ground.network
            else "whether a program is writing it is told only to its owner, or with CAP_LEASE",
        ),
    }[second.writer]
    quiet = policy.quiet(second.identity.size)
    if first.identity != second.identity:
        return [writer, Evidence(False, f"it is changing now; it must stay as it is for {quiet:g} s")]
    age = second.age if second.age is not None else 0.0
    if age < quiet:
        return [writer, Evidence(False, f"it changed {max(age, 0.0):.1f} s ago; it must stay as it is for {quiet:g} s")]
    return [writer, Evidence(True, f"it has not changed for {age:.0f} s ({quiet:g} s are needed)")]


def _already(watch: Watch, path: bytes, identity: Identity, known: Known) -> Evidence:
    if known(watch.name, [(path, identity)])[0]:
        return Evidence(True, "this version of it is in the queue or delivered already: quaymaster prove PATH")
    return Evidence(None, "this version of it is not in the queue yet")
