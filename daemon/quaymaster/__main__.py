"""``python -m quaymaster`` is the command ``quaymaster``."""

import sys

from quaymaster.cli import main

sys.exit(main())
