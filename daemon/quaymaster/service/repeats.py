"""What goes wrong for a thousand files is told a few times, not a thousand times a minute.

Events that report trouble (notice and worse) with a watch, a destination or an error code, and are alike in these and
in kind, make a series. Of a new series the first :data:`AT_ONCE` are told as they come; then one a period, and at the
end of each period how many more there were. Periods grow from one minute to a quarter of an hour, and a period without
any ends the series. Nothing is lost: every failure of every job stands in the custody log (``quaymaster jobs N``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from quaymaster.model import Emit, Event, Level, shown

AT_ONCE = 5
FIRST_PERIOD = 60.0
LONGEST_PERIOD = 15 * 60.0

_Alike = tuple[str, str, str, str]


@dataclass(slots=True)
class _Series:
    until: float
    period: float = FIRST_PERIOD
    allowance: int = AT_ONCE
    came: int = 0
    held: int = 0
    last: Event | None = None
    """The latest that was held back."""


class Repeats:
    """Stands before ``tell``. Thread-safe; :meth:`tick` is to be called about once a second."""

    def __init__(self, tell: Emit, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._series: dict[_Alike, _Series] = {}

    def __call__(self, event: Event) -> None:
        alike = (event.kind, event.watch, event.destination, event.code)
        if event.level > Level.NOTICE or not any(alike[1:]) or self._is_allowed(alike, event):
            self._tell(event)

    def tick(self, *, last: bool = False) -> None:
        """Tell what is due; with ``last`` everything that was held back, because the service stops."""
        now = self._monotonic()
        with self._lock:
            due = [(alike, series) for alike, series in self._series.items() if last or now >= series.until]
            told = [_summary(series) for _, series in due if series.held]
            for alike, series in due:
                if not series.came:
                    del self._series[alike]
                    continue
                period = min(2 * series.period, LONGEST_PERIOD)
                self._series[alike] = _Series(now + period, period, allowance=1)
        for event in told:
            self._tell(event)

    def _is_allowed(self, alike: _Alike, event: Event) -> bool:
        with self._lock:
            series = self._series.setdefault(alike, _Series(self._monotonic() + FIRST_PERIOD))
            series.came += 1
            if series.came <= series.allowance:
                return True
            series.held += 1
            series.last = event
            return False


def _summary(series: _Series) -> Event:
    event = series.last
    assert event is not None
    if series.held == 1:
        return event
    about = f" for {shown(event.path)}" if event.path else ""
    listed = f". List them: quaymaster jobs --error {event.code}" if event.job and event.code else ""
    times = f"{series.held:,} more times within {series.period / 60:.0f} min"
    message = f"{times}, the last{about}: {event.message}{listed}"
    return replace(event, message=message, path=b"", job=0, size=-1)
