"""What became of one try to tell something."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """An empty ``error`` means that it was taken."""

    error: str = ""
    gone: bool = False
    """The receiver wants none of it, ever: it is parked."""
    cut: bool = False
    """We broke it off ourselves: neither taken nor refused."""
    retry_after: float = 0.0
    """Seconds for which the receiver asks to be left alone."""
