"""Where a watch is, for as long as one pass over it takes: what the intake of a running service knows (PRODUCT W6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quaymaster.errors import SourceUnavailable
from quaymaster.intake.footing import Footing, Memory
from quaymaster.intake.mounts import Ground
from quaymaster.intake.observe import policy_for
from quaymaster.intake.settle import Policy
from quaymaster.source import Pulse

if TYPE_CHECKING:
    from quaymaster.config import Watch


class Station:
    """Thread-safe. Raises SourceUnavailable when the watch is not where it was before."""

    def __init__(self, watch: Watch, memory: Memory) -> None:
        self._watch = watch
        self._footing = Footing(watch, memory)
        self.pulse = Pulse()
        self._ground: Ground | None = self._footing.stand()
        self.away = ""
        """Why it is away, once it is."""

    def here(self) -> bool:
        return self._ground is not None and self.pulse.silence() <= self._watch.hang_after

    def network(self) -> bool:
        return self._ground is not None and self._ground.network

    def ground(self) -> Ground | None:
        return self._ground

    def policy(self) -> Policy:
        """What tells that a file is whole there. Raises SourceUnavailable while it is away."""
        if self._ground is None:
            raise SourceUnavailable(self.away)
        return policy_for(self._watch, self._ground)

    def confirm(self) -> None:
        try:
            with self.pulse:
                if self._footing.look() != self._ground:
                    raise SourceUnavailable(f"{self._watch.path} is not the same directory as before")
        except SourceUnavailable as error:
            self._ground, self.away = None, str(error)
            raise

    def scanned(self, entries: int) -> None:
        """A walk came across so many entries of any kind."""
        self._footing.scanned(entries)
