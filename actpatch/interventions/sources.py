"""Sources: where the value that a patch writes comes from.

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
Nothing here is run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from actpatch.core.text import described
from actpatch.core.warn import warn_user
from actpatch.interventions.draws import check_seed, checked_samples
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.encoding import EncodedPairs
from actpatch.tasks.tokens import first_difference

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

    def repeated(self, times: Sequence[int]) -> References:
        """Each run so many times, one after the other."""
        return replace(self, of_pair=tuple(group for group, count in zip(self.of_pair, times) for _ in range(count)))

    def first_change(self, base: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, " pair"]:
        """First position at which what is written may differ from the run of each of these prompts.

        Before the first token in which any reference prompt differs, all of them hold the prompt's own activations.
        """
        return torch.tensor(
            [
                min((first_difference(prompt, other) for other in self.groups[group]), default=0)
                for prompt, group in zip(base, self.of_pair)
            ]
        )


class Source(ABC):
    """Where the values that are written come from. To add one is to subclass this, as a frozen dataclass."""

    is_ablation: ClassVar[bool] = True
    """Whether what is written is of neither run of the pair."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What is written, for tables."""

    @abstractmethod
    def references(self, pairs: EncodedPairs) -> References | None:
        """The prompts whose mean activations are written into each pair's run; None for the pair's other run.

        Args:
            pairs: the pairs, seen from the run that is patched, whose numbers of tokens are `pairs.lengths`.

        Raises:
            ValueError: where a pair has none.
        """


@dataclass(frozen=True)
class OtherRun(Source):
    """The activation of the pair's other run."""

    is_ablation: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return "the other run"

    def references(self, pairs: EncodedPairs) -> None:
        return None


@dataclass(frozen=True)
class Zero(Source):
    """Zero ablation: zeros are written."""

    @property
    def label(self) -> str:
        return "zero"

    def references(self, pairs: EncodedPairs) -> References:
        return References(((),), (0,) * len(pairs))


@dataclass(frozen=True)
class Mean(Source):
    """Mean ablation: the activation's mean over reference prompts, per position and per template.

    A pair's reference prompts are those of its template (`PatchingDataset.get_template`; where the dataset names
    none, all count as one) that have as many tokens as the pair's prompt that is patched.
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

    def references(self, pairs: EncodedPairs) -> References:
        pool = pairs.all_of(self.dataset)
        prompts = pool.clean if self.run == "clean" else pool.corrupted
        keys = _keys(pool, prompts)
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
class Resample(Source):
    """Resample ablation: the activation's value in the corrupted prompt of another pair of the dataset.

    The other pair has the same template (where the dataset names templates), and its corrupted prompt as many tokens as
    the prompt that is patched. With several samples
    each pair is run with as many others, no one twice, and the metric is averaged over these runs: not the activations,
    whose mean is a value that none of the prompts has (`Mean`).
    """

    seed: int = 0
    """Which others they are depends on the seed, the pair and the dataset alone. The first is the same, however many
    samples there are."""
    samples: int = 1
    """How many other pairs each pair is run with."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        object.__setattr__(self, "samples", checked_samples(self.samples, "Resample"))

    @property
    def label(self) -> str:
        if self.samples == 1:
            return f"another pair's corrupted run, of the same template and length (seed {self.seed})"
        return (
            f"other pairs' corrupted runs, of the same template and length ({self.samples} samples, seed {self.seed})"
        )

    def references(self, pairs: EncodedPairs) -> References:
        """The donors of each pair, out of all pairs of its dataset.

        Raises:
            ValueError: where a pair has fewer than there are samples.
        """
        pool = pairs.all_of()
        by_key: dict[tuple[str, int], list[int]] = {}
        for i, key in enumerate(_keys(pool, pool.corrupted)):
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


def _keys(pairs: EncodedPairs, prompts: Prompts | None = None) -> list[tuple[str, int]]:
    """(template, number of tokens) of each pair's prompt: of these, or of the run that is patched."""
    templates = pairs.templates or ("",) * len(pairs)
    lengths = pairs.lengths.tolist() if prompts is None else map(len, prompts)
    return list(zip(templates, lengths))


def _named(pairs: EncodedPairs, lacking: Sequence[int]) -> str:
    i = lacking[0]
    template, length = _keys(pairs)[i]
    which = f"pair {pairs.indices[i]} ({f'template {template!r}, ' if template else ''}{length} tokens)"
    return which + (" has" if len(lacking) == 1 else f" and {len(lacking) - 1} more have")
