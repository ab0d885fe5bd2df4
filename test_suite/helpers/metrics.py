"""Answers, pairs and patches for tests of metrics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from actpatch.core.sites import Patch, Site, block_hook
from actpatch.metrics.base import Answers, Metric
from actpatch.metrics.registry import NAMED_METRICS
from actpatch.tasks.encoding import EncodedPairs
from test_suite.helpers.models import token_pairs
from test_suite.oracles.metrics import NAMED

SETS = Answers(correct=((3,), (5, 9, 30), (12, 4)), incorrect=((8, 2), (11,), (20, 21, 22)))
SINGLE = Answers(correct=((3,), (5,), (12,)), incorrect=((8,), (11,), (20,)))


def named_metrics(answers: Answers) -> list[Metric]:
    given: Any = SimpleNamespace(answers=answers)
    return [NAMED_METRICS[name].made(given) for name in NAMED]


def pairs_of_three_lengths() -> EncodedPairs:
    return token_pairs([9, 12, 7], [(3,), (5, 7), (2,)])


PATCHES = [
    Patch((Site(block_hook(1, "z"), head=2),)),
    Patch((Site(block_hook(0, "mlp_out"), position=-2),)),
    Patch((Site(block_hook(2, "pattern"), head=1), Site(block_hook(1, "resid_mid"), position=5))),
]
