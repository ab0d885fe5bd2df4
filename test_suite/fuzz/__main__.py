"""`python -m test_suite.fuzz [--cases N] [--seed S] [--only MODEL]`: the walk; it fails where the library is off."""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from test_suite.fuzz.case import MODELS
from test_suite.fuzz.walk import Outcome, check


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m test_suite.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=500, help="how many experiments to draw")
    parser.add_argument("--seed", type=int, help="seed of the first one, each next one has the next; drawn if not said")
    parser.add_argument("--only", metavar="MODEL", help="one model: " + ", ".join(MODELS))
    parser.add_argument("--refusals", action="store_true", help="print what was refused, too")
    asked = parser.parse_args()
    if asked.only not in (None, *MODELS):
        parser.error(f"--only {asked.only} is unknown, expected one of {', '.join(MODELS)}")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    first = time.time_ns() % 10**9 if asked.seed is None else asked.seed
    print(f"{asked.cases} experiments, seeds {first} to {first + asked.cases - 1}", flush=True)
    outcomes = []
    for seed in range(first, first + asked.cases):
        outcomes.append(check(seed, asked.only))
        if outcomes[-1].kind in ("disagrees", "fails") or (asked.refusals and outcomes[-1].kind == "refused"):
            show(outcomes[-1])
    counted = collections.Counter(outcome.kind for outcome in outcomes)
    moved = sum(outcome.moved for outcome in outcomes)
    print(
        f"{len(outcomes)} experiments: {counted['agrees'] + counted['disagrees']} compared with plain runs (in {moved} "
        f"a patch moved a metric), {counted['refused']} refused, {counted['disagrees']} disagree, "
        f"{counted['fails']} fail with an error"
    )
    return int(counted["disagrees"] + counted["fails"] > 0)


def show(outcome: Outcome) -> None:
    print(f"{outcome.kind}: {outcome.said}\n  {outcome.case}\n  {outcome.command}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
