"""``python -m quaymaster`` is the command ``quaymaster``."""

import gc
import sys
from typing import NoReturn

from quaymaster.cli import main


def start() -> NoReturn:
    """Run the command line as a whole process."""
    # Searching for cycles among what imports have just made takes a fifth of a short command: look less often, and not
    # at all at the end, where everything goes.
    gc.set_threshold(20_000)
    code = main()
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    start()
