"""Which layers make a language model name the right person? Patches layers, then positions, and draws what comes back.

The task is indirect object identification: "When Mary and John went to the store, John gave a drink to" is continued
with " Mary". Activations of that run are put into a run on a corrupted prompt, one component at a time.
"""

from __future__ import annotations

import sys

from actpatch.demos import layer_demo


def main(argv: list[str] | None = None) -> int:
    return layer_demo(argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
