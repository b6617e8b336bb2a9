"""``python -m quaymaster`` is the command ``quaymaster``."""

import atexit
import gc
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from quaymaster.cli import main


def start() -> NoReturn:
    """Run the command line as a whole process."""
    # Searching for cycles among what imports have just made takes a fifth of a short command: look less often, and not
    # at all at the end, where everything goes.
    gc.set_threshold(20_000)
    code = main()
    gc.freeze()
    if threading.active_count() > 1:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """End with threads still there. What is durable is closed, but one may hang in a dead mount, and one that wakes up
    in C code while the interpreter is taken down around it crashes the process: so it is not taken down."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    start()
