"""``python -m xpkern`` is the command line."""

import sys

from xpkern.cli import main

if __name__ == "__main__":
    sys.exit(main())
