"""Every figure that the results of an experiment allow, and the report that holds them: results in, files out.

`SECTIONS` lists the figures by the results that they are of: a new one is a row there. Nothing here runs a model, and
nothing here knows how a figure is drawn or a page is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from actpatch.core.circuits import Circuit
from actpatch.core.files import writable_folder
from actpatch.core.heavy import go
from actpatch.figures.bars import (
    create_component_comparison,
    create_effect_distribution,
    create_top_edges_bar,
    create_top_heads_bar,
)
from actpatch.figures.cards import create_head_cards
from actpatch.figures.checks import Heads, checked_heads, checked_layers, checked_sweep, known_heads
from actpatch.figures.edge_graph import create_edge_graph
from actpatch.figures.edges import create_edge_heatmap
from actpatch.figures.head_positions import create_head_position_heatmap
from actpatch.figures.maps import create_head_heatmap, create_layer_heatmap, create_position_heatmap
from actpatch.figures.scatter import create_metric_scatter
from actpatch.report.circuits import CircuitParts, Curves, circuit_figures
from actpatch.report.page import write_report
from actpatch.report.verification import verification_figures
from actpatch.results.cards import HeadCards
from actpatch.results.check import DatasetCheck
from actpatch.results.circuit_evaluation import CircuitEvaluation
from actpatch.results.edges import EdgeResults
from actpatch.results.head_positions import HeadPositionResults
from actpatch.results.positions import PositionResults
from actpatch.results.sensitivity import SensitivityCard
from actpatch.results.shapes import LayerResults, SweepResults
from actpatch.results.sweep import Sweep
from actpatch.results.verification import Verification, check_verification
from actpatch.statistics.sites import SiteStatistics


def create_full_report(
    head_results: Heads | None = None,
    layer_results: LayerResults | None = None,
    n_layers: int | None = None,
    n_heads: int | None = None,
    save_dir: str | Path = "./figures",
    *,
    position_results: PositionResults | None = None,
    head_position_results: HeadPositionResults | None = None,
    edge_results: EdgeResults | None = None,
    top_results: SweepResults | None = None,
    check: DatasetCheck | None = None,
    head_cards: HeadCards | None = None,
    verification: Verification | None = None,
    circuit: Circuit | None = None,
    circuit_evaluation: CircuitEvaluation | None = None,
    faithfulness: Curves | None = None,
    sensitivity: SensitivityCard | None = None,
) -> list[Path]:
    """Write `report.html`, which carries everything and can be sent alone, and a page for each figure.

    The folder is created where needed. Nothing in it needs a network; the figures' own pages share one plotly.js.

    Args:
        head_results: heads, or a list picked from them.
        layer_results: hook points.
        n_layers: of the model, if it is to be checked; needed for a list of heads of no one experiment.
        n_heads: likewise.
        save_dir: folder to write to.
        position_results: positions, which also colour the tokens of the prompts.
        head_position_results: heads at single positions.
        edge_results: edges between components, which have a section of their own beside other results.
        top_results: results of any shape, whose largest effects alone are shown: neurons, paths, what was chosen out of
            a run that is too large to be held (`open_run(folder).top(50)`).
        check: what a linter says of the dataset; None lets the report judge by the runs' baselines alone.
        head_cards: what single heads do (`HeadPatcher.describe_heads`), which have a section of their own.
        verification: what exact runs say of estimated effects, which has a section of its own.
        circuit: edges that are taken to do the task alone, which have a section of their own; `edge_results` of its
            model give them their widths.
        circuit_evaluation: how it was judged (`evaluate_circuit`), in the same section; its circuit is drawn where none
            is given.
        faithfulness: circuits of growing size (`faithfulness_curve`), one or several by name, in the same section.
        sensitivity: what the judgement hangs on (`sensitivity_card`), in the same section.

    Returns:
        The written paths, `report.html` first.

    Raises:
        ValueError: where no results are given, they are of different models, or one cannot be drawn (as the single
            figures say).
        OSError: where `save_dir` cannot be created or written to; nothing has been drawn then. Where a file cannot be
            written, all that stood there are as they were.
    """
    given = {
        "head_results": known_heads(head_results),
        "layer_results": layer_results,
        "position_results": position_results,
        "head_position_results": known_heads(head_position_results),
        "edge_results": known_heads(edge_results),
        "top_results": top_results,
    }
    parts = CircuitParts(circuit, circuit_evaluation, faithfulness, sensitivity)
    if not parts and all(results is None for results in (*given.values(), head_cards, verification)):
        raise ValueError(f"neither {' nor '.join(given)} was given: pass at least one of them")
    known_runs = {name: results.sweep for name, results in given.items() if isinstance(results, SweepResults)}
    if verification is not None:
        check_verification(verification, "create_full_report")
        known_runs["verification"] = verification.estimated
    _check_one_model(known_runs)
    _check_cards(head_cards, known_runs)
    parts.check()
    _check_circuit(parts, {name: sweep.model for name, sweep in known_runs.items()})
    folder = _writable_folder(Path(save_dir))
    figures: dict[str, go.Figure] = {}
    sweeps: dict[str, SweepResults] = {}
    statistics: dict[str, SiteStatistics | str] = {}
    own: dict[str, tuple[str, ...]] = {}
    for section in SECTIONS:
        results = given[section.kind]
        if results is None:
            continue
        section.check(results, n_layers)
        known = None
        if isinstance(results, SweepResults):
            sweeps[section.name] = results
            known, statistics[section.name] = _statistics(results)
        drawn = _figures(section, Drawn(results, known, n_layers, n_heads))
        figures |= drawn
        if section.is_apart:
            own[section.name] = tuple(drawn)
    if head_cards is not None:
        figures["head_cards"] = create_head_cards(head_cards)
    if verification is not None:
        figures |= verification_figures(verification)
    if parts:
        of_edges = statistics.get("Edges")
        effects = given["edge_results"] if isinstance(given["edge_results"], EdgeResults) else None
        figures |= circuit_figures(parts, effects, of_edges if isinstance(of_edges, SiteStatistics) else None)
    return write_report(folder, figures, sweeps, statistics, check, head_cards, own, verification, parts)


@dataclass(frozen=True)
class Drawn:
    """What the figures of a section are drawn from."""

    results: Any
    statistics: SiteStatistics | None
    n_layers: int | None
    n_heads: int | None


Parts: TypeAlias = Sequence[str | int | None]
"""Parts of results that have a figure each; None is all in one."""


def _whole(drawn: Drawn) -> Parts:
    return (None,)


@dataclass(frozen=True)
class SectionFigure:
    """One figure of a section, or one for each part of its results."""

    name: str
    """Of its file, and of its place in the report."""
    draw: Callable[[Drawn, Any], go.Figure]
    """From what there is to draw, and the part of it."""
    parts: Callable[[Drawn], Parts] = _whole
    """The parts of the results that have a figure each; None is all in one. Empty where it cannot be drawn."""


@dataclass(frozen=True)
class Section:
    """What is drawn of one kind of results."""

    kind: str
    """The argument of `create_full_report` that gives them."""
    name: str
    """What a reader calls them."""
    check: Callable[[Any, int | None], object]
    """Raises a ValueError where the results, of a model of so many layers, cannot be drawn."""
    figures: tuple[SectionFigure, ...]
    is_apart: bool = False
    """Whether they have a section of their own, with what was found in them, where there are other results."""


def _if_run_is_known(drawn: Drawn) -> Parts:
    return (None,) if isinstance(drawn.results, SweepResults) else ()


def _if_attention_and_mlp(drawn: Drawn) -> Parts:
    return (None,) if {"attn_out", "mlp_out"} <= set(drawn.results.matrix().columns) else ()


def _positions_of_edges(drawn: Drawn) -> Parts:
    results: EdgeResults = drawn.results
    columns = np.unique(results.edges.columns).tolist()
    return [results.positions[column] for column in columns] if results.positions else (None,)


SECTIONS = (
    Section(
        "head_results",
        "Heads",
        lambda results, _: checked_heads(results, "create_full_report"),
        (
            SectionFigure(
                "head_heatmap",
                lambda d, _: create_head_heatmap(d.results, d.n_layers, d.n_heads, statistics=d.statistics),
            ),
            SectionFigure("top_heads_bar", lambda d, _: create_top_heads_bar(d.results, statistics=d.statistics)),
            SectionFigure("head_metric_scatter", lambda d, _: create_metric_scatter(d.results), _if_run_is_known),
        ),
    ),
    Section(
        "layer_results",
        "Layers",
        lambda results, n_layers: checked_layers(results, n_layers, "create_full_report"),
        (
            SectionFigure("layer_heatmap", lambda d, _: create_layer_heatmap(d.results, statistics=d.statistics)),
            SectionFigure(
                "component_comparison",
                lambda d, _: create_component_comparison(d.results, statistics=d.statistics),
                _if_attention_and_mlp,
            ),
            SectionFigure("layer_metric_scatter", lambda d, _: create_metric_scatter(d.results)),
        ),
    ),
    Section(
        "position_results",
        "Positions",
        lambda results, _: checked_sweep(results, PositionResults, "create_full_report"),
        (
            SectionFigure(
                "position_heatmap",
                lambda d, component: create_position_heatmap(d.results, component, statistics=d.statistics),
                lambda d: d.results.components,
            ),
        ),
    ),
    Section(
        "head_position_results",
        "Heads at positions",
        lambda results, _: checked_sweep(results, HeadPositionResults, "create_full_report"),
        (
            SectionFigure(
                "head_position_heatmap",
                lambda d, _: create_head_position_heatmap(d.results, statistics=d.statistics),
            ),
        ),
    ),
    Section(
        "edge_results",
        "Edges",
        lambda results, _: checked_sweep(results, EdgeResults, "create_full_report"),
        (
            SectionFigure(
                "edge_heatmap",
                lambda d, at: create_edge_heatmap(d.results, position=at, statistics=d.statistics),
                _positions_of_edges,
            ),
            SectionFigure("top_edges_bar", lambda d, _: create_top_edges_bar(d.results, statistics=d.statistics)),
            SectionFigure("edge_graph", lambda d, _: create_edge_graph(d.results, statistics=d.statistics)),
        ),
        is_apart=True,
    ),
    Section(
        "top_results",
        "Top sites",
        lambda results, _: checked_sweep(results, SweepResults, "create_full_report"),
        (
            SectionFigure(
                "effect_distribution", lambda d, _: create_effect_distribution(d.results, statistics=d.statistics)
            ),
        ),
    ),
)
"""The report's figures in their order."""


def _figures(section: Section, drawn: Drawn) -> dict[str, go.Figure]:
    """A section's figures by their names, to which the part is added where there are several."""
    figures = {}
    for row in section.figures:
        parts = row.parts(drawn)
        for part in parts:
            figures[f"{row.name}_{_of_file(part)}" if len(parts) > 1 else row.name] = row.draw(drawn, part)
    return figures


def _of_file(part: str | int | None) -> str:
    """The part's name with nothing in it that a path or an id cannot have."""
    return re.sub(r"[^\w.-]+", "_", str(part))


def _statistics(results: SweepResults) -> tuple[SiteStatistics | None, SiteStatistics | str]:
    """The statistics as figures take them, computed once for all, and for the report also why there are none."""
    try:
        statistics = results.statistics()
    except ValueError as error:
        return None, f"no intervals and no significance: {error}"
    return statistics, statistics


def _check_one_model(sweeps: Mapping[str, Sweep]) -> None:
    models = {name: (s.model, s.n_layers, s.n_heads, s.n_key_value_heads) for name, s in sweeps.items()}
    if len(set(models.values())) > 1:
        which = ", ".join(
            f"{name} of {model} ({layers} layers × {heads} heads)" for name, (model, layers, heads, _) in models.items()
        )
        raise ValueError(f"the results are of different models, {which}: write a report for each model")


def _check_cards(cards: HeadCards | None, sweeps: Mapping[str, Sweep]) -> None:
    if cards is None:
        return
    if not isinstance(cards, HeadCards):
        raise ValueError(
            f"head_cards is a {type(cards).__name__}, expected what HeadPatcher(model).describe_heads returns"
        )
    for name, sweep in sweeps.items():
        if sweep.model != cards.model:
            raise ValueError(
                f"{name} are of the model {sweep.model}, head_cards of {cards.model}: write a report for each model"
            )


def _check_circuit(parts: CircuitParts, models: Mapping[str, str]) -> None:
    of = {**models, **parts.models}
    if parts and len(set(of.values())) > 1:
        which = ", ".join(f"{name} of {model}" for name, model in of.items())
        raise ValueError(f"what was given is of different models, {which}: write a report for each model")


def _writable_folder(folder: Path) -> Path:
    try:
        return writable_folder(folder)
    except OSError as error:
        raise OSError(
            f"cannot write to save_dir {str(folder)!r} ({error}): pass a folder that can be written"
        ) from error
