"""An experiment from what is asked to its results: pairs encoded, patches run in each direction, numbers given a shape.

Every patcher goes this way; it says only which patches there are and in which shape results are handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any, TypeAlias, TypeVar

from actpatch.core.direction import Direction
from actpatch.core.edge_patches import EdgePatches, GraphPatches
from actpatch.core.path_patches import HeadPaths
from actpatch.core.sites import Patch
from actpatch.core.warn import warn_user
from actpatch.engine.engine import PatchingEngine
from actpatch.interventions.settings import Settings
from actpatch.metrics.base import AnswerMetric
from actpatch.metrics.sequence import SequenceMetric
from actpatch.patchers.answered import measured_answers
from actpatch.patchers.estimates import check_can_be_estimated
from actpatch.results.baselines import warn_about_baselines
from actpatch.results.both import BothDirections
from actpatch.results.metric_values import MetricValues
from actpatch.results.shapes import SweepResults
from actpatch.results.sweep import Sweep
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
) -> Results | BothDirections[Results]:
    """The results of these patches on these pairs, in the direction that is asked for or in both."""
    results = [shape(sweep) for sweep in run_sweeps(engine, pairs, patches, settings)]
    return results[0] if len(results) == 1 else BothDirections(*results)


def run_sweeps(engine: PatchingEngine, pairs: EncodedPairs, patches: PatchesOf, settings: Settings) -> list[Sweep]:
    """The raw numbers of these patches on these pairs, per direction, with all that is needed to read them."""
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
    told = {
        direction: _told(of_run, of_direction[direction], is_ablation=references is not None)
        for direction, of_run in seen.items()
    }
    left_alone = {
        direction: []
        if references is not None
        else [unmatched_sentence(of_run), sometimes_written_sentence(of_run, of_direction[direction])]
        for direction, of_run in seen.items()
    }
    measured = engine.sweeps(pairs, of_direction, metrics, references=references, noise=settings.noise)
    sweeps = [
        Sweep(
            patches=_kept(of_direction[direction]),
            measured=tuple(
                MetricValues(metric.name, metric.unit, metric.more_is_better, *values)
                for metric, *values in zip(metrics, runs.patched, runs.clean, runs.corrupted)
            ),
            direction=direction,
            model=engine.model_name,
            n_layers=engine.n_layers,
            n_heads=engine.n_heads,
            n_key_value_heads=engine.n_key_value_heads,
            task=pairs.task,
            pair_indices=pairs.indices,
            clean_tokens=pairs.clean_tokens,
            corrupted_tokens=pairs.corrupted_tokens,
            matches=pairs.matches,
            templates=pairs.templates,
            groups=pairs.groups,
            correct=correct,
            incorrect=incorrect,
            path=_path_of(of_direction[direction]),
            source_of_values=settings.source.label,
            source_kind="ablation" if settings.source.is_ablation else "other run",
            noise="" if settings.noise is None else settings.noise.label,
            varies=pairs.varies,
            dataset_seed=pairs.seed,
            dtype=engine.dtype,
            shortcuts=runs.shortcuts,
            estimate=engine.estimate,
            run_exactly=ExactRuns(engine, pairs, settings, direction),
            notes=(*filter(None, [*told[direction], *left_alone[direction], cut]), *runs.notes),
            versions={name: version(name) for name in ("torch", "transformer_lens", "transformers")},
        )
        for direction, runs in zip(settings.directions, measured)
    ]
    for sentence in dict.fromkeys(sentence for sentences in told.values() for sentence in sentences):
        warn_user(sentence)
    warn_about_baselines(sweeps[0])  # those of the other direction are the same
    return sweeps


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
        self.engine, self.pairs, self.settings = engine, pairs, replace(settings, direction=direction)

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


def _placed(patches: Sequence[Patch]) -> Sequence[Patch]:
    """The patches; of many edges one for each place, where all of them lie."""
    if not isinstance(patches, GraphPatches):
        return patches
    return [Patch(place, name=f"an edge{patches.at(column)}") for column, place in enumerate(patches.places)]


def _path_of(patches: Sequence[Patch]) -> str:
    """By which way heads send to others, in words; empty for patches of anything else."""
    return patches.described if isinstance(patches, HeadPaths) else ""


def _kept(patches: Sequence[Patch]) -> Sequence[Patch]:
    """As results keep them: edges as arrays, which may be a million, others one by one."""
    return patches if isinstance(patches, EdgePatches) else tuple(patches)
