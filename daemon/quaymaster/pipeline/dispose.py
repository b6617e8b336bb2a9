"""What becomes of a source once it is proven everywhere: keep, delete, move (PRODUCT P10).

A source is touched only when all of this holds, checked in this order just before:

1. every destination has a recorded proof (the caller made sure);
2. each copy is still there, as it was proven;
3. the source, set aside under a hidden name so that a writer who comes back makes a new file, is still the version
   that was read, and (before a delete) its bytes still have the recorded SHA-256.

If 3 fails the file gets its name back. The set-aside name is derived from the job, so a restart finds it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from quaymaster.destinations.base import Destination, Put
from quaymaster.errors import Conflict, IntegrityError, SourceChanged, SourceUnavailable, TransferError
from quaymaster.keys import escape
from quaymaster.model import Job, Proof
from quaymaster.pipeline.reader import Reader, close, status_of
from quaymaster.source import Root, identity_of, source_error


@dataclass(frozen=True, slots=True)
class Disposal:
    """The rule of one watch. ``mover`` is the directory that ``move`` goes to."""

    after: str
    mover: Destination | None = None
    moved_to: str = ""


def dispose(
    job: Job,
    root: Root,
    rule: Disposal,
    proofs: Sequence[tuple[Proof, Destination]],
    cancelled: Callable[[], bool],
    begin: Callable[[], None],
    confirm: Callable[[], None] = lambda: None,
    note: Callable[[str], None] = lambda token: None,
) -> str:
    """Carry out the rule; returns "kept", "deleted", "moved:PATH", or "gone" when somebody else removed the source
    meanwhile. Raises TransferError and leaves the source in its place when any condition does not hold. ``begin`` is
    called before the first change and leaves ``{"disposing": true}`` in the job's checkpoint, durably. ``confirm``
    raises SourceUnavailable when the whole watch is away: then nothing that is missing was removed. ``note`` leaves the
    token of the copy that a move is making as "moving" in the checkpoint, so that a later run removes it."""
    if rule.after == "keep":
        return "kept"
    if rule.mover is not None and job.checkpoint.get("moving"):
        rule.mover.abandon(str(job.checkpoint["moving"]))
    for proof, destination in proofs:
        _still_there(proof, destination)
    folder, name = os.path.split(job.version.path)
    with _folder(root, folder) as directory:
        aside = _aside(job)
        if not job.checkpoint.get("disposing"):
            begin()
        with root.pulse:
            there = _set_aside(directory, name, aside, root.shown(job.version.path))
        if not there:
            confirm()
            # A crash between the removal and its record, or somebody else's removal.
            return _outcome(rule, job) if job.checkpoint.get("disposing") else "gone"
        try:
            source = _checked(directory, aside, job, root, proofs, cancelled)
            if rule.mover is not None:
                _move(source, rule.mover, job, proofs[0][0], cancelled, note)
            close(root, source.descriptor)
        except BaseException:
            with root.pulse:
                _put_back(directory, aside, name, _visible(name, job), root.shown(job.version.path))
            raise
        with root.pulse, _source_errors(root.shown(job.version.path)):
            os.unlink(aside, dir_fd=directory)
            os.fsync(directory)
    return _outcome(rule, job)


def older(job: Job, root: Root) -> bool:
    """The copy was replaced by that of a newer version of the file: whatever of this one was set aside meanwhile gets
    a visible name of its own, under which it is taken as another file. False when the file is still this version."""
    folder, name = os.path.split(job.version.path)
    aside, shown = _aside(job), root.shown(job.version.path)
    with _folder(root, folder) as directory, root.pulse, _source_errors(shown):
        if _exists(directory, aside):
            os.rename(aside, _visible(name, job), src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
            return True
        if not _exists(directory, name):
            return True
        return identity_of(os.stat(name, dir_fd=directory, follow_symlinks=False)) != job.version.identity


def _aside(job: Job) -> bytes:
    # Another host on the same share may have a job of the same number for a file beside it.
    return b".qm-%d-%x.aside" % (job.id, job.version.identity.inode)


def _visible(name: bytes, job: Job) -> bytes:
    return name[:240] + b".older-%d" % job.id


def _outcome(rule: Disposal, job: Job) -> str:
    if rule.after == "delete":
        return "deleted"
    return f"moved:{os.path.join(rule.moved_to, os.fsdecode(job.version.path))}"


def _still_there(proof: Proof, destination: Destination) -> None:
    now = destination.stat(proof.stored.key)
    if now is None:
        raise IntegrityError(
            f"The copy {proof.stored.key} at {proof.destination} is gone",
            "The source stays; find out who removed the copy",
        )
    then = proof.stored
    if (now.size, now.etag) != (then.size, then.etag) or (
        now.checksum and then.checksum and now.checksum != then.checksum
    ):
        raise IntegrityError(
            f"The copy {then.key} at {proof.destination} is no longer what was proven there",
            "The source stays; find out who changed the copy",
        )


@contextmanager
def _folder(root: Root, path: bytes) -> Iterator[int]:
    with root.pulse, _source_errors(root.shown(path)):
        descriptor = root.open_directory(path)
    try:
        yield descriptor
    finally:
        close(root, descriptor)


@contextmanager
def _source_errors(shown: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise source_error(error, shown) from None


def _set_aside(directory: int, name: bytes, aside: bytes, shown: str) -> bool:
    """Give the source its hidden name. False when neither name exists: it is gone already."""
    with _source_errors(shown):
        if _exists(directory, aside):  # a restart: it was set aside before
            if not (_exists(directory, name) and _same_file(directory, aside, name)):
                return True
            os.unlink(aside, dir_fd=directory)  # killed in the midst of putting it back: it had both names
        try:
            os.rename(name, aside, src_dir_fd=directory, dst_dir_fd=directory)
        except FileNotFoundError:
            return False
        os.fsync(directory)
    return True


def _checked(
    directory: int,
    aside: bytes,
    job: Job,
    root: Root,
    proofs: Sequence[tuple[Proof, Destination]],
    cancelled: Callable[[], bool],
) -> Reader:
    shown = root.shown(job.version.path)
    with root.pulse, _source_errors(shown):
        descriptor = os.open(aside, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = status_of(root, descriptor, shown)
        if identity_of(status) != job.version.identity:
            raise SourceChanged(
                f"{shown} was changed after it was delivered",
                "The newer version is taken",
            )
        source = Reader(descriptor, status.st_size, status.st_mode & 0o7777, shown, pulse=root.pulse)
        found = source.digest(cancelled)
        expected = proofs[0][0].source.sha256
        if found != expected:
            raise IntegrityError(
                f"{shown} now reads as SHA-256 {found}; {expected} was delivered", "The source stays where it is"
            )
        if identity_of(status_of(root, descriptor, shown)) != job.version.identity:
            raise SourceChanged(
                f"{shown} was changed after it was delivered",
                "The newer version is taken",
            )
    except BaseException:
        close(root, descriptor)
        raise
    return source


def _move(
    source: Reader,
    mover: Destination,
    job: Job,
    proof: Proof,
    cancelled: Callable[[], bool],
    note: Callable[[str], None],
) -> None:
    key = escape(job.version.path)
    put = Put(key=key, size_bound=source.size, mtime_ns=job.version.identity.mtime_ns, mode=source.mode, note=note)
    upload = mover.begin(put)
    try:
        read = source.pieces(cancelled)
        while data := read():
            upload.write(data)
        upload.publish(proof.source, {})
    finally:
        upload.abort()


def _put_back(directory: int, aside: bytes, name: bytes, visible: bytes, shown: str) -> None:
    """Undo the setting aside, without harming a file that has taken the name meanwhile: then the older one gets a
    visible name of its own. Nothing is lost, nothing hidden."""
    try:
        os.link(aside, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(aside, dir_fd=directory)
    except FileExistsError:
        if _same_file(directory, aside, name):  # a run before was killed between the two calls
            os.unlink(aside, dir_fd=directory)
        else:
            os.rename(aside, visible, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            if isinstance(source_error(error, shown), SourceUnavailable):
                raise source_error(error, shown) from None  # the next run finds what was set aside
            raise _stuck(error, shown, aside) from None
        back = visible if _exists(directory, name) else name  # no hard links here
        os.rename(aside, back, src_dir_fd=directory, dst_dir_fd=directory)
    # The job is about to end, and nobody would look for the hidden name after a power cut.
    os.fsync(directory)


def _stuck(error: OSError, shown: str, aside: bytes) -> TransferError:
    return Conflict(
        f"{shown} is set aside as {os.fsdecode(aside)} and cannot be given its name back ({error.strerror})",
        "Rename it by hand",
    )


def _same_file(directory: int, one: bytes, other: bytes) -> bool:
    first, second = (os.stat(name, dir_fd=directory, follow_symlinks=False) for name in (one, other))
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def _exists(directory: int, name: bytes) -> bool:
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=directory, follow_symlinks=False)
        return True
    return False
