"""An evaluation of a circuit in words: a line, and a few sentences that claim no more than it carries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from actpatch.core.text import count, number, plain, plural
from actpatch.metrics.names import metric_key
from actpatch.statistics.faithfulness import Faithfulness

if TYPE_CHECKING:
    from actpatch.results.circuit_evaluation import CircuitEvaluation

MOST_NAMED = 5
"""Most parts that are named."""
ROUNDED = 0.005
"""What is below is told as 0."""


def evaluation_line(e: CircuitEvaluation) -> str:
    """In a line: the circuit, its faithfulness, what is left without it, and random ones."""
    random = "" if e.random is None else f", random {number(float(np.median(e.random.random)))}"
    flags = f", {count(len(e.flags), 'flag')}" if e.flags else ""
    found = f"faithfulness {interval(e.faithfulness)}, rest {number(float(e.completeness.value[0]))}{random}"
    return f"CircuitEvaluation({_edges(e)}, {e.task}, {e.direction}, {e.metric}: {found}{flags})"


def evaluation_text(e: CircuitEvaluation) -> str:
    """A few sentences."""
    said = [_faithfulness(e), _rest(e), *_random(e), *_knock_outs(e), *_parts(e), *_tests(e), *_others(e)]
    return " ".join(f"{sentence}." for sentence in [*said, *map(_capital, e.flags)])


def interval(found: Faithfulness) -> str:
    """`0.83 [0.71, 0.90]`; a number alone where there is no interval."""
    value, low, high = (float(each[0]) for each in (found.value, found.low, found.high))
    if np.isnan(value):
        return "not defined"
    return number(value) + ("" if np.isnan(low) else f" [{number(low)}, {number(high)}]")


def _edges(e: CircuitEvaluation) -> str:
    return f"{len(e.circuit):,} of {e.circuit.edges.size:,} edges"


def _faithfulness(e: CircuitEvaluation) -> str:
    pairs = count(len(e.pair_indices), "pair")
    which = {True: f"{pairs} that its search did not see", False: pairs, None: pairs}[e.held_out]
    left_out = f" ({e.n_left_out} that it saw left out)" if e.n_left_out else ""
    f = interval(e.faithfulness)
    of = f"Of {e.circuit.graph.model}, {_edges(e)}"
    if e.direction == "noising":
        how = f"kept, {e.source_of_values} in the place of all others (noising)"
        share = f"what the circuit keeps of the behaviour is {f}"
    else:
        how = "of the clean run, all others of the corrupted one (denoising)"
        share = f"what of the behaviour comes back is {f}"
    return f"{of} {how}: {share} by {e.metric} (faithfulness) over {which}{left_out}"


def _rest(e: CircuitEvaluation) -> str:
    return f"The rest of the model without the circuit has {interval(e.completeness)}"


def _random(e: CircuitEvaluation) -> Iterator[str]:
    if e.random is not None:
        random = e.random.random
        yield (
            f"Of {count(len(random), 'random circuit')} of its size (median {number(float(np.median(random)))}) "
            f"{_as_many(e.random.p, len(random))} at least as faithful (p = {number(e.random.p, 3)}), and "
            f"{_as_many(e.random.p_distance, len(random))} at least as near to 1 (p = {number(e.random.p_distance, 3)})"
        )


def _as_many(p: float, n: int) -> str:
    reached = round(p * (1 + n)) - 1
    return "none is" if not reached else f"{reached} {'is' if reached == 1 else 'are'}"


def _knock_outs(e: CircuitEvaluation) -> Iterator[str]:
    if (row := e.largest_gap) is not None:
        greedy = f", {e.n_greedy} of them greedy," if e.n_greedy else ","
        of = f"Of {count(len(e.knock_outs), 'knock-out')}{greedy}"
        found, names = e.knocked_out, e.knock_outs[row]
        value, low, high = (float(each[row]) for each in (found.value, found.low, found.high))
        if abs(value) < ROUNDED:
            yield f"{of} none makes model and circuit differ"
            return
        ends = "" if np.isnan(low) else f" [{plain(low, 2)}, {plain(high, 2)}]"
        yield f"{of} the one of {_listed(names)} makes them differ most: model less circuit {plain(value, 2)}{ends}"


def _parts(e: CircuitEvaluation) -> Iterator[str]:
    from actpatch.results.circuit_evaluation import SMALL_DROP

    n, kind = len(e.parts), {"edge": "edge", "node": "component"}[e.kind_of_parts]
    if n:
        idle = e.not_needed
        named = f": {_listed(idle)}" if idle else ""
        alike = "; parts that stand in for each other do so too" if len(idle) > 1 else ""
        of = f"{len(idle)} of {n} {kind if n == 1 else plural(kind)}"
        change = "changes" if len(idle) == 1 else "change"
        yield f"Left out alone, {of} {change} it by less than {SMALL_DROP}{named}{alike}"
    tests = e.minimality_tests
    if n and tests.n_random:
        n_rejected = int((tests.p_corrected <= 1 - e.level).sum())
        yield (
            f"{n_rejected} of {n} do no more than {count(tests.n_random, 'edge')} put in at random (quantile "
            f"{tests.quantile:g}, corrected)"
        )


def _tests(e: CircuitEvaluation) -> Iterator[str]:
    from actpatch.results.circuit_evaluation import FROM_THE_CLEAN_RUN

    if metric_key(e.metric) in FROM_THE_CLEAN_RUN:
        return
    same, apart = e.equivalence, e.independence
    yield (
        f"The circuit is above the model on {number(100 * same.share_above, 0)} % of the pairs (p = "
        f"{number(same.p_different, 3)} for a difference, {number(same.p_equivalent, 3)} for equivalence)"
    )
    if not np.isnan(apart.p):
        yield f"The rest varies with the model with p = {number(apart.p, 3)}"


def _others(e: CircuitEvaluation) -> Iterator[str]:
    for name in e.metrics:
        if name != e.metric:
            yield f"By {name}, faithfulness is {interval(e.by_metric(name).faithfulness)}"


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
