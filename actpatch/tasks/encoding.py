"""The one front desk for prompts: a dataset comes in, checked tokens go out, with all that later steps need of it.

Every fault of the pairs that can be found before a model is run is found here. Nothing here runs a model.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from actpatch.core.indices import check_index, check_indices, is_integer
from actpatch.core.text import MOST_LISTED, shortened
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import AnswerMetric, Answers, Metric
from actpatch.metrics.chosen import MetricChoice, choose_metrics
from actpatch.tasks.answers import check_answers, checked_targets, has_own_metric, n_answers, of_pairs, own_metric
from actpatch.tasks.dataset import PatchingDataset, check_is_dataset, pairs_of
from actpatch.tasks.tokens import (
    WrongTokenizer,
    as_list,
    compare_lengths,
    encode_prompt,
    first_difference,
    token_strings,
)
from actpatch.tasks.vocabulary import check_made_for

_ALONE = "; a clean prompt alone needs noise=GaussianNoise(...), which makes the corrupted run"


@dataclass(frozen=True)
class Origin:
    """Where encoded pairs come from."""

    model: Any
    dataset: PatchingDataset


@dataclass(frozen=True)
class EncodedPairs:
    """The pairs of an experiment as tokens, checked, with what later steps need of their dataset."""

    indices: tuple[int, ...]
    """Index of each pair in its dataset."""
    clean: tuple[Int[Tensor, " _"], ...]
    """Token ids of each clean prompt, of its own length, BOS included where the model prepends one to a text."""
    corrupted: tuple[Int[Tensor, " _"], ...]
    clean_tokens: tuple[tuple[str, ...], ...]
    """Token strings of each clean prompt; the ids as texts where the model has no tokenizer."""
    corrupted_tokens: tuple[tuple[str, ...], ...]
    positions: tuple[Mapping[str, int], ...] = ()
    """Named positions of each pair, counted from the front; empty where the pairs were not made from a dataset."""
    templates: tuple[str, ...] = ()
    """Key of each pair's template, an empty text where the dataset names none; empty as the positions are."""
    groups: tuple[str, ...] = ()
    """Group of each pair (`PatchingDataset.get_group`), an empty text where there is none; empty as positions are."""
    task: str = ""
    """Name of the dataset, with its corruption."""
    varies: str = ""
    """Which signal of the clean prompt the corruption changes; empty where that is not said."""
    seed: int | None = None
    """The seed that the dataset's pairs were drawn from; None where they were not drawn."""
    origin: Origin | None = field(default=None, repr=False, compare=False)
    """None where the pairs were not made from a dataset."""

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def lengths(self) -> Int[Tensor, " pair"]:
        """Number of tokens of each pair's prompts."""
        return torch.tensor([len(tokens) for tokens in self.clean])

    @property
    def first_difference(self) -> Int[Tensor, " pair"]:
        """First position at which clean and corrupted differ; the length, where they do not."""
        return torch.tensor(
            [first_difference(clean, corrupted) for clean, corrupted in zip(self.clean, self.corrupted)]
        )

    @cached_property
    def answers(self) -> Answers:
        """The right and the wrong answers to each clean prompt.

        Raises:
            ValueError: where one is not one token of the model's vocabulary, or is both.
        """
        origin = self._known_origin
        targets = [checked_targets(origin.model, origin.dataset, i) for i in self.indices]
        correct, incorrect = zip(*targets)
        return Answers(correct, incorrect, self.indices)

    @property
    def has_own_metric(self) -> bool:
        """Whether their dataset measures something of its own."""
        return has_own_metric(self._known_origin.dataset)

    def metrics(self, asked: MetricChoice = None) -> tuple[Metric, ...]:
        """The metrics to measure on these pairs.

        Args:
            asked: names, `Metric` objects, or both (`METRICS`). The dataset's own, which None stands for, is its
                `compute_metric` where it has one, else the logit difference.

        Raises:
            ValueError: for an unknown metric, where one needs an answer that a pair has not, where an answer is not one
                token of the model's vocabulary, where a `Metric` object was made for other pairs, and where the dataset
                says of its own metric what is no name, no unit or no truth value.
        """
        origin = self._known_origin

        def own() -> Metric:
            if self.has_own_metric:
                return own_metric(origin.dataset, self.indices)
            return LogitDifference(self.answers)

        chosen = [of_pairs(metric, self.indices) for metric in choose_metrics(asked, own, lambda: self.answers)]
        for metric in chosen:
            if isinstance(metric, AnswerMetric):
                check_answers(metric, len(self), n_answers(origin.model))
        return tuple(chosen)

    def all_of(self, dataset: PatchingDataset | None = None) -> EncodedPairs:
        """All pairs of the dataset that these are from, or of another one, as tokens of the same model."""
        if self.origin is None and dataset is None:
            return self
        origin = self._known_origin
        return encode_pairs(origin.model, origin.dataset if dataset is None else dataset)

    def repeated(self, times: int) -> EncodedPairs:
        """Each pair so many times, one after the other."""

        def many(per_pair: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(value for value in per_pair for _ in range(times))

        return replace(
            self,
            indices=many(self.indices),
            clean=many(self.clean),
            corrupted=many(self.corrupted),
            clean_tokens=many(self.clean_tokens),
            corrupted_tokens=many(self.corrupted_tokens),
            positions=many(self.positions),
            templates=many(self.templates),
            groups=many(self.groups),
        )

    @property
    def _known_origin(self) -> Origin:
        if self.origin is None:
            raise ValueError(
                "these pairs were made as tokens: they have neither answers nor a metric, nor a model to encode others"
            )
        return self.origin


def encode_pairs(model: Any, dataset: PatchingDataset, pair_indices: Sequence[int] | None = None) -> EncodedPairs:
    """The dataset's pairs as tokens.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`, for its tokenizer and the sizes of what it reads.
        dataset: the pairs.
        pair_indices: which pairs to use, negative ones counting from the end; None for all.

    Raises:
        ValueError: for an empty dataset, a pair index out of range or given twice, a pair that is not two prompts, a
            text where the model has no tokenizer and a dataset that was made for another one (both `WrongTokenizer`), a
            word that the tokenizer does not know, a token id outside the vocabulary, prompts of different token
            lengths, or longer than the context, a named position outside its prompt, a template key or a group that is
            no text, and a seed that is no integer.
    """
    check_is_dataset(dataset)
    pairs = pairs_of(dataset)
    indices = chosen_indices(dataset.name, len(pairs), pair_indices)
    check_made_for(model, dataset, pairs)
    encoded = [_encode_pair(model, pairs[i], i) for i in indices]
    return EncodedPairs(
        indices=indices,
        clean=tuple(clean for clean, _ in encoded),
        corrupted=tuple(corrupted for _, corrupted in encoded),
        clean_tokens=tuple(token_strings(model, clean) for clean, _ in encoded),
        corrupted_tokens=tuple(token_strings(model, corrupted) for _, corrupted in encoded),
        positions=tuple(_checked_positions(dataset, i, len(clean)) for i, (clean, _) in zip(indices, encoded)),
        templates=tuple(_checked_key(dataset, "get_template", i) for i in indices),
        groups=tuple(_checked_key(dataset, "get_group", i) for i in indices),
        task=dataset.name,
        varies=dataset.varies,
        seed=_checked_seed(dataset),
        origin=Origin(model, dataset),
    )


def chosen_indices(name: str, n_pairs: int, pair_indices: Sequence[int] | None) -> tuple[int, ...]:
    """The pairs that are asked for of a dataset of this name and size, counted from its start.

    Raises:
        ValueError: for an empty dataset or choice, and a pair index out of range or given twice.
    """
    if not n_pairs:
        raise ValueError(f"the dataset {name!r} has no pairs: get_clean_corrupt_pairs() returned none")
    chosen = range(n_pairs) if pair_indices is None else pair_indices
    indices = tuple(check_indices(chosen, n_pairs, "pair_indices", "pair index"))
    if len(set(indices)) < len(indices):
        raise ValueError(f"pair_indices {list(indices)} names a pair twice: give each pair once")
    return indices


def named_positions(pairs: EncodedPairs, name: str) -> tuple[int, ...]:
    """Where this name stands in each pair.

    Raises:
        ValueError: where a pair has no position of that name, with the pairs that lack it and the names they have.
    """
    positions = pairs.positions or ({},) * len(pairs)
    lacking = [(pair, has) for pair, has in zip(pairs.indices, positions) if name not in has]
    if lacking:
        listed = "; ".join(f"pair {pair} has {', '.join(has) or 'none'}" for pair, has in lacking[:MOST_LISTED])
        more = f"; and {len(lacking) - MOST_LISTED} more" if len(lacking) > MOST_LISTED else ""
        raise ValueError(
            f"{len(lacking)} of {len(pairs)} pairs have no position named {name!r}: {listed}{more}. Choose another "
            "name, leave these pairs out with pair_indices, or name the position in the dataset's get_positions"
        )
    return tuple(has[name] for has in positions)


def _checked_seed(dataset: PatchingDataset) -> int | None:
    """The seed of the dataset, as results keep it.

    Raises:
        ValueError: where it is neither an integer nor None.
    """
    if dataset.seed is not None and not is_integer(dataset.seed):
        raise ValueError(
            f"the dataset {dataset.name!r} has the seed {dataset.seed!r}, expected the integer that its pairs were "
            "drawn from, or None"
        )
    return None if dataset.seed is None else operator.index(dataset.seed)


def _encode_pair(model: Any, pair: Any, index: int) -> tuple[Int[Tensor, " pos"], Int[Tensor, " pos"]]:
    prompts = as_list(pair) or []
    if len(prompts) != 2 or not all(as_list(p) is not None or (isinstance(p, str) and p) for p in prompts):
        raise ValueError(
            f"pair {index} is {shortened(pair)}, expected (clean prompt, corrupted prompt), two texts or lists of "
            f"token ids{_ALONE if isinstance(pair, str) else ''}"
        )
    try:
        clean, corrupted = (encode_prompt(model, prompt) for prompt in prompts)
    except WrongTokenizer:
        raise
    except ValueError as error:
        raise ValueError(f"pair {index}: {error}") from None
    if len(clean) != len(corrupted):
        raise ValueError(
            f"pair {index}: {compare_lengths(model, clean, corrupted)}. Activations are exchanged position by "
            "position, so both need the same number of tokens: replace words by words of as many tokens"
        )
    return clean, corrupted


def _checked_positions(dataset: PatchingDataset, index: int, length: int) -> dict[str, int]:
    positions = dataset.get_positions(index)
    if not isinstance(positions, Mapping):
        raise ValueError(f"pair {index}: get_positions returned {positions!r}, expected a mapping name -> position")
    found: dict[str, Any] = {}
    for name, at in positions.items():
        what = f"pair {index}, {length} tokens long: position {name!r}"
        found[name] = (
            tuple(check_index(one, length, what) for one in at)
            if isinstance(at, (list, tuple))
            else check_index(at, length, what)  # type: ignore[arg-type]
        )
    return found


def _checked_key(dataset: PatchingDataset, method: str, index: int) -> str:
    key = getattr(dataset, method)(index)
    if not isinstance(key, str):
        what = method.removeprefix("get_")
        raise ValueError(f"pair {index}: {method} returned {key!r}, expected a text, empty for no {what}")
    return key
