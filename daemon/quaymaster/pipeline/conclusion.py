"""What comes after a delivery: the job is finished, or waits until its source may go, or the source goes (P10)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from quaymaster.errors import SourceChanged, TransferError
from quaymaster.model import Compression, Job, Stage
from quaymaster.pipeline.adopt import Shelf, left_by_another
from quaymaster.pipeline.dispose import dispose, older
from quaymaster.pipeline.fetch import STAGED
from quaymaster.pipeline.lane import Lane
from quaymaster.pipeline.retry import LONGEST_WAIT
from quaymaster.store import Delivery, Store

_UNIT_PAUSE = 86400.0
"""Seconds between two looks whether a delivered file's unit is published; the publication wakes it."""


def due(store: Store, job: Job, lane: Lane, now: float) -> Sequence[Delivery]:
    """The deliveries of a job whose source is to go now; else none, and the job is finished or waits."""
    deliveries = store.deliveries_of(job)
    if lane.disposal.after == "keep" or len(deliveries) < len(lane.route.destinations):
        store.finish(job, "kept" if deliveries else "")
        return []
    at = max(delivery.proof.delivered_at for delivery in deliveries) + lane.grace
    if now < at:
        store.postpone(job, at)
        return []
    return [] if _is_awaited(store, job, lane, now) else deliveries


def _is_awaited(store: Store, job: Job, lane: Lane, now: float) -> bool:
    """Whether its source stays until the unit that it is in is published, or a hook has confirmed."""
    watch = lane.route.watch
    unit = watch.unit_of(job.version.path)
    if watch.after_unit and unit is not None and store.units.await_published(job, unit, now + _UNIT_PAUSE):
        return True
    # It is woken as soon as a hook has confirmed; now and then it looks by itself.
    return bool(store.await_hooks(job, watch.after_hooks, now + LONGEST_WAIT, unit))


def done_by_another(store: Store, job: Job, lane: Lane, progress: Callable[[Stage, int, int], None]) -> bool:
    """Whether the source is gone because another host on the same share has delivered and removed it: then the copies
    are there, whole, and what proves that is recorded here too."""
    if lane.disposal.after == "keep":
        return False
    route, version, proofs = lane.route, job.version, []
    known = str(job.checkpoint.get(STAGED, ""))
    for name, destination in route.destinations.items():
        shelf = Shelf(name, destination, destination.stat)
        forms = [form for form in Compression if form is not Compression.NONE or name not in route.beside]
        try:
            proof = left_by_another(
                version, shelf, route.watch.key, route.host, forms, known, lambda n: progress(Stage.TRANSFER, 0, n)
            )
        except TransferError:
            return False  # what cannot be looked at proves nothing
        if proof is None:
            return False
        proofs.append(proof)
    store.adopt_all([(version, proofs, False)])
    return True


def carry_out(store: Store, job: Job, lane: Lane, deliveries: Sequence[Delivery], cancelled: Callable[[], bool]) -> str:
    """Do with the source what its watch says, and finish the job; what was done. Raises TransferError, Cancelled."""
    root = lane.route.root
    if any(delivery.replaced for delivery in deliveries) and older(job, root):
        raise SourceChanged("A newer version of the file was delivered in its place", "The newer version stays")

    def disposing(**more: str) -> None:
        store.checkpoint(job, Stage.DISPOSE, {**job.checkpoint, "disposing": True, **more})

    outcome = dispose(
        job,
        root,
        lane.disposal,
        [(delivery.proof, lane.route.destinations[delivery.proof.destination]) for delivery in deliveries],
        cancelled,
        disposing,
        lane.route.standing.confirm,
        lambda token: disposing(moving=token),
    )
    store.finish(job, outcome)
    return outcome
