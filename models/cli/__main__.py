"""`python -m vsegops.models.cli`, the same as `vsegops`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
