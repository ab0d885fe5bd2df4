"""The one front desk for prompts: a dataset comes in, checked tokens go out, with all that later steps need of it.

Every fault of the pairs that can be found before a model is run is found here. Nothing here runs a model.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from actpatch.core.alignment import Matches, Span, flipped, identity, span_of
from actpatch.core.direction import Direction
from actpatch.core.indices import check_indices, is_integer
from actpatch.core.text import MOST_LISTED, count, share_of_pairs, shortened
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import AnswerMetric, Answers, AnswerSequences, Metric
from actpatch.metrics.chosen import AnyMetric, MetricChoice, choose_metrics
from actpatch.metrics.sequence import SequenceMetric
from actpatch.tasks.alignment import PairPositions, pair_positions
from actpatch.tasks.answers import (
    Known,
    check_answers,
    checked_sequences,
    checked_targets,
    cut_answer,
    has_own_metric,
    n_answers,
    of_pairs,
    own_metric,
)
from actpatch.tasks.batches import FEWEST, prompts_of_all
from actpatch.tasks.dataset import PatchingDataset, check_is_dataset, pairs_of
from actpatch.tasks.labels import check_labels, labelled
from actpatch.tasks.targets import named
from actpatch.tasks.tokens import (
    WrongTokenizer,
    as_list,
    compare_lengths,
    encode_prompt,
    first_difference,
    has_tokenizer,
    named_in_chat,
)
from actpatch.tasks.vocabulary import check_made_for

_WITHIN = re.compile(r"(.+)\[(-?\d+)\]")
"""A name of a span, and which of its tokens."""
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
    """Token strings of each clean prompt, as the dataset's `token_labels` or the model's tokenizer give them; else the
    ids as texts."""
    corrupted_tokens: tuple[tuple[str, ...], ...]
    positions: tuple[Mapping[str, Span], ...] = ()
    """Named positions of each pair's clean prompt, counted from the front; empty where the pairs were not made from a
    dataset. They are those of both prompts, unless there are `corrupted_positions`."""
    templates: tuple[str, ...] = ()
    """Key of each pair's template, an empty text where the dataset names none; empty as the positions are."""
    groups: tuple[str, ...] = ()
    """Group of each pair (`PatchingDataset.get_group`), an empty text where there is none; empty as positions are."""
    appended: tuple[int, ...] = ()
    """How many of each pair's last tokens follow its prompts, the beginning of an answer, the same in both runs; empty
    where none do."""
    task: str = ""
    """Name of the dataset, with its corruption."""
    varies: str = ""
    """Which signal of the clean prompt the corruption changes; empty where that is not said."""
    seed: int | None = None
    """The seed that the dataset's pairs were drawn from; None where they were not drawn."""
    origin: Origin | None = field(default=None, repr=False, compare=False)
    """None where the pairs were not made from a dataset."""
    corrupted_positions: tuple[Mapping[str, Span], ...] = ()
    """Named positions of each pair's corrupted prompt; empty where they are those of the clean one."""
    matches: tuple[Matches, ...] = ()
    """Which positions of each pair's prompts stand for each other; empty where, in every pair, each one stands for that
    of its own number."""
    patched: Literal["clean", "corrupted"] = "clean"
    """The run that is patched, whose tokens and names are counted (`in_direction`). It makes a difference only where
    the prompts of a pair do not go together token by token."""

    def __post_init__(self) -> None:
        lengths = [(len(clean), len(corrupted)) for clean, corrupted in zip(self.clean, self.corrupted)]
        if not self.matches and (other := [i for i, (clean, corrupted) in enumerate(lengths) if clean != corrupted]):
            raise ValueError(
                f"pair {self.indices[other[0]]}: the prompts have {lengths[other[0]][0]} and "
                f"{lengths[other[0]][1]} tokens, and no matches say which of them stand for each other"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def in_direction(self, direction: Direction) -> EncodedPairs:
        """The same pairs, seen from the run that is patched in this direction."""
        return replace(self, patched="corrupted" if direction == "denoising" else "clean")

    @property
    def lengths(self) -> Int[Tensor, " pair"]:
        """Number of tokens of each pair in the run that is patched: of its prompt, and of what is appended to it."""
        return torch.tensor([len(tokens) for tokens in getattr(self, self.patched)])

    @property
    def other_lengths(self) -> Int[Tensor, " pair"]:
        """Number of tokens of each pair in the other run, likewise."""
        return torch.tensor([len(tokens) for tokens in (self.clean if self.patched == "corrupted" else self.corrupted)])

    @property
    def longest(self) -> int:
        """Number of tokens of the longest run."""
        return max(map(len, (*self.clean, *self.corrupted)))

    @property
    def named(self) -> tuple[Mapping[str, Span], ...]:
        """Named positions of each pair in the run that is patched; empty as `positions` is."""
        return self.corrupted_positions if self.patched == "corrupted" and self.corrupted_positions else self.positions

    @cached_property
    def partners(self) -> Int[Tensor, "pair longest"] | None:
        """For each position of the run that is patched the one in the other run that it stands for, -1 for none, which
        what is appended to prompts has.

        None where, in every pair, each position stands for that of its own number.
        """
        if not self.matches:
            return None
        partners = torch.full((len(self), self.longest), -1)
        for row, matches in zip(partners, self.matches):
            here, there = torch.tensor(matches if self.patched == "clean" else flipped(matches)).T
            row[here] = there
        return partners

    @property
    def prompt_lengths(self) -> Int[Tensor, " pair"]:
        """Number of tokens of each pair's prompts alone."""
        return self.lengths - torch.tensor(self.appended) if self.appended else self.lengths

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
        known: Known = {}
        targets = [checked_targets(origin.model, origin.dataset, i, known) for i in self.indices]
        correct, incorrect = zip(*targets)
        return Answers(correct, incorrect, self.indices)

    @cached_property
    def sequences(self) -> AnswerSequences:
        """The right and the wrong answers to each clean prompt, the whole of each.

        Raises:
            ValueError: where one has a token outside the model's vocabulary, or is both.
        """
        origin = self._known_origin
        known: Known = {}
        targets = [checked_sequences(origin.model, origin.dataset, i, known) for i in self.indices]
        correct, incorrect = zip(*targets)
        return AnswerSequences(correct, incorrect, self.indices)

    @property
    def first_token_alone(self) -> str:
        """A sentence on the pairs of whose answers only the first token is measured; empty where there are none."""
        origin = self._known_origin
        cut = [cut_answer(origin.model, origin.dataset, i) for i in self.indices]
        if not any(cut):
            return ""
        answer = next(filter(None, cut))
        return (
            f"of the answers of {share_of_pairs(map(bool, cut), self.indices)} only the first token is measured: "
            f"{named(origin.model, answer[:1])} of {named(origin.model, answer)}"
        )

    @property
    def has_own_metric(self) -> bool:
        """Whether their dataset measures something of its own."""
        return has_own_metric(self._known_origin.dataset)

    def metrics(self, asked: MetricChoice = None) -> tuple[AnyMetric, ...]:
        """The metrics to measure on these pairs.

        Args:
            asked: names, `Metric` objects, or both (`METRICS`). The dataset's own, which None stands for, is its
                `compute_metric` where it has one, else the logit difference.

        Raises:
            ValueError: for an unknown metric, where one needs an answer that a pair has not, where an answer is not one
                token of the model's vocabulary and the metric reads one, where a prompt with its answer is longer than
                the context, where a `Metric` object was made for other pairs, and where the dataset says of its own
                metric what is no name, no unit or no truth value.
        """
        origin = self._known_origin

        def own() -> Metric:
            if self.has_own_metric:
                return own_metric(origin.dataset, self.indices)
            return LogitDifference(self.answers)

        chosen = [of_pairs(metric, self.indices) for metric in choose_metrics(asked, own, self)]
        for metric in chosen:
            if isinstance(metric, (AnswerMetric, SequenceMetric)):
                check_answers(metric, len(self), n_answers(origin.model))
            if isinstance(metric, SequenceMetric):
                self._check_room_for(metric.answers)
        return tuple(chosen)

    def all_of(self, dataset: PatchingDataset | None = None) -> EncodedPairs:
        """All pairs of the dataset that these are from, or of another one, as tokens of the same model."""
        if self.origin is None and dataset is None:
            return self
        origin = self._known_origin
        return encode_pairs(origin.model, origin.dataset if dataset is None else dataset)

    def continued(self, continuations: Sequence[Sequence[Sequence[int]]]) -> EncodedPairs:
        """Each pair with each of its continuations, one after the other: tokens that follow both of its prompts."""
        repeated = self.repeated([len(of_pair) for of_pair in continuations])
        each = [torch.tensor(tokens, dtype=torch.long) for of_pair in continuations for tokens in of_pair]
        return replace(
            repeated,
            clean=tuple(torch.cat([prompt, more]) for prompt, more in zip(repeated.clean, each)),
            corrupted=tuple(torch.cat([prompt, more]) for prompt, more in zip(repeated.corrupted, each)),
            appended=tuple(map(len, each)) if any(map(len, each)) else (),
        )

    def repeated(self, times: int | Sequence[int]) -> EncodedPairs:
        """Each pair so many times, one after the other; times may differ between pairs."""
        counts = [times] * len(self) if isinstance(times, int) else times

        def many(per_pair: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(value for value, count in zip(per_pair, counts) for _ in range(count))

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
            corrupted_positions=many(self.corrupted_positions),
            matches=many(self.matches),
        )

    def _check_room_for(self, answers: AnswerSequences) -> None:
        """Raises ValueError where the model cannot read a prompt with its answers."""
        n_ctx = self._known_origin.model.cfg.n_ctx
        prompts = torch.maximum(self.lengths, self.other_lengths).tolist()
        for index, prompt, answer in zip(self.indices, prompts, answers.longest.tolist()):
            if prompt + answer - 1 > n_ctx:
                raise ValueError(
                    f"pair {index}: its prompt of {prompt} tokens with an answer of {answer} is longer than the "
                    f"{n_ctx} tokens that the model reads (the answer's last is not read): shorten it"
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
            word that the tokenizer does not know, a token id outside the vocabulary, prompts longer than the context,
            or of different token lengths that the dataset does not `align`, a chat that the tokenizer has no template
            for, a named position outside its prompt, a template key, a group or a token label that is no text, and a
            seed that is no integer.
    """
    check_is_dataset(dataset)
    pairs = pairs_of(dataset)
    indices = chosen_indices(dataset.name, len(pairs), pair_indices)
    check_made_for(model, dataset, pairs)
    known = _known_texts(model, [pairs[i] for i in indices])
    encoded = [_encode_pair(model, pairs[i], i, dataset, known) for i in indices]
    positions = [_positions_of(model, dataset, i, pairs[i], both) for i, both in zip(indices, encoded)]
    labels = dataset.token_labels
    check_labels(labels)
    told: dict[int, str] = {}
    return EncodedPairs(
        indices=indices,
        clean=tuple(clean for clean, _ in encoded),
        corrupted=tuple(corrupted for _, corrupted in encoded),
        clean_tokens=tuple(labelled(model, clean.tolist(), labels, told) for clean, _ in encoded),
        corrupted_tokens=tuple(labelled(model, corrupted.tolist(), labels, told) for _, corrupted in encoded),
        positions=tuple(of_pair.clean for of_pair in positions),
        corrupted_positions=(
            tuple(of_pair.corrupted for of_pair in positions)
            if any(of_pair.clean != of_pair.corrupted for of_pair in positions)
            else ()
        ),
        matches=_matches(positions, [(len(clean), len(corrupted)) for clean, corrupted in encoded]),
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


def named_positions(pairs: EncodedPairs, name: str) -> tuple[Span, ...]:
    """Where this name stands in each pair, in the run that is patched; `NAME[i]` is token i of the span NAME.

    Raises:
        ValueError: where a pair has no position of that name, with the pairs that lack it and the names they have, or
            fewer tokens of that name.
    """
    positions = pairs.named or ({},) * len(pairs)
    within = _WITHIN.fullmatch(name)
    if within is not None and not any(name in has for has in positions):
        return tuple(
            _token_of(span, int(within[2]), f"pair {pair}: {within[1]!r}")
            for pair, span in zip(pairs.indices, named_positions(pairs, within[1]))
        )
    lacking = [(pair, has) for pair, has in zip(pairs.indices, positions) if name not in has]
    if lacking:
        has_own = bool(pairs.corrupted_positions) and pairs.patched == "corrupted"
        of_run, method = (" in the corrupted prompt", "get_corrupted_positions") if has_own else ("", "get_positions")
        listed = "; ".join(f"pair {pair} has {', '.join(has) or 'none'}" for pair, has in lacking[:MOST_LISTED])
        more = f"; and {len(lacking) - MOST_LISTED} more" if len(lacking) > MOST_LISTED else ""
        raise ValueError(
            f"{len(lacking)} of {len(pairs)} pairs have no position named {name!r}{of_run}: {listed}{more}. Choose "
            f"another name, leave these pairs out with pair_indices, or name the position in the dataset's {method}"
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


def _matches(positions: Sequence[PairPositions], lengths: Sequence[tuple[int, int]]) -> tuple[Matches, ...]:
    """What stands for what in each pair; nothing at all where, in every pair, it is what has the same number."""
    each = [identity(length) if at.matches is None else at.matches for at, (length, _) in zip(positions, lengths)]
    same = all(
        at.matches is None or (clean == corrupted and of_pair == identity(clean))
        for at, of_pair, (clean, corrupted) in zip(positions, each, lengths)
    )
    return () if same else tuple(each)


def _token_of(span: Span, at: int, what: str) -> int:
    tokens = span_of(span)
    if not -len(tokens) <= at < len(tokens):
        raise ValueError(f"{what} has {count(len(tokens), 'token')}, but no [{at}]: [0] and [-1] always are")
    return tokens[at]


def _known_texts(model: Any, pairs: Sequence[Any]) -> dict[str, tuple[int, ...]]:
    """The tokens of the texts among many prompts, those left out that are to be looked at one by one."""
    prompts = [prompt for pair in pairs for prompt in as_list(pair) or ()]
    texts = [prompt for prompt in prompts if isinstance(prompt, str) and prompt]
    if len(texts) < FEWEST or not has_tokenizer(model):
        return {}
    try:
        return {text: ids for text, ids in prompts_of_all(model, texts).items() if not callable(ids)}
    except ValueError:  # a tokenizer that cannot do it, which is told of the first prompt
        return {}


def _encode_pair(
    model: Any, pair: Any, index: int, dataset: PatchingDataset, known: Mapping[str, tuple[int, ...]]
) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
    prompts = as_list(pair) or []
    if len(prompts) != 2 or not all(as_list(p) is not None or (isinstance(p, str) and p) for p in prompts):
        raise ValueError(
            f"pair {index} is {shortened(pair)}, expected (clean prompt, corrupted prompt), two texts or lists of "
            f"token ids{_ALONE if isinstance(pair, str) else ''}"
        )
    try:
        clean, corrupted = (
            torch.tensor(known[prompt]) if isinstance(prompt, str) and prompt in known else encode_prompt(model, prompt)
            for prompt in prompts
        )
    except WrongTokenizer:
        raise
    except ValueError as error:
        raise ValueError(f"pair {index}: {error}") from None
    if len(clean) != len(corrupted) and dataset.align is None and dataset.get_alignment(index) is None:
        raise ValueError(
            f"pair {index}: {compare_lengths(model, clean, corrupted)}. Activations are exchanged position by "
            "position, so both need the same number of tokens: replace words by words of as many tokens, or say with "
            "align which tokens stand for each other"
        )
    return clean, corrupted


def _positions_of(
    model: Any, dataset: PatchingDataset, index: int, pair: Any, encoded: tuple[Int[Tensor, " _"], Int[Tensor, " _"]]
) -> PairPositions:
    """What the dataset says of a pair's positions, and of chats what their roles say."""
    in_chats = [named_in_chat(model, prompt, tokens) for prompt, tokens in zip(as_list(pair) or (), encoded)]
    clean, corrupted = (prompt.tolist() for prompt in encoded)
    return pair_positions(dataset, index, clean, corrupted, in_chats=(in_chats[0], in_chats[1]))


def _checked_key(dataset: PatchingDataset, method: str, index: int) -> str:
    key = getattr(dataset, method)(index)
    if not isinstance(key, str):
        what = method.removeprefix("get_")
        raise ValueError(f"pair {index}: {method} returned {key!r}, expected a text, empty for no {what}")
    return key
