"""P12, P13: the ceilings of the configuration hold for a service at work, and a reload changes them at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

from system.conftest import Home
from system.service import Service, until

MIB = 1 << 20


def reload(service: Service, config: str) -> None:
    before = len(service.lines("read again"))
    service.config_file.write_text(config)
    os.kill(service.pid, signal.SIGHUP)
    until(lambda: len(service.lines("read again")) > before, what="reloaded")


def land_together(home: Home, sizes: Sequence[int]) -> None:
    """Files that all appear in the same moment."""
    for number, size in enumerate(sizes):
        (home.folder / f"{number}").write_bytes(os.urandom(MIB) * (size // MIB))
    for number in range(len(sizes)):
        (home.folder / f"{number}").rename(home.landing / f"{number}")


def sent(service: Service) -> dict[str, int]:
    """Bytes sent so far, by job."""
    return {number: job["stored_bytes"] for number, job in service.progress().items()}


def test_bandwidth_is_kept_shared_told_and_changed_by_a_reload(home: Home, serve: Callable[..., Service]) -> None:
    rate = 8 * MIB
    service = serve(home.config(limits='bandwidth = { "00:00-24:00" = "8MiB/s" }'))
    land_together(home, [32 * MIB] * 4)
    started = until(lambda: (p := sent(service)) and len(p) == 4 and p, what="four in flight")
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 6)
    found, seconds = sent(service), time.monotonic() - began
    each = [found[number] - started[number] for number in started]
    print(f"{sum(each) / seconds / MIB:.2f} of 8 MiB/s; of each {[f'{size / MIB:.1f}' for size in each]} MiB")
    # Figures are as of the last report, about a second ago.
    assert 0.95 * rate * (seconds - 2) <= sum(each) <= 1.05 * rate * (seconds + 2)
    assert max(each) - min(each) <= 3 * MIB
    said = service.command("status").stdout
    assert " of 8.00 MiB/s" in said, said
    reload(service, home.config())
    service.until_done(4, timeout=20)
    assert len(home.arrived()) == 4


def test_without_parallel_one_file_goes_at_a_time(home: Home, serve: Callable[..., Service]) -> None:
    service = serve(home.config(limits='parallel = false\nbandwidth = "4MiB/s"'))
    land_together(home, [3 * MIB] * 6)
    seen: set[int] = set()

    def done() -> bool:
        seen.add(len(service.progress()))
        return len(home.arrived()) == 6 and not home.leftovers()

    until(done, what="all arrived")
    assert seen <= {0, 1}
    assert 1 in seen
