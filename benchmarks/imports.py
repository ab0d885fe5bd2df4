"""How long imports take, against that of torch: each in fresh processes, in turns, and the median of them.

python -m benchmarks.imports
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

STATEMENTS = (
    "import torch",
    "import actpatch",
    "import activation_patching",
    "import head_patching",
    "import model_loading",
    "import path_patching",
    "import visualize",
    "from actpatch import load_results",
)
TURNS = 7


def main() -> None:
    seconds: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for _ in range(TURNS):
        for statement, times in seconds.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            times.append(time.perf_counter() - begin)
    torch = statistics.median(seconds["import torch"])
    print(f"| Import | Seconds, median of {TURNS} | Against torch |\n|---|---|---|")
    for statement, times in seconds.items():
        median = statistics.median(times)
        print(f"| `{statement}` | {median:.2f} | {median / torch:.2f} |")


if __name__ == "__main__":
    main()
