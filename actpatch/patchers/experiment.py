"""An experiment from what is asked to its results: pairs encoded, patches run in each direction, numbers given a shape.

Every patcher goes this way; it says only which patches there are and in which shape results are handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from actpatch.core.direction import Direction
from actpatch.core.edge_patches import GraphPatches
from actpatch.core.sites import Patch
from actpatch.core.warn import warn_user
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.settings import Settings
from actpatch.interventions.sources import References
from actpatch.metrics.base import AnswerMetric
from actpatch.metrics.sequence import SequenceMetric
from actpatch.patchers.answered import measured_answers
from actpatch.patchers.estimates import check_can_be_estimated
from actpatch.results.baselines import warn_about_baselines
from actpatch.results.both import BothDirections
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import Sweep
from actpatch.runs.asked import Asked, library_versions
from actpatch.runs.plan import Plan, plan_of
from actpatch.runs.stored import stored_sweeps
from actpatch.tasks.dataset import CleanPrompts, PatchingDataset
from actpatch.tasks.encoding import EncodedPairs, encode_pairs
from actpatch.tasks.roles import mixed_roles
from actpatch.tasks.unmatched import nothing_written_sentence, sometimes_written_sentence, unmatched_sentence

Results = TypeVar("Results", bound=SweepResults)
PatchesOf: TypeAlias = Callable[[EncodedPairs], Sequence[Patch]]
"""Makes the patches of pairs, seen from the run that is patched: in it their positions are counted."""


def encoded(model: Any, dataset: PatchingDataset, settings: Settings) -> EncodedPairs:
    """The pairs of an experiment as tokens; under noise with the clean prompt on both sides."""
    prompts = dataset if settings.noise is None else CleanPrompts(dataset)
    return encode_pairs(model, prompts, settings.pair_indices)


def run_experiment(
    engine: PatchingEngine,
    shape: Callable[[Sweep], Results],
    pairs: EncodedPairs,
    patches: PatchesOf,
    settings: Settings,
) -> Any:
    """The results of these patches on these pairs, in the direction that is asked for or in both; or what they would
    take, where that is asked."""
    kind = getattr(shape, "__name__", SweepResults.__name__)
    if settings.plan:
        return planned(engine, pairs, patches, settings, kind)
    results = [shape(sweep) for sweep in run_sweeps(engine, pairs, patches, settings, kind)]
    return results[0] if len(results) == 1 else BothDirections(*results)


def planned(
    engine: PatchingEngine, pairs: EncodedPairs, patches: PatchesOf, settings: Settings, kind: str = "SweepResults"
) -> Plan:
    """What these patches on these pairs would take."""
    asked = _asked(engine, pairs, patches, settings)
    return plan_of(engine, asked, kind, settings.stored_in)


def run_sweeps(
    engine: PatchingEngine, pairs: EncodedPairs, patches: PatchesOf, settings: Settings, kind: str = "SweepResults"
) -> list[Sweep]:
    """The raw numbers of these patches on these pairs, per direction, with all that is needed to read them.

    Args:
        kind: the shape in which they are handed out, which a folder that they are stored in names.
    """
    asked = _asked(engine, pairs, patches, settings)
    store = settings.stored_in
    sweeps = asked.sweeps(asked.measured(engine)) if store is None else stored_sweeps(engine, asked, kind, store)
    sweeps = [replace(sweep, run_exactly=ExactRuns(engine, pairs, settings, sweep.direction)) for sweep in sweeps]
    for sentence in asked.warned:
        warn_user(sentence)
    warn_about_baselines(sweeps[0])  # those of the other direction are the same
    return sweeps


def _asked(engine: PatchingEngine, pairs: EncodedPairs, patches: PatchesOf, settings: Settings) -> Asked:
    """The experiment, with everything looked up that its dataset, its source and its metrics say."""
    seen = {direction: pairs.in_direction(direction) for direction in settings.directions}
    of_direction = {direction: patches(of_run) for direction, of_run in seen.items()}
    if len({len(of_run) for of_run in of_direction.values()}) > 1:
        raise ValueError(
            f"a map over all positions in both directions needs prompts of as many tokens in both runs (pair "
            f"{pairs.indices[0]}: {len(pairs.clean[0])} and {len(pairs.corrupted[0])}): name positions, or run each "
            "direction alone"
        )
    metrics = pairs.metrics(settings.metrics)
    if engine.estimate is not None:
        check_can_be_estimated(engine.estimate, settings, pairs, metrics, of_direction[settings.directions[0]])
    reads_answers = any(isinstance(metric, (AnswerMetric, SequenceMetric)) for metric in metrics)
    cut = pairs.first_token_alone if reads_answers else ""
    correct, incorrect = measured_answers(pairs, metrics)
    references = settings.source.references(seen[settings.directions[0]])
    told = {way: _told(of_run, of_direction[way], is_ablation=references is not None) for way, of_run in seen.items()}
    return Asked(
        pairs=pairs,
        patches=of_direction,
        metrics=metrics,
        references=references,
        noise=settings.noise,
        estimate=engine.estimate,
        model=engine.model_name,
        n_layers=engine.n_layers,
        n_heads=engine.n_heads,
        n_key_value_heads=engine.n_key_value_heads,
        dtype=engine.dtype,
        correct=correct,
        incorrect=incorrect,
        source_of_values=settings.source.label,
        source_kind="ablation" if settings.source.is_ablation else "other run",
        versions=library_versions(),
        notes={
            way: tuple(filter(None, [*told[way], *_left_alone(of_run, of_direction[way], references), cut]))
            for way, of_run in seen.items()
        },
        warned=tuple(dict.fromkeys(sentence for sentences in told.values() for sentence in sentences)),
    )


class ExactRuns:
    """Runs patches of an experiment once more, exactly, and knows with what others of its kind can be run.

    Results carry it, so that estimates can be verified, and circuits that are found in any results be run. It holds the
    model: a copy of results that is pickled is without it.

    Args:
        engine: that ran or estimated it.
        pairs: of the experiment.
        settings: of the experiment.
        direction: of these results.
    """

    def __init__(self, engine: PatchingEngine, pairs: EncodedPairs, settings: Settings, direction: Direction) -> None:
        self.engine, self.pairs = engine, pairs
        self.settings = replace(settings, direction=direction, store=None)

    def __call__(self, patches: Sequence[Patch]) -> Sweep:
        """The exact sweep of these patches."""
        return run_sweeps(self.engine.exact(), self.pairs, lambda pairs: patches, self.settings)[0]

    def __reduce__(self) -> Any:
        return type(None), ()


def _told(pairs: EncodedPairs, patches: Sequence[Patch], *, is_ablation: bool) -> list[str]:
    """What is warned of, of the places of these patches."""
    placed = _placed(patches)
    sites = (site for patch in placed for site in patch.sites)
    mixed = mixed_roles(pairs, [site.position for site in sites if isinstance(site.position, int)])
    return [*filter(None, [mixed, "" if is_ablation else nothing_written_sentence(pairs, placed)])]


def _left_alone(pairs: EncodedPairs, patches: Sequence[Patch], references: References | None) -> list[str]:
    """What is said of places without a partner in the other run, of which something is to be written."""
    if references is not None:
        return []
    return [unmatched_sentence(pairs), sometimes_written_sentence(pairs, patches)]


def _placed(patches: Sequence[Patch]) -> Sequence[Patch]:
    """The patches; of many edges one for each place, where all of them lie."""
    if not isinstance(patches, GraphPatches):
        return patches
    return [Patch(place, name=f"an edge{patches.at(column)}") for column, place in enumerate(patches.places)]
