"""`python -m snapfusion`."""

import sys

from snapfusion.command import main

if __name__ == "__main__":
    sys.exit(main())
