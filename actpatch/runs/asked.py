"""What an experiment asks of the engine, as one value: it can be cut into parts, run, and turned into sweeps.

Everything is settled here that a dataset, a source or a metric's name had to be looked up for. Nothing here knows a
file, and only `measured` runs a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from actpatch.core.direction import Direction
from actpatch.core.edge_patches import EdgePatches
from actpatch.core.estimates import Estimate
from actpatch.core.path_patches import HeadPaths
from actpatch.core.sites import Patch
from actpatch.engine.engine import PatchingEngine
from actpatch.engine.measured import Measured
from actpatch.interventions.noise import GaussianNoise
from actpatch.interventions.sources import References
from actpatch.metrics.chosen import AnyMetric
from actpatch.results.answers import AnswerSet
from actpatch.results.metric_values import MetricValues
from actpatch.results.sweep import SourceKind, Sweep
from actpatch.runs.metrics import metric_of_pairs
from actpatch.runs.patches import part_of_patches
from actpatch.tasks.encoding import EncodedPairs

_OF_PAIRS = (
    *("indices", "clean", "corrupted", "clean_tokens", "corrupted_tokens", "positions", "templates", "groups"),
    *("appended", "corrupted_positions", "matches"),
)


@dataclass(frozen=True)
class Asked:
    """Patches on pairs, in one direction or both, with all that results say besides numbers."""

    pairs: EncodedPairs
    patches: Mapping[Direction, Sequence[Patch]]
    """As many in each direction, of the same hook points."""
    metrics: tuple[AnyMetric, ...]
    references: References | None
    noise: GaussianNoise | None
    estimate: Estimate | None
    model: str
    n_layers: int
    n_heads: int
    n_key_value_heads: int
    dtype: str
    correct: tuple[AnswerSet, ...]
    incorrect: tuple[AnswerSet, ...]
    source_of_values: str
    source_kind: SourceKind
    versions: Mapping[str, str]
    notes: Mapping[Direction, tuple[str, ...]] = field(default_factory=dict)
    """What is to be said of the pairs and patches of each direction, before anything of how they were run."""
    warned: tuple[str, ...] = ()
    """Sentences among them of which the user is warned."""

    @property
    def n_patches(self) -> int:
        return len(next(iter(self.patches.values())))

    @property
    def samples(self) -> int:
        """How many runs there are of each patch on each pair, whole answers left out."""
        if self.references is not None:
            return self.references.samples
        return 1 if self.noise is None else self.noise.samples

    @property
    def path(self) -> str:
        """By which way heads send to others, in words; empty for patches of anything else."""
        patches = next(iter(self.patches.values()))
        return patches.described if isinstance(patches, HeadPaths) else ""

    def part(self, pairs: Sequence[int], patches: slice) -> Asked:
        """These patches on these pairs, by their place in it."""
        return replace(
            self,
            pairs=_pairs_taken(self.pairs, pairs),
            patches={way: part_of_patches(of_way, patches, pairs) for way, of_way in self.patches.items()},
            metrics=tuple(metric_of_pairs(metric, pairs) for metric in self.metrics),
            references=None if self.references is None else _references_taken(self.references, pairs),
            correct=tuple(self.correct[i] for i in pairs) if self.correct else (),
            incorrect=tuple(self.incorrect[i] for i in pairs) if self.incorrect else (),
        )

    def measured(self, engine: PatchingEngine) -> list[Measured]:
        """The numbers, per direction."""
        how: dict[str, Any] = {"references": self.references, "noise": self.noise}
        return engine.sweeps(self.pairs, self.patches, self.metrics, **how)

    def sweeps(self, measured: Sequence[Measured]) -> list[Sweep]:
        """These numbers with all that is needed to read them, per direction."""
        pairs = self.pairs
        return [
            Sweep(
                patches=patches if isinstance(patches, EdgePatches) else tuple(patches),
                measured=tuple(
                    MetricValues(metric.name, metric.unit, metric.more_is_better, *values)
                    for metric, *values in zip(self.metrics, runs.patched, runs.clean, runs.corrupted)
                ),
                direction=direction,
                model=self.model,
                n_layers=self.n_layers,
                n_heads=self.n_heads,
                n_key_value_heads=self.n_key_value_heads,
                task=pairs.task,
                pair_indices=pairs.indices,
                clean_tokens=pairs.clean_tokens,
                corrupted_tokens=pairs.corrupted_tokens,
                matches=pairs.matches,
                templates=pairs.templates,
                groups=pairs.groups,
                correct=self.correct,
                incorrect=self.incorrect,
                path=self.path,
                source_of_values=self.source_of_values,
                source_kind=self.source_kind,
                noise="" if self.noise is None else self.noise.label,
                varies=pairs.varies,
                dataset_seed=pairs.seed,
                dtype=self.dtype,
                shortcuts=runs.shortcuts,
                estimate=self.estimate,
                notes=(*self.notes.get(direction, ()), *runs.notes),
                versions=dict(self.versions),
            )
            for (direction, patches), runs in zip(self.patches.items(), measured)
        ]


def library_versions() -> dict[str, str]:
    """Versions of the libraries that compute numbers."""
    return {name: version(name) for name in ("torch", "transformer_lens", "transformers")}


def _pairs_taken(pairs: EncodedPairs, numbers: Sequence[int]) -> EncodedPairs:
    some: dict[str, Any] = {
        name: tuple(of_pairs[i] for i in numbers) for name in _OF_PAIRS if (of_pairs := getattr(pairs, name))
    }
    return replace(pairs, **some)


def _references_taken(references: References, numbers: Sequence[int]) -> References:
    """Those of these pairs, with no group that none of them has."""
    samples = references.samples
    of_pair = [references.of_pair[i * samples + sample] for i in numbers for sample in range(samples)]
    used = {group: number for number, group in enumerate(dict.fromkeys(of_pair))}
    return References(
        tuple(references.groups[group] for group in used), tuple(used[group] for group in of_pair), samples
    )
