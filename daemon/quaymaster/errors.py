"""The error tree. Every failure that reaches an operator is one of these.

    QuaymasterError
    ├── UsageError                the command line is wrong                                exit 2
    ├── ConfigError               the configuration is wrong (one entry per problem)       exit 2
    ├── StoreError                the state directory cannot be used                       exit 1
    │   ├── StoreBusy             another quaymaster holds it
    │   ├── StoreDamaged          the database is corrupt
    │   ├── StoreLost             it is gone, or older than it was
    │   ├── StoreFull             the disk under it is full
    │   ├── StoreUnwritable       read-only, or no permission
    │   └── StoreTooNew           written by a newer quaymaster
    └── TransferError             one file could not be delivered (now)
        ├── TemporaryError        retried for ever: network, server, space                 exit 1
        │   ├── Unreachable       nobody answers, or the answer is a server error
        │   ├── OutOfSpace        staging or destination is full
        │   └── SourceUnavailable the source cannot be read at this moment (EIO, ESTALE, outage)
        ├── IntegrityError        bytes differ from what they must be: retried 3 times     exit 3
        ├── PermanentError        parked at once: only an operator can help                exit 1
        │   ├── PermissionDenied
        │   ├── DestinationMissing  no such bucket or directory
        │   ├── Conflict          something that we did not put there is in the way
        │   ├── NotSupported      the destination cannot do what the promises need
        │   ├── NameRefused       the name cannot be a key or file name there
        │   └── SourceRefused     a link, a special file, outside the watch
        ├── SourceVanished        removed before it was delivered: looked for 3 times, then parked
        ├── InternalError         a defect of quaymaster: retried 3 times
        └── SourceChanged         a newer version exists: this job is superseded, never an error

Callers branch on these types and on their class attributes, never on message text.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Retry(Enum):
    """What the queue does with a job after this error (PRODUCT Q3)."""

    FOREVER = "forever"
    LIMITED = "limited"
    NEVER = "never"
    SUPERSEDE = "supersede"


class QuaymasterError(Exception):
    """Base of every error with a meaning to the operator.

    ``message`` says what happened and where; ``advice`` says what to do next (may be empty).
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message}. {self.advice}" if self.advice else self.message


class UsageError(QuaymasterError):
    exit_code = 2
    code = "usage"


class ConfigError(QuaymasterError):
    """All problems of a configuration at once; ``problems`` are ready lines for the operator."""

    exit_code = 2
    code = "config"

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreError(QuaymasterError):
    code = "store"


class StoreBusy(StoreError):
    code = "store-busy"


class StoreDamaged(StoreError):
    code = "store-damaged"


class StoreLost(StoreError):
    code = "store-lost"


class StoreFull(StoreError):
    code = "store-full"


class StoreUnwritable(StoreError):
    code = "store-unwritable"


class StoreTooNew(StoreError):
    code = "store-too-new"


class TransferError(QuaymasterError):
    retry: ClassVar[Retry] = Retry.FOREVER
    code = "transfer"
    retry_after: float = 0.0
    """Seconds for which the other side asks to be left alone; 0 if it did not say."""


class TemporaryError(TransferError):
    retry = Retry.FOREVER
    code = "temporary"


class Unreachable(TemporaryError):
    code = "unreachable"


class OutOfSpace(TemporaryError):
    code = "out-of-space"


class SourceUnavailable(TemporaryError):
    code = "source-unavailable"


class IntegrityError(TransferError):
    retry = Retry.LIMITED
    exit_code = 3
    code = "integrity"


class PermanentError(TransferError):
    retry = Retry.NEVER
    code = "permanent"


class PermissionDenied(PermanentError):
    code = "permission-denied"


class DestinationMissing(PermanentError):
    code = "destination-missing"


class Conflict(PermanentError):
    code = "conflict"


class NotSupported(PermanentError):
    code = "not-supported"


class NameRefused(PermanentError):
    code = "name-refused"


class SourceRefused(PermanentError):
    code = "source-refused"


class SourceVanished(TransferError):
    retry = Retry.LIMITED
    code = "source-vanished"


class InternalError(TransferError):
    retry = Retry.LIMITED
    code = "internal"


class SourceChanged(TransferError):
    retry = Retry.SUPERSEDE
    code = "source-changed"
