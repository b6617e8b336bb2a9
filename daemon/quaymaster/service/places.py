"""Where the copies are, for those who look at them: the destinations of a configuration, made when first asked for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from quaymaster.destinations.base import Destination
from quaymaster.model import Emit
from quaymaster.service import anchor, build
from quaymaster.service.anchor import Anchor

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Store


class Places:
    """Thread-safe; :meth:`close` it. With a ``store``, a directory must be on the filesystem that it was on before: a
    share that is not mounted does not look like one whose files were removed."""

    def __init__(self, config: Config, store: Store | None, emit: Emit) -> None:
        self._config, self._store, self._emit = config, store, emit
        self._made: dict[tuple[str, str], Destination] = {}
        self._lock = threading.Lock()

    def known(self, name: str) -> bool:
        return name in self._config.destinations

    def shared(self, name: str) -> Destination | None:
        """The place that a name stands for; None when it is the directory of each watch, or not known."""
        if not self.known(name) or self._config.destinations[name].type == "beside":
            return None
        with self._lock:
            if (name, "") not in self._made:
                made = build.destination(
                    self._config,
                    name,
                    self._emit,
                    anchored=lambda path: self._anchor(anchor.of_destination(name), name, path),
                )
                assert made is not None
                self._made[name, ""] = made
            return self._made[name, ""]

    def of(self, name: str, watch: str) -> Destination | None:
        """The place of a watch's copies; None when the configuration does not name it any more."""
        if (shared := self.shared(name)) is not None or not self.known(name):
            return shared
        configured = self._config.watches.get(watch)
        if configured is None:
            return None
        with self._lock:
            if (name, watch) not in self._made:
                self._made[name, watch] = build.next_to_sources(name, configured, self._emit, self.ground_of(watch))
            return self._made[name, watch]

    def ground_of(self, watch: str) -> Anchor:
        """The anchor of a watched directory: Unreachable when it is not where it was."""
        return self._anchor(anchor.of_watch(watch), watch, self._config.watches[watch].path)

    def close(self) -> None:
        for destination in self._made.values():
            destination.close()

    def _anchor(self, kept_as: str, name: str, path: str) -> Anchor:
        if self._store is None:
            return anchor.anywhere
        return anchor.Remembered(path, anchor.memory(self._store, kept_as, name, path))
