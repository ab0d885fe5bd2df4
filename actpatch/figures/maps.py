"""Maps of effects: layer × head, layer × component, layer × position. Knows results; it runs and computes nothing."""

from __future__ import annotations

from actpatch.core.estimate_words import titled
from actpatch.core.heavy import go
from actpatch.figures.cells import MARGINS, cells_figure, colour_limit, narrowest, room_for_numbers
from actpatch.figures.certainty import Certainty, certainty
from actpatch.figures.checks import Heads, checked_layers, checked_sweep, known_heads
from actpatch.figures.frame import finish
from actpatch.figures.heads import drawn_heads
from actpatch.figures.places import EffectMap, effect_map
from actpatch.figures.words import escaped, hovers, labels_of, scale_title, told
from actpatch.results.positions import PositionResults
from actpatch.results.shapes import LayerResults, SweepResults, patch_key
from actpatch.statistics.sites import SiteStatistics


def create_head_heatmap(
    results: Heads,
    n_layers: int | None = None,
    n_heads: int | None = None,
    *,
    title: str | None = None,
    colour_range: float | None = None,
    statistics: SiteStatistics | None = None,
) -> go.Figure:
    """Layer × head map of effects; under grouped-query attention k and v have a column per key-value head.

    Colours are those of the colour bar. A star marks heads that are significant after correction; with too few pairs
    none is marked. Heads that were not measured are hatched.

    Args:
        results: what `run_all_heads_experiment` returned, or a list picked from it (`[r for r in results if r.layer >
            3]`); heads that it lacks are hatched. Heads that were made otherwise need `n_layers` and `n_heads`, and do
            not know what is significant.
        n_layers: of the model; checked where the results know it.
        n_heads: likewise.
        title: in place of the figure's own.
        colour_range: colours span ± this effect, for maps that are to be compared; None spans the largest.
        statistics: `results.statistics(...)`, for another level or correction than its defaults.

    Raises:
        ValueError: where `results` are no head results, are empty or hold no usable pair; where the sizes contradict
            them, or are missing for heads of no one experiment; where a list mixes patch types or repeats a head; where
            `statistics` are those of other results.
    """
    results = known_heads(results)
    drawn = drawn_heads(results, "create_head_heatmap", statistics)
    effects = effect_map(results, size=(n_layers, n_heads))
    title = title or titled(drawn.estimate, f"Effect of each {drawn.kind}: {drawn.patch_type}")
    parts = drawn.told(drawn.certainty.note, scale=True)
    scale = scale_title(drawn.estimate)
    return _map_figure(effects, drawn.texts, drawn.certainty, title, parts, colour_range, scale)


def create_layer_heatmap(
    results: LayerResults,
    n_layers: int | None = None,
    *,
    title: str | None = None,
    colour_range: float | None = None,
    statistics: SiteStatistics | None = None,
) -> go.Figure:
    """Layer × component map of effects. What lies in no one layer is named in the caption, not drawn.

    Arguments are those of `create_head_heatmap`, as are the marks.

    Raises:
        ValueError: where `results` are no layer results, are empty, hold no usable pair or no hook point of a layer,
            or have another number of layers; where `statistics` are those of other results.
    """
    sweep = checked_layers(results, n_layers, "create_layer_heatmap")
    drawn = effect_map(results)
    outside = [patch_key(patch) for patch, place in zip(sweep.patches, drawn.places) if place is None]
    note = f"in no one layer, not drawn: {', '.join(outside)}" if outside else ""
    title = title or titled(sweep.estimate, "Effect of each layer's components")
    return _results_figure(results, drawn, title, colour_range, statistics, note)


def create_position_heatmap(
    results: PositionResults,
    component: str | None = None,
    *,
    title: str | None = None,
    colour_range: float | None = None,
    statistics: SiteStatistics | None = None,
) -> go.Figure:
    """Layer × position map of one component's effects (the first, if not named), labelled with the prompts' tokens.

    A label reads `4: Mary→John`, in bold, where the corrupted prompt has another token than the clean one. Where pairs
    have different tokens, the labels show the first pair's and the axis says so. Positions count the BOS token.
    Positions that go by name are labelled with it. Other arguments are those of `create_head_heatmap`, as are the
    marks; the correction counts the sites of all components.

    Raises:
        ValueError: where `results` are no position results, are empty, hold no usable pair, or lack the component;
            where `statistics` are those of other results.
    """
    sweep = checked_sweep(results, PositionResults, "create_position_heatmap")
    component = component or results.components[0]
    together = ", all heads together," if component in results.of_all_heads else ""
    title = title or titled(sweep.estimate, f"Effect of {escaped(component)}{together} at each position")
    return _results_figure(results, effect_map(results, component), title, colour_range, statistics)


def _results_figure(
    results: SweepResults,
    drawn: EffectMap,
    title: str,
    colour_range: float | None,
    statistics: SiteStatistics | None,
    note: str = "",
) -> go.Figure:
    evidence = certainty(results.sweep, results.kind, statistics)
    texts = hovers(labels_of(results), results.sweep, evidence.lines)
    parts = [*told(results.sweep, evidence.note, scale=True), note]
    return _map_figure(drawn, texts, evidence, title, parts, colour_range, scale_title(results.sweep.estimate))


def _map_figure(
    drawn: EffectMap,
    texts: list[str],
    evidence: Certainty,
    title: str,
    parts: list[str],
    colour_range: float | None,
    scale: str,
) -> go.Figure:
    limit = colour_limit(drawn.effects, colour_range)
    figure = cells_figure(drawn.effects, drawn.texts(texts), drawn.cells_of(evidence.significant), limit, scale)
    figure.update_xaxes(**drawn.axis)
    figure.layout.height += drawn.room
    n_columns, n_labels = drawn.effects.shape[1], len(drawn.axis["ticktext"]) if drawn.room else 0
    sizes = {"narrowest": narrowest(n_columns, n_labels), "room_for_numbers": room_for_numbers(n_columns)}
    return finish(figure, title, parts, **sizes, around=(MARGINS, 90 + drawn.room))
