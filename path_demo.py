"""Which head feeds which, as a language model names the right person? Patches edges between heads, and whole paths.

The task is that of demo.py and head_demo.py. An edge goes from what one component writes to what one other reads: only
this one reads the other run. Of a model with more than a thousand edges, those among its largest heads are patched.
"""

from __future__ import annotations

import sys

from actpatch.demos import path_demo


def main(argv: list[str] | None = None) -> int:
    return path_demo(argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
