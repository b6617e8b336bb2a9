"""What this machine gives the service: memory and processors, where the defaults of ``[limits]`` come from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    memory: int
    """Bytes that this process may use: the host's, or less if a cgroup says so."""
    cpus: int

    @staticmethod
    def here(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> Machine:
        host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Machine(min([host, *_cgroup_limits(proc, cgroups)]), len(os.sched_getaffinity(0)))

    @property
    def compress_threads(self) -> int:
        """PRODUCT P2."""
        return max(1, min(4, self.cpus // 2))


def _cgroup_limits(proc: str, cgroups: str) -> list[int]:
    """Every memory limit from this process's cgroup up to the root, version 2 and 1 (cgroups(7)).

    Inside a container the path in /proc/self/cgroup may lie outside what is mounted: the mounted root counts then.
    """
    limits: list[int] = []
    for line in _text(os.path.join(proc, "self/cgroup")).splitlines():
        _, _, controllers_and_path = line.partition(":")
        controllers, _, path = controllers_and_path.partition(":")
        if controllers == "":
            roots, names = [cgroups, os.path.join(cgroups, "unified")], ["memory.max", "memory.high"]
        elif "memory" in controllers.split(","):
            roots, names = [os.path.join(cgroups, "memory")], ["memory.limit_in_bytes"]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for root in roots:
            for depth in range(len(parts), -1, -1):
                texts = (_text(os.path.join(root, *parts[:depth], name)) for name in names)
                limits += [int(text) for text in texts if re.fullmatch("[0-9]+\n?", text)]
    return limits


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
