"""``python -m quaymaster`` is the command ``quaymaster``."""

import atexit
import gc
import os
import signal
import sys
import threading
from contextlib import suppress


def start() -> None:
    """Run the command line as a whole process."""
    # Searching for cycles among what imports have just made takes a fifth of a short command: look less often, and not
    # at all at the end, where everything goes.
    gc.set_threshold(20_000)
    # Ctrl-C is no traceback while modules are loaded, and none while the interpreter is taken down. Where a shell has
    # it ignored, as of what runs in the background, it stays so.
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from quaymaster.cli import main

    try:
        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
    except KeyboardInterrupt:  # before its first line, or after its last
        code = 130
    if heeded:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.freeze()
    if threading.active_count() > 1:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End with threads still there. What is durable is closed, but one may hang in a dead mount, and one that wakes up
    in C code while the interpreter is taken down around it crashes the process: so it is not taken down."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    start()
