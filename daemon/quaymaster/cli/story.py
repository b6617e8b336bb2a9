"""All about one job for ``quaymaster top``: what ``jobs N``, ``why`` and ``prove`` say of it, one below the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quaymaster.cli import prove, records, why
from quaymaster.errors import QuaymasterError
from quaymaster.service.lock import holder
from quaymaster.service.view.file import look, trail
from quaymaster.service.view.locate import Place

if TYPE_CHECKING:
    from quaymaster.config import Config
    from quaymaster.store import Store


def story(config: Config, store: Store, number: int) -> list[str]:
    """Lines, of any length. Raises QuaymasterError when there is no such job, and StoreError."""
    from quaymaster.store import Filter

    found = store.jobs(Filter(ids=(number,)))
    if not found:
        raise QuaymasterError(f"There is no job {number} any more")
    (job,) = found
    lines = [f"job {number}", *records.job_lines(job)]
    watch = config.watches.get(job.version.watch)
    if watch is not None:
        place = Place(watch, job.version.path)
        lines += ["", *why.lines(look(place, store, holder(config.service.state_dir)))]
        told = trail(place, store, chain=False)
        lines += ["", *prove.lines(told)] if told.deliveries else []
        lines += ["", f"BUT: {told.fault}"] if told.fault else []
    if history := store.history(job):
        lines += ["", "history of this job (custody log: number, SHA-256, entry)", *records.entry_lines(history)]
    return lines
