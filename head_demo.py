"""Which attention heads make a language model name the right person? Patches every head, and draws what comes back.

The task is that of demo.py. What of a head is replaced is the patch type: its output z, its attention pattern (where
it attends), or its queries, keys or values.
"""

from __future__ import annotations

import sys

from actpatch.demos import head_demo


def main(argv: list[str] | None = None) -> int:
    return head_demo(argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
