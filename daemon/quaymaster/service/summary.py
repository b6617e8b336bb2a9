"""The nouns of one pass (``quaymaster sync``): what is wanted, how far it is, what it came to (PRODUCT I1, I3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quaymaster.intake.survey import Narrow


@dataclass(frozen=True, slots=True)
class Failure:
    path: str
    """For people, absolute."""
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one call asks for, beside the configuration."""

    watches: Mapping[str, Narrow]
    """Name -> what of it."""
    dry_run: bool = False
    force: bool = False
    patience: int = 2
    """Tries of a file whose error is temporary, after which it counts as failed for now."""
    strays: Sequence[Failure] = ()
    """What was asked for and is in none of the watches."""


@dataclass(frozen=True, slots=True)
class Step:
    """A file of a dry run: ``send``, ``adopt`` or ``conflict``."""

    what: str
    path: str
    size: int


@dataclass(slots=True)
class Summary:
    """What a pass came to. Numbers are of files unless they say otherwise."""

    files: int = 0
    """That the rules take."""
    sent: int = 0
    adopted: int = 0
    """Found at every destination already, and recorded."""
    skipped: int = 0
    """Unchanged since they were delivered."""
    writing: int = 0
    """Still being written, or without their marker."""
    left: int = 0
    """Beside their destination, and not compressed because that gains nothing: they stay as they are."""
    failed: int = 0
    bytes_in: int = 0
    """Of the sources that were sent."""
    bytes_out: int = 0
    """That they took at the destinations."""
    ratio: float | None = None
    """Bytes in for each byte out, each destination counted."""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds: of scan, compare and send by the clock; of each stage of the files in flight, added up."""
    failures: list[Failure] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    """Of a dry run."""
    dry_run: bool = False

    @property
    def partial(self) -> bool:
        return bool(self.failed or self.writing)

    def fail(self, path: str, code: str, text: str) -> None:
        self.failed += 1
        self.failures.append(Failure(path, code, text))


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a pass is."""

    phase: str
    """``scan``, ``compare`` or ``send``."""
    done: int = 0
    total: int = 0
    """Files; 0: not known yet."""
    bytes_done: int = 0
    bytes_total: int = 0
    running: tuple[tuple[str, int, int], ...] = ()
    """(path, bytes read, size) of files in flight."""
