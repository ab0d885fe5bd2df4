"""Where does the value that a patch writes come from?  And which noise makes a corrupted run?  Nothing is run here.

A patch writes, into the run that the direction says (denoising: the corrupted one, noising: the clean one),

    OtherRun()   the activation of the other run of the pair: activation patching (Vig et al. 2020; Meng et al. 2022)
    Zero()       zero: zero ablation
    Mean()       its mean over reference prompts of the same template and length, position by position: mean ablation
                 (Wang et al. 2022, section 3.1)
    Resample()   its value in another pair's prompt of the same template and length, of one or several that are run
                 one by one: resample ablation (Chan et al. 2022, "Causal Scrubbing")

The last three remove what a component says about this prompt: *ablations*. The effect keeps its formula, with the same
two baselines, and means: by which share of the way from the clean to the corrupted metric (noising) does the behaviour
move when the component is removed? 1 is as much as the corruption does. A zero is not a value that a component takes
in any prompt, so what follows it may break for that reason alone; means and other prompts' values stay nearer to what
the model has seen.

`GaussianNoise` makes the corrupted run out of the clean prompt, by noise on the embeddings of chosen tokens.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.direction import Direction
from actpatch.core.indices import check_index, is_integer
from actpatch.core.text import described
from actpatch.core.warn import warn_user
from actpatch.results.sweep import OTHER_RUN as OTHER_RUN_LABEL
from actpatch.tasks.dataset import EncodedPairs, PatchingDataset, TargetTokens, check_is_dataset, named_positions

Prompts = tuple[Int[Tensor, " _"], ...]


@dataclass(frozen=True)
class References:
    """For each run the prompts over which the written activations are averaged; none at all stands for zero."""

    groups: tuple[Prompts, ...]
    """Sets of prompts, all of one length in each."""
    of_pair: tuple[int, ...]
    """Which of the groups is each pair's, as often as there are samples, one after the other."""
    samples: int = 1
    """How many runs each patch has on each pair; the metric is averaged over them."""

    def first_change(self, base: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, " pair"]:
        """First position at which what is written may differ from the run of each of these prompts.

        Before the first token in which any reference prompt differs, all of them hold the prompt's own activations.
        """
        return torch.tensor(
            [
                min((_first_difference(prompt, other) for other in self.groups[group]), default=0)
                for prompt, group in zip(base, self.of_pair)
            ]
        )


class Source(Protocol):
    """Where the values that are written come from."""

    @property
    def label(self) -> str:
        """What is written, for tables."""

    @property
    def is_ablation(self) -> bool: ...


@dataclass(frozen=True)
class OtherRun:
    """The activation of the pair's other run."""

    @property
    def label(self) -> str:
        return OTHER_RUN_LABEL

    @property
    def is_ablation(self) -> bool:
        return False


@dataclass(frozen=True)
class Zero:
    """Zero ablation: zeros are written."""

    @property
    def label(self) -> str:
        return "zero"

    @property
    def is_ablation(self) -> bool:
        return True


@dataclass(frozen=True)
class Mean:
    """Mean ablation: the activation's mean over reference prompts, per position and per template.

    A pair's reference prompts are those of its template (`PatchingDataset.get_template`; where the dataset names
    none, all count as one) that have as many tokens as the pair.
    """

    dataset: PatchingDataset | None = None
    """Whose prompts are averaged; None for the experiment's own dataset, all of its pairs."""
    run: Literal["corrupted", "clean"] = "corrupted"
    """Which prompt of each of its pairs."""

    def __post_init__(self) -> None:
        if self.dataset is not None and not isinstance(self.dataset, PatchingDataset):
            raise ValueError(
                f"Mean is over {described(self.dataset)}, expected a PatchingDataset, or nothing for the "
                "experiment's own corrupted prompts"
            )
        if self.run not in ("corrupted", "clean"):
            raise ValueError(f"Mean is over the run {self.run!r}, expected 'corrupted' or 'clean'")

    @property
    def label(self) -> str:
        whose = "the" if self.dataset is None else f"{self.dataset.name}:"
        return f"the mean over {whose} {self.run} prompts of the same template and length"

    @property
    def is_ablation(self) -> bool:
        return True

    def references(self, pairs: EncodedPairs, pool: EncodedPairs) -> References:
        """The reference prompts of each pair, out of those of `pool`.

        Raises:
            ValueError: where a pair has none.
        """
        keys, prompts = _keys(pool), pool.clean if self.run == "clean" else pool.corrupted
        by_key: dict[tuple[str, int], list[Int[Tensor, " _"]]] = {}
        for key, prompt in zip(keys, prompts):
            by_key.setdefault(key, []).append(prompt)
        wanted = _keys(pairs)
        if lacking := [i for i, key in enumerate(wanted) if key not in by_key]:
            raise ValueError(
                f"{_named(pairs, lacking)} no reference prompt of the same template and length to take the mean over: "
                "give Mean a dataset that has such prompts, or leave the pair out with pair_indices"
            )
        if lone := [i for i, key in enumerate(wanted) if len(by_key[key]) == 1]:
            which = ", the pair's own" if self.dataset is None else ""
            warn_user(
                f"{_named(pairs, lone)} a single reference prompt{which}: what is written is no mean, only the "
                "activation of that prompt. Give Mean a dataset that has more pairs of each template"
            )
        order = {key: i for i, key in enumerate(by_key)}
        return References(tuple(tuple(group) for group in by_key.values()), tuple(order[key] for key in wanted))


@dataclass(frozen=True)
class Resample:
    """Resample ablation: the activation's value in the corrupted prompt of another pair of the dataset.

    The other pair has the same template (where the dataset names templates) and as many tokens. With several samples
    each pair is run with as many others, no one twice, and the metric is averaged over these runs: not the activations,
    whose mean is a value that none of the prompts has (`Mean`).
    """

    seed: int = 0
    """Which others they are depends on the seed, the pair and the dataset alone. The first is the same, however many
    samples there are."""
    samples: int = 1
    """How many other pairs each pair is run with."""

    def __post_init__(self) -> None:
        _check_seed(self.seed)
        object.__setattr__(self, "samples", _checked_samples(self.samples, "Resample"))

    @property
    def label(self) -> str:
        if self.samples == 1:
            return f"another pair's corrupted run, of the same template and length (seed {self.seed})"
        return (
            f"other pairs' corrupted runs, of the same template and length ({self.samples} samples, seed {self.seed})"
        )

    @property
    def is_ablation(self) -> bool:
        return True

    def references(self, pairs: EncodedPairs, pool: EncodedPairs) -> References:
        """The donors of each pair, out of the pairs of `pool`, which are of the same dataset.

        Raises:
            ValueError: where a pair has fewer than there are samples.
        """
        by_key: dict[tuple[str, int], list[int]] = {}
        for i, key in enumerate(_keys(pool)):
            by_key.setdefault(key, []).append(i)
        donors = [
            [i for i in by_key.get(key, []) if pool.indices[i] != index]
            for index, key in zip(pairs.indices, _keys(pairs))
        ]
        if lacking := [i for i, possible in enumerate(donors) if len(possible) < self.samples]:
            found = min(len(donors[i]) for i in lacking)
            raise ValueError(
                f"{_named(pairs, lacking)} {f'fewer than {self.samples}' if self.samples > 1 else 'no'} other "
                f"pair{'s' * (self.samples > 1)} of the same template and length whose value could be taken: make the "
                f"dataset larger, {f'ask for at most {found} samples, ' if found else ''}or leave the pair out with "
                "pair_indices"
            )
        chosen = [
            possible[at]
            for index, possible in zip(pairs.indices, donors)
            for at in np.random.default_rng([self.seed, index]).permutation(len(possible))[: self.samples]
        ]
        group = {i: number for number, i in enumerate(sorted(set(chosen)))}
        return References(tuple((pool.corrupted[i],) for i in group), tuple(group[i] for i in chosen), self.samples)


OTHER_RUN = OtherRun()


def references(
    source: Source, pairs: EncodedPairs, encode: Callable[[PatchingDataset | None], EncodedPairs]
) -> References | None:
    """The prompts whose activations are written into each pair's run; None for its other run.

    Args:
        source: where the values come from.
        pairs: the pairs of the experiment.
        encode: gives all pairs of a dataset, and of the experiment's own for None.

    Raises:
        ValueError: where a pair has no reference prompts.
    """
    if isinstance(source, Mean):
        return source.references(pairs, encode(source.dataset))
    if isinstance(source, Resample):
        return source.references(pairs, encode(None))
    return References(((),), (0,) * len(pairs)) if isinstance(source, Zero) else None


def check_source(source: Source, noise: GaussianNoise | None) -> None:
    """Raises ValueError for what is no source or no noise, and for an ablation together with noise."""
    if not isinstance(source, (OtherRun, Zero, Mean, Resample)):
        given = described(source) if isinstance(source, type) else repr(source)
        raise ValueError(f"source is {given}, expected OtherRun(), Zero(), Mean() or Resample()")
    if noise is None:
        return
    if not isinstance(noise, GaussianNoise):
        raise ValueError(f"noise is {noise!r}, expected GaussianNoise(positions)")
    if source.is_ablation:
        raise ValueError(
            f"noise makes the corrupted run to exchange activations with, but {type(source).__name__}() writes none of "
            "its activations: leave out noise or source"
        )


def direction_of(source: Source, direction: Direction | None) -> Direction:
    """The direction asked for; by default an ablation is of the clean run, and other patches restore the corrupted."""
    if direction is not None:
        return direction
    return "noising" if source.is_ablation else "denoising"


@dataclass(frozen=True)
class GaussianNoise:
    """The corrupted run is the clean prompt with noise on the embeddings of chosen tokens: causal tracing.

    Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 2. The noise is normal, independent in
    every entry, and its standard deviation is `multiple` times that of the token embeddings: of all entries of the
    embeddings of the whole vocabulary, as they pass `hook_embed` (for most models the matrix W_E, without positional
    embeddings). The authors' code takes it over the tokens of its data's subjects alone, which depends on the data at
    hand. The metric is averaged over the samples of each pair, so that pairs stay the unit of all statistics.
    """

    positions: int | str | Sequence[int | str]
    """Which tokens: positions (negative ones count from the end) or names that the task gives them; one or several."""
    multiple: float = 3.0
    samples: int = 10
    """How many draws of the noise each pair is run with."""
    seed: int = 0
    """The noise is a function of the seed, the pair's index in its dataset and the number of the sample alone."""

    def __post_init__(self) -> None:
        multiple = self.multiple
        if isinstance(multiple, bool) or not isinstance(multiple, Real) or not 0 <= multiple < np.inf:
            raise ValueError(f"noise multiple is {multiple!r}, expected a number of at least 0, usually 3")
        object.__setattr__(self, "samples", _checked_samples(self.samples, "noise"))
        _check_seed(self.seed)
        places = as_list(self.positions)
        if not places:
            raise ValueError("noise positions is empty: give at least one token to put noise on")
        object.__setattr__(self, "positions", tuple(dict.fromkeys(places)))

    @property
    def label(self) -> str:
        where = ", ".join(map(str, as_list(self.positions)))
        draws = f"{self.samples} sample{'' if self.samples == 1 else 's'}"
        return f"Gaussian noise at {where} of {self.multiple:g} × the embeddings' sd ({draws}, seed {self.seed})"

    def placed(self, pairs: EncodedPairs, deviation: Callable[[], float]) -> PlacedNoise:
        """The noise of each pair and sample.

        Args:
            pairs: the pairs.
            deviation: finds the standard deviation of the embeddings; called only once the positions are known.

        Raises:
            ValueError: for a position out of range or a name that a pair lacks.
        """
        per_place = [positions_in_pairs(place, pairs) for place in as_list(self.positions)]
        where = [tuple(sorted(set(at))) for at in zip(*per_place)]
        return PlacedNoise(
            positions=tuple(at for at in where for _ in range(self.samples)),
            keys=tuple((self.seed, index, sample) for index in pairs.indices for sample in range(self.samples)),
            deviation=self.multiple * deviation(),
        )


@dataclass(frozen=True)
class PlacedNoise:
    """Noise for each run of an experiment: its pairs, each as often as there are samples."""

    positions: tuple[tuple[int, ...], ...]
    """The noised positions of each run, in order."""
    keys: tuple[tuple[int, int, int], ...]
    """(seed, pair's index in its dataset, sample): what each run's noise is drawn from."""
    deviation: float

    @property
    def first_change(self) -> Int[Tensor, " run"]:
        """First noised position of each run."""
        return torch.tensor([at[0] for at in self.positions])

    def values(self, runs: Sequence[int], length: int, d_model: int) -> Float[Tensor, "run pos d_model"]:
        """What is added to the embeddings of these runs."""
        added = torch.zeros(len(runs), length, d_model)
        for row, run in enumerate(runs):
            drawn = np.random.default_rng(self.keys[run]).standard_normal((len(self.positions[run]), d_model))
            added[row, list(self.positions[run])] = self.deviation * torch.from_numpy(drawn).float()
        return added


class CleanPrompts(PatchingDataset):
    """A dataset's clean prompts on both sides, for experiments whose corrupted run is made by noise.

    The corrupted prompts of the dataset are not looked at, and a pair may be a single prompt.
    """

    def __init__(self, dataset: PatchingDataset) -> None:
        check_is_dataset(dataset)
        self.dataset = dataset

    @property
    def name(self) -> str:
        return self.dataset.name

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        prompts = [pair if isinstance(pair, str) else pair[0] for pair in self.dataset.get_clean_corrupt_pairs()]
        return [(prompt, prompt) for prompt in prompts]

    def get_target_tokens(self, pair_idx: int) -> tuple[TargetTokens, TargetTokens]:
        return self.dataset.get_target_tokens(pair_idx)

    def get_positions(self, pair_idx: int) -> Mapping[str, int]:
        return self.dataset.get_positions(pair_idx)

    def get_template(self, pair_idx: int) -> str:
        return self.dataset.get_template(pair_idx)


def positions_in_pairs(place: int | str, pairs: EncodedPairs) -> tuple[int, ...]:
    """Where a position, or one that the task names, stands in each pair, counted from the front.

    Raises:
        ValueError: where it is out of range, or a pair has no position of this name.
    """
    if isinstance(place, str):
        return named_positions(pairs, place)
    return tuple(
        check_index(place, n, f"position (in pair {pair}, of {n} tokens)")
        for pair, n in zip(pairs.indices, pairs.lengths.tolist())
    )


def as_list(positions: Any) -> list[int | str]:
    """One or several positions or names as a list.

    Raises:
        ValueError: for what is neither an integer nor a name.
    """
    several = isinstance(positions, Iterable) and not isinstance(positions, str) and not is_integer(positions)
    places = list(positions) if several else [positions]
    if wrong := [place for place in places if not isinstance(place, str) and not is_integer(place)]:
        raise ValueError(f"position {wrong[0]!r} is not an integer, and no name of one")
    return [place if isinstance(place, str) else operator.index(place) for place in places]


def _keys(pairs: EncodedPairs) -> list[tuple[str, int]]:
    """(template, number of tokens) of each pair."""
    templates = pairs.templates or ("",) * len(pairs)
    return list(zip(templates, pairs.lengths.tolist()))


def _named(pairs: EncodedPairs, lacking: Sequence[int]) -> str:
    i = lacking[0]
    template, length = _keys(pairs)[i]
    which = f"pair {pairs.indices[i]} ({f'template {template!r}, ' if template else ''}{length} tokens)"
    return which + (" has" if len(lacking) == 1 else f" and {len(lacking) - 1} more have")


def _checked_samples(samples: int, whose: str) -> int:
    if not is_integer(samples) or samples < 1:
        raise ValueError(f"{whose} samples is {samples!r}, expected at least 1, an integer")
    return operator.index(samples)


def _check_seed(seed: int) -> None:
    if not is_integer(seed) or seed < 0:
        raise ValueError(f"seed is {seed!r}, expected an integer of at least 0")


def _first_difference(one: Int[Tensor, " _"], other: Int[Tensor, " _"]) -> int:
    differs = (one != other).nonzero()
    return int(differs[0]) if len(differs) else len(one)
