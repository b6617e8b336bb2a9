"""P12: a bandwidth is kept to, shared fairly between files, and changed at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import pytest

from quaymaster.config.bandwidth import Bandwidth, Window
from quaymaster.model import Digests, Stored
from quaymaster.pipeline.bandwidth import Meter, Traffic
from quaymaster.pipeline.budget import Cancelled
from system.service import until

MIB = 1 << 20
SECONDS = 4.0
SAVED = 0.5


def never() -> bool:
    return False


class Sink:
    """An upload that takes everything at once."""

    resume_token = ""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        self.size += len(data)

    def publish(self, digests: Digests, metadata: Mapping[str, str]) -> Stored:
        return Stored("key", self.size)

    def suspend(self) -> None: ...

    def abort(self) -> None: ...


def send(traffic: Traffic, pieces: list[int], seconds: float, name: str = "archive") -> list[int]:
    """Bytes that went out in so many seconds of each of several files, which write pieces of these sizes."""
    end = time.monotonic() + seconds
    sinks = [Sink() for _ in pieces]

    def file(sink: Sink, piece: int) -> None:
        upload = traffic.limited(sink, name, lambda: time.monotonic() > end)
        data = bytes(piece)
        try:
            while time.monotonic() < end:
                upload.write(data)
        except Cancelled:
            pass

    threads = [threading.Thread(target=file, args=each) for each in zip(sinks, pieces, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [sink.size for sink in sinks]


def test_the_rate_is_kept_and_shared_between_files_whatever_they_write() -> None:
    """To 5 % over 30 s: what may be saved up is half a second's worth, and nothing is lost while somebody waits."""
    rate = 20 * MIB
    traffic = Traffic(Meter(Bandwidth(rate)))
    sizes = send(traffic, [MIB, MIB, 512 << 10, 256 << 10], SECONDS)
    print(f"{sum(sizes) / SECONDS / MIB:.2f} of {rate / MIB:.0f} MiB/s; of each file {[s // MIB for s in sizes]} MiB")
    assert 0.95 * rate * SECONDS - 4 * MIB <= sum(sizes) <= rate * (SECONDS + SAVED) + 4 * MIB
    assert min(sizes) >= 0.85 * (max(sizes) - rate * SAVED)  # which the first to begin may have for itself


def test_a_slow_rate_does_not_come_in_lumps() -> None:
    traffic = Traffic(Meter(Bandwidth(MIB)))
    sizes = send(traffic, [MIB] * 3, 1.0)  # none of them gets its whole piece through at the others' cost
    assert sum(sizes) <= 2 * MIB


def test_each_destination_has_its_own_within_that_of_all() -> None:
    traffic = Traffic(Meter(Bandwidth(16 * MIB)))
    traffic.set(Bandwidth(16 * MIB), {"slow": Bandwidth(2 * MIB), "other": Bandwidth()})
    found: dict[str, list[int]] = {}
    threads = [
        threading.Thread(target=lambda name=name: found.update({name: send(traffic, [256 << 10], 3.0, name)}))
        for name in ("slow", "other")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    slow, other = found["slow"][0] / 3, found["other"][0] / 3
    assert slow <= 2.6 * MIB
    assert other >= 8 * MIB


def test_a_change_counts_at_once_for_those_who_wait() -> None:
    meter = Meter(Bandwidth(1 << 10))
    sent = threading.Event()

    def file() -> None:
        meter.take(64 * MIB, never)
        sent.set()

    thread = threading.Thread(target=file, daemon=True)
    thread.start()
    until(lambda: meter.waiting == 1)
    meter.set(Bandwidth())
    assert sent.wait(5)
    assert meter.waiting == 0


def test_the_window_of_the_hour_counts() -> None:
    hour = 7 * 60 + 59
    limit = Bandwidth(None, (Window(8 * 60, 18 * 60, 4 * MIB),))
    meter = Meter(limit, minute=lambda _: hour)
    meter.take(1 << 30, never)  # no limit yet
    assert meter.now()[1:] == (None, 8 * 60)
    hour = 8 * 60
    until(lambda: _waits(meter))
    assert meter.now()[1:] == (4 * MIB, 18 * 60)


def _waits(meter: Meter) -> bool:
    try:
        meter.take(16 * MIB, lambda: True)
    except Cancelled:
        return True
    return False


def test_waiting_ends_when_the_service_stops_and_holds_nobody_up() -> None:
    meter = Meter(Bandwidth(1 << 10))
    with pytest.raises(Cancelled):
        meter.take(MIB, lambda: True)
    assert meter.waiting == 0


def test_what_is_told_is_what_goes_out() -> None:
    traffic = Traffic(Meter(Bandwidth(8 * MIB)))
    send(traffic, [MIB], 3.0)
    rate, limit, until_when = traffic.total.now()
    assert (limit, until_when) == (8 * MIB, None)
    assert 0.7 * limit <= rate <= 1.3 * limit


def test_everything_but_writing_goes_straight_through() -> None:
    sink = Sink()
    said: list[str] = []
    make: Callable[[str], Callable[[], None]] = lambda name: lambda: said.append(name)  # noqa: E731
    sink.suspend, sink.abort, sink.resume_token = make("suspend"), make("abort"), "token"  # type: ignore[method-assign]
    upload = Traffic(Meter(Bandwidth())).limited(sink, "archive", never)
    upload.write(b"12345")
    upload.suspend()
    upload.abort()
    assert (said, upload.resume_token) == (["suspend", "abort"], "token")
    assert upload.publish(Digests(5, "00"), {}).size == 5
