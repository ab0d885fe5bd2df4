"""The section of a report on a circuit: the graph, how it was judged, at which sizes, and under which settings.

What is not given is left out. Nothing here runs a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actpatch.core.circuits import Circuit
from actpatch.core.graph import Graph
from actpatch.core.heavy import go
from actpatch.core.text import count, described, number, with_minus
from actpatch.figures.circuit_evaluation import create_circuit_evaluation
from actpatch.figures.circuit_graph import create_circuit_graph
from actpatch.figures.faithfulness_curve import create_faithfulness_curve
from actpatch.figures.page import figures_html
from actpatch.figures.sensitivity import create_sensitivity_card
from actpatch.report.parts import table
from actpatch.report.rendering import REPORT
from actpatch.results.circuit_evaluation import CircuitEvaluation
from actpatch.results.edges import EdgeResults
from actpatch.results.faithfulness_curve import FaithfulnessCurve
from actpatch.results.sensitivity import SensitivityCard
from actpatch.statistics.areas import MIB_SIZES
from actpatch.statistics.faithfulness import Faithfulness
from actpatch.statistics.sites import SiteStatistics

if TYPE_CHECKING:
    from markupsafe import Markup

HEADING = "Which edges do it alone?"
NAMES = GRAPH, EVALUATION, CURVE, CARD = "circuit_graph", "circuit_evaluation", "faithfulness_curve", "sensitivity_card"
"""Names of the figures, and of their files."""
Curves = FaithfulnessCurve | Mapping[str, FaithfulnessCurve]
ENOUGH = 0.9
"""Faithfulness that the smallest circuit of a curve is asked for."""


@dataclass(frozen=True, eq=False)
class CircuitParts:
    """What there is to tell of a circuit."""

    circuit: Circuit | None = None
    evaluation: CircuitEvaluation | None = None
    curves: Curves | None = None
    card: SensitivityCard | None = None

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.circuit, self.evaluation, self.curves, self.card))

    @property
    def shown(self) -> Circuit | None:
        """The circuit that is drawn: the one given, or that which was judged."""
        judged = [one.circuit for one in (self.evaluation, self.card) if one is not None]
        return next((one for one in (self.circuit, *judged) if one is not None), None)

    @property
    def named_curves(self) -> dict[str, FaithfulnessCurve]:
        """By name; one that has none by an empty text."""
        if self.curves is None:
            return {}
        return dict(self.curves) if isinstance(self.curves, Mapping) else {"": self.curves}

    @property
    def models(self) -> dict[str, str]:
        """What each argument is of."""
        found: dict[str, str] = {}
        if self.circuit is not None:
            found["circuit"] = self.circuit.graph.model
        if self.evaluation is not None:
            found["circuit_evaluation"] = self.evaluation.circuit.graph.model
        for name, one in self.named_curves.items():
            found[f"faithfulness[{name!r}]" if name else "faithfulness"] = one.model
        if self.card is not None:
            found["sensitivity"] = self.card.circuit.graph.model
        return found

    @property
    def model(self) -> str:
        return next(iter(self.models.values()), "")

    @property
    def task(self) -> str:
        """Empty where nothing says it."""
        curve = next(iter(self.named_curves.values()), None)
        return next((one.task for one in (self.evaluation, self.card, curve) if one is not None), "")

    def check(self) -> None:
        """Raises ValueError for parts of another kind, and for such as are of different graphs or circuits."""
        expected: dict[str, tuple[Any, type, str]] = {
            "circuit": (self.circuit, Circuit, "find_circuit"),
            "circuit_evaluation": (self.evaluation, CircuitEvaluation, "evaluate_circuit"),
            "sensitivity": (self.card, SensitivityCard, "sensitivity_card"),
        }
        expected |= {
            f"faithfulness[{name!r}]" if name else "faithfulness": (one, FaithfulnessCurve, "faithfulness_curve")
            for name, one in self.named_curves.items()
        }
        for name, (given, kind, maker) in expected.items():
            if given is not None and not isinstance(given, kind):
                raise ValueError(f"{name} is {described(given)}, expected what {maker} returns")
        circuits = [("circuit", self.circuit), ("circuit_evaluation", self.evaluation and self.evaluation.circuit)]
        given = [(name, one) for name, one in circuits if one is not None]
        if len(given) == 2 and given[0][1] != given[1][1]:
            raise ValueError(
                f"circuit has {count(len(given[0][1]), 'edge')} and circuit_evaluation judges one of "
                f"{len(given[1][1]):,} others: give the circuit that was judged, or leave circuit out"
            )


def circuit_figures(
    parts: CircuitParts, effects: EdgeResults | None, statistics: SiteStatistics | None
) -> dict[str, go.Figure]:
    """The figures of it that there can be, by name.

    Args:
        parts: what there is to tell.
        effects: of the edges of the model; they count where they are of the circuit's graph.
        statistics: of these.
    """
    figures = {}
    if parts.shown is not None and len(parts.shown.pruned()):
        fit = effects is not None and _fits(effects, parts.shown)
        figures[GRAPH] = create_circuit_graph(
            parts.shown, effects if fit else None, statistics=statistics if fit else None
        )
    if parts.evaluation is not None and not math.isnan(parts.evaluation.faithfulness.value[0]):
        figures[EVALUATION] = create_circuit_evaluation(parts.evaluation)
    if parts.curves is not None and not all(one.denominator.cancels for one in _found(parts.named_curves)):
        ranking = _ranking(parts.named_curves)
        figures[CURVE] = create_faithfulness_curve(parts.curves, ranking=ranking)  # type: ignore[arg-type]
    if parts.card is not None and any(not math.isnan(one.faithfulness) for one in parts.card.variations):
        figures[CARD] = create_sensitivity_card(parts.card)
    return figures


def circuit_section(parts: CircuitParts, figures: Mapping[str, go.Figure]) -> Markup:
    """What the circuit is, and of each part of its judgement what can be said, its figure and its numbers."""
    blocks = [
        ("", _of_circuit(parts), GRAPH, None),
        ("How it was judged", _of_evaluation(parts.evaluation), EVALUATION, _measures(parts.evaluation)),
        ("By size", _of_curves(parts.named_curves), CURVE, None),
        ("Under other settings", _of_card(parts.card), CARD, None),
    ]
    return REPORT.render(
        "circuits.html",
        blocks=[
            (heading, with_minus(told), figures_html({name: figures[name]}) if name in figures else "", numbers)
            for heading, told, name, numbers in blocks
            if told
        ],
    )


def _fits(effects: EdgeResults, circuit: Circuit) -> bool:
    """Whether these are effects of the circuit's edges, at places that it has."""
    graph: Graph = effects.graph
    return graph == circuit.graph and (bool(circuit.positions) or len(set(effects.edges.columns.tolist())) == 1)


def _ranking(curves: Mapping[str, FaithfulnessCurve]) -> str:
    """The ranking that all of them have."""
    common = [ranking for ranking in ("absolute", "signed") if all(ranking in one.rankings for one in curves.values())]
    return common[0] if common else "absolute"


def _found(curves: Mapping[str, FaithfulnessCurve]) -> list[Faithfulness]:
    return [one.faithfulness(_ranking({name: one})) for name, one in curves.items()]


def _of_circuit(parts: CircuitParts) -> str:
    circuit = parts.shown
    if circuit is None:
        return ""
    pruned = circuit.pruned()
    of = f"{count(len(pruned), 'edge')} of {circuit.edges.size:,} in {circuit.graph.model}"
    at = f" at {count(len(circuit.positions), 'position')}" if circuit.positions else ""
    sentences = [
        f"The circuit: {of}{at}, between {count(len(pruned.heads), 'head')} and {count(len(pruned.mlps), 'MLP')}"
    ]
    if dangling := len(circuit) - len(pruned):
        lie = "lies" if dangling == 1 else "lie"
        sentences.append(f"{count(dangling, 'more edge')} of it {lie} on no way from the input to the logits")
    if not len(pruned):
        sentences.append("Without any that does, there is nothing to draw")
    if circuit.found_by:
        sentences.append(f"Found by: {circuit.found_by}")
    if parts.card is not None and parts.card.circuit != circuit:
        sentences.append("The settings below were varied for another circuit of this model")
    return " ".join(f"{sentence}." for sentence in sentences)


def _of_evaluation(evaluation: CircuitEvaluation | None) -> str:
    return "" if evaluation is None else evaluation.summary()


def _measures(evaluation: CircuitEvaluation | None) -> Markup | None:
    """All measures of all metrics as a table."""
    if evaluation is None:
        return None
    heads = ["Measure", "Metric", "Value", "Interval or range", "p", "Of"]
    rows = [
        [
            str(row["measure"]),
            str(row["metric"]),
            _number(row["value"]),
            "" if math.isnan(row["low"]) else f"{_number(row['low'])} to {_number(row['high'])}",
            "" if math.isnan(row["p"]) else with_minus(f"{row['p']:.2g}"),
            f"{row['n']:,}",
        ]
        for row in evaluation.to_dataframe().to_dict("records")
    ]
    return table(heads, rows, "What was measured", numbers=True)


def _of_curves(curves: Mapping[str, FaithfulnessCurve]) -> str:
    return " ".join(_of_curve(name, one) for name, one in curves.items())


def _of_curve(name: str, curve: FaithfulnessCurve) -> str:
    ranking = _ranking({name: curve})
    found, areas = curve.faithfulness(ranking), curve.areas(ranking)
    by = "|effect|" if ranking == "absolute" else "signed effect"
    sentences = [
        f"{f'{name}: ' if name else ''}{'c' if name else 'C'}ircuits of {count(len(curve.sizes), 'size')}, "
        f"{curve.method} edges by {by} ({curve.ranked_by}): CPR {_number(areas.cpr)}, CMD {_number(areas.cmd)}"
    ]
    if tuple(curve.sizes.tolist()) == MIB_SIZES:
        sentences[0] += " (circuits that do nothing have 0.25 and 0.75)"
    row = curve.rankings.index(ranking)
    if len(enough := np.flatnonzero(found.value >= ENOUGH)):
        n = int(curve.real[row, enough].min())
        sentences.append(
            f"The smallest of them with a faithfulness of {ENOUGH} or more has {count(n, 'edge')} once pruned, of "
            f"{curve.n_edges:,}"
        )
    else:
        sentences.append(f"None of them has a faithfulness of {ENOUGH} or more")
    return " ".join(f"{sentence}." for sentence in (*sentences, *map(_capital, (*curve.flags, *curve.notes))))


def _of_card(card: SensitivityCard | None) -> str:
    if card is None:
        return ""
    known = [one for one in card.variations if not math.isnan(one.faithfulness)]
    if not known:
        return "Under no setting is faithfulness defined."
    low, high = min(known, key=lambda one: one.faithfulness), max(known, key=lambda one: one.faithfulness)
    said = (
        f"In the base case ({card.base.name}) faithfulness is {_number(card.base.faithfulness)}; over "
        f"{count(len(card.variations), 'setting')} it goes from {_number(low.faithfulness)} ({low.name}) to "
        f"{_number(high.faithfulness)} ({high.name})."
    )
    shared = [one for one in card.variations if one.jaccard < 1]
    if shared:
        least = min(shared, key=lambda one: one.jaccard)
        said += (
            f" The circuit that shares fewest edges with it is that of {least.name} (Jaccard {_number(least.jaccard)})."
        )
    if undefined := len(card.variations) - len(known):
        said += f" Under {count(undefined, 'setting')} it is not defined."
    return " ".join([said, *(f"{_capital(note)}." for note in card.notes)])


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else with_minus(number(value))


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
