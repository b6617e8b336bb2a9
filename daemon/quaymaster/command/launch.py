"""Takes away what a hook's command need not have, and becomes the command: ``python -I -S launch.py PROGRAM ARGUMENT…``

It runs in the process of the command, before it; it imports next to nothing, and does not know quaymaster.
"""

import os
import resource
import sys

_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4  # prctl(2)
_NICER = 5
_FILES = 1024


def main(command: list[str]) -> None:
    _without_capabilities()
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, _FILES)
    try:
        os.nice(_NICER)
    except OSError:
        pass  # the unit's system call filter refuses it, and has made the service nice already
    try:
        os.execv(command[0], command)  # noqa: S606 - an operator's own command, without a shell
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be run ({error.strerror})\n")
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _limit(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def _without_capabilities() -> None:
    """CAP_LEASE, which the service has, is none of its business: capabilities(7), ambient set."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
