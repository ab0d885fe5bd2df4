"""Which edges do the job alone, as a language model names the right person? Finds a circuit, and judges it.

The task is that of demo.py and head_demo.py. Edges are ranked by their effects on some of the pairs; the circuit that
they give is run alone on the others, beside random circuits of its size, and under every choice made otherwise.
"""

from __future__ import annotations

import sys

from actpatch.demos import circuit_demo


def main(argv: list[str] | None = None) -> int:
    return circuit_demo(argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
