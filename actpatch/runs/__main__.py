"""The command line of stored runs."""

import sys

from actpatch.runs.command import main

if __name__ == "__main__":
    sys.exit(main())
