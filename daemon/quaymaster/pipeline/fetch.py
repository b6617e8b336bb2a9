"""What asks a network filesystem, on threads of its own watch (PRODUCT P1, P13).

    watch's fetchers:   open ──► copy to staging ──┐                        ┌──► check and remove the source
    shared workers:                                └──► transfer ──► record ┘

A server that is down lets each of these calls hang for ever. So none is made on the threads that all watches share:
those see the staged copy and the destinations only. A file travels forward: from the fetchers to the workers, and only
if something is to become of its source, once more to the fetchers.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

from quaymaster.errors import OutOfSpace, TransferError
from quaymaster.model import Job
from quaymaster.pipeline.budget import Staging
from quaymaster.pipeline.reader import Reader, opened, unchanged
from quaymaster.source import Root

STAGED = "staged_sha256"
"""The key of a job's checkpoint that holds the digest of its complete copy."""


@dataclass(slots=True)
class Copy:
    """A source's complete copy in staging. Whoever has it calls :meth:`release`."""

    path: str
    size: int
    mode: int
    sha256: str
    """Computed while it was fetched: whoever reads the copy compares, which proves it without one more reading."""
    room: ExitStack
    """Its share of the staging space."""

    @contextmanager
    def opened(self) -> Iterator[Reader]:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise _staging_error(error, self.path) from None
        try:
            yield Reader(descriptor, self.size, self.mode, self.path, known_sha256=self.sha256)
        finally:
            _close(descriptor)

    def release(self, *, keep: bool) -> None:
        """Remove it, or ``keep`` it for the next run of its job."""
        if not keep:
            with suppress(OSError):
                os.unlink(self.path)
        self.room.close()


def fetch(
    job: Job,
    root: Root,
    staging: Staging,
    cancelled: Callable[[], bool],
    progress: Callable[[int], None],
    done: Callable[[str], None],
    at_once: int = 1,
) -> Copy:
    """Copy the job's version to staging, unless a complete copy is there from before a restart. ``done`` is told the
    digest of a new copy once it is on the disk and the source has not changed meanwhile. ``at_once``: pieces that are
    asked for at a time, where each takes long to come."""
    version = job.version
    path = os.path.join(staging.directory, f"{job.id}.source")
    with ExitStack() as room, opened(root, version.path, version.identity) as source:
        wrote = room.enter_context(staging.reserve(source.size))
        sha256 = str(job.checkpoint.get(STAGED, ""))
        if not (sha256 and _size_of(path) == source.size):
            sha256 = _copy(source.pieces(cancelled, progress, at_once), path, wrote)
            try:
                unchanged(root, version.path, source, version.identity)
                done(sha256)
            except BaseException:
                with suppress(OSError):
                    os.unlink(path)
                raise
        return Copy(path, source.size, source.mode, sha256, room.pop_all())


def _size_of(path: str) -> int:
    try:
        return os.stat(path, follow_symlinks=False).st_size
    except OSError:
        return -1


def _copy(
    read: Callable[[], bytes],
    path: str,
    wrote: Callable[[int], None],
) -> str:
    total = hashlib.sha256()
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _staging_error(error, path) from None
    try:
        while data := read():
            total.update(data)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
            except OSError as error:
                raise _staging_error(error, path) from None
            wrote(len(data))
        try:
            os.fsync(descriptor)
            # What is read next is to come from the disk, so that the copy that is proven is the one on the disk.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _staging_error(error, path) from None
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        _close(descriptor)
    return total.hexdigest()


def _close(descriptor: int) -> None:
    """Some filesystems give errors even then: what was read was read, and what was written is on the disk already."""
    with suppress(OSError):
        os.close(descriptor)


def _staging_error(error: OSError, path: str) -> TransferError:
    reason = os.strerror(error.errno or 0)
    return OutOfSpace(
        f"The staging directory {os.path.dirname(path)} cannot take the copy ({reason})",
        "Make room there, check its owner, or set service.staging_dir to another local disk",
    )


class Errand:
    """What one thread leaves for another: a job, and its staged copy if it has one. Taken once."""

    def __init__(self, job: Job, copy: Copy | None = None) -> None:
        self.job, self.copy = job, copy
        self.taken = threading.Event()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """False when somebody else has it."""
        with self._lock:
            mine = not self.taken.is_set()
            self.taken.set()
        return mine


@dataclass(slots=True)
class Fetchers:
    """The threads of one watch. ``claim`` takes a job, or says that there is none now; ``run`` carries it as far as
    these threads go; ``pause`` says how long to wait before looking again."""

    watch: str
    count: int
    claim: Callable[[], Job | None]
    run: Callable[[Job], None]
    pause: Callable[[], float]
    _given: deque[Job] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _wake: threading.Event = field(default_factory=threading.Event)
    _ended: bool = False
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for number in range(self.count):
            thread = threading.Thread(target=self._work, name=f"fetch-{self.watch}-{number + 1}", daemon=True)
            self.threads.append(thread)
            thread.start()

    def wake(self) -> None:
        """There may be something to claim."""
        self._wake.set()

    def give(self, job: Job) -> bool:
        """A delivered job whose source is to be dealt with. False: these threads have ended."""
        with self._lock:
            if not self._ended:
                self._given.append(job)
        self._wake.set()
        return not self._ended

    def end(self) -> list[Job]:
        """Begin nothing more. Returns what was given and not begun."""
        with self._lock:
            self._ended = True
            left = list(self._given)
            self._given.clear()
        self._wake.set()
        return left

    def _work(self) -> None:
        while not self._ended:
            self._wake.clear()
            job = self._next()
            if job is not None:
                self.run(job)
            elif not self._ended:
                self._wake.wait(self.pause())

    def _next(self) -> Job | None:
        with self._lock:
            if self._given:
                return self._given.popleft()
        return None if self._ended else self.claim()
