"""Which prompts?  Datasets of clean and corrupted prompt pairs, and their checked, tokenized form.

A dataset gives pairs of prompts of equal token length, the right and the wrong next tokens of each, and (if it wants)
names for positions, a key of pairs that are made alike, and its own metric. `encode_pairs` turns it into tokens and
finds every fault it can before a model is run.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actpatch.core.indices import check_index, check_indices, is_integer
from actpatch.core.text import described
from actpatch.metrics.base import AnswerMetric, Answers, DatasetMetric, LogitDifference, Metric
from actpatch.metrics.chosen import MetricChoice, choose_metrics

MOST_LISTED = 5
"""How many offenders an error names; it counts them all."""

TargetTokens: TypeAlias = int | Sequence[int] | None
"""Token id of the only answer, or the ids of several that count alike; None where there is no answer."""


class PatchingDataset(ABC):
    """Base class of tasks: subclass it and give pairs and target tokens; the rest has defaults."""

    seed: int | None = None
    """The seed that the pairs were drawn from, which results keep; None where they were not drawn."""
    metric_name: str = "compute_metric"
    """What the dataset's own `compute_metric` measures, for tables and figures; of no account where it has none."""
    metric_unit: str = ""
    """Its unit, for instance `nats`; empty where it has none."""
    more_is_better: bool = True
    """Whether it is the higher, the better the model does what the clean prompt asks for. False for a loss."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the task is called in tables and figures."""

    @abstractmethod
    def get_clean_corrupt_pairs(self) -> Sequence[tuple[str, str]]:
        """The pairs `(clean prompt, corrupted prompt)`; both prompts of a pair have the same number of tokens."""

    @abstractmethod
    def get_target_tokens(self, pair_idx: int) -> tuple[TargetTokens, TargetTokens]:
        """Token ids `(correct, incorrect)` of the answers to the clean prompt: on each side one, several or None.

        Without an incorrect answer the pair serves metrics that read the right one alone.
        """

    @property
    def varies(self) -> str:
        """Which signal of the clean prompt the corruption changes; empty where that is not said."""
        return ""

    def get_positions(self, pair_idx: int) -> Mapping[str, int]:
        """Named positions of the pair, counted in tokens of its prompts, BOS included where the model prepends one.

        Negative ones count from the end. Both prompts of a pair have as many tokens, so one position holds for both.
        """
        return {}

    def get_template(self, pair_idx: int) -> str:
        """A key that pairs share if their prompts differ in single words of the same places, and so may be averaged
        position by position; empty where that is not said."""
        return ""

    def compute_metric(self, logits: Float[Tensor, "1 pos d_vocab"], pair_idx: int) -> float:
        """logit(correct) - logit(incorrect) at the last position, in logits. Override it to measure something else.

        `metric_name`, `metric_unit` and `more_is_better` say then what it is. Several answers of one side count as one
        whose probability is the sum of theirs.
        """
        correct, incorrect = (_token_ids(targets) for targets in self.get_target_tokens(pair_idx))
        metric = LogitDifference(Answers((correct,), (incorrect,), (pair_idx,)))
        return metric.measure(logits[..., metric.tokens], torch.zeros(1, dtype=torch.long)).item()

    def __len__(self) -> int:
        return len(self.get_clean_corrupt_pairs())


@dataclass(frozen=True)
class EncodedPairs:
    """The pairs of an experiment as tokens, checked."""

    indices: tuple[int, ...]
    """Index of each pair in its dataset."""
    clean: tuple[Int[Tensor, " _"], ...]
    """Token ids of each clean prompt, of its own length, BOS included where the model prepends one."""
    corrupted: tuple[Int[Tensor, " _"], ...]
    clean_tokens: tuple[tuple[str, ...], ...]
    """Token strings of each clean prompt."""
    corrupted_tokens: tuple[tuple[str, ...], ...]
    positions: tuple[Mapping[str, int], ...] = ()
    """Named positions of each pair, counted from the front; empty where the pairs were not made from a dataset."""
    templates: tuple[str, ...] = ()
    """Key of each pair's template, an empty text where the dataset names none; empty as the positions are."""

    def __len__(self) -> int:
        return len(self.indices)

    def repeated(self, times: int) -> EncodedPairs:
        """Each pair so many times, one after the other."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        many = {name: tuple(v for v in each for _ in range(times)) for name, each in values.items()}
        return EncodedPairs(**many)

    @property
    def lengths(self) -> Int[Tensor, " pair"]:
        """Number of tokens of each pair's prompts."""
        return torch.tensor([len(tokens) for tokens in self.clean])

    @property
    def first_difference(self) -> Int[Tensor, " pair"]:
        """First position at which clean and corrupted differ; the length, where they do not."""
        return torch.tensor(
            [_first_difference(clean, corrupted) for clean, corrupted in zip(self.clean, self.corrupted)]
        )


def encode_pairs(model: Any, dataset: PatchingDataset, pair_indices: Sequence[int] | None = None) -> EncodedPairs:
    """The dataset's pairs as tokens.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`, for its tokenizer.
        dataset: the pairs.
        pair_indices: which pairs to use, negative ones counting from the end; None for all.

    Raises:
        ValueError: for an empty dataset, a pair index out of range or given twice, a pair that is not two prompts, a
            word that the tokenizer does not know, prompts of different token lengths, or longer than the context, a
            named position outside its prompt, and a template key that is no text.
    """
    check_is_dataset(dataset)
    given = dataset.get_clean_corrupt_pairs()
    if not isinstance(given, Iterable):
        raise ValueError(
            f"get_clean_corrupt_pairs of the dataset {dataset.name!r} returned {given!r}, expected a list of pairs "
            "(clean prompt, corrupted prompt)"
        )
    pairs = list(given)
    indices = chosen_indices(dataset.name, len(pairs), pair_indices)
    encoded = [_encode_pair(model, pairs[i], i) for i in indices]
    return EncodedPairs(
        indices=indices,
        clean=tuple(clean for clean, _ in encoded),
        corrupted=tuple(corrupted for _, corrupted in encoded),
        clean_tokens=tuple(token_strings(model, clean) for clean, _ in encoded),
        corrupted_tokens=tuple(token_strings(model, corrupted) for _, corrupted in encoded),
        positions=tuple(_checked_positions(dataset, i, len(clean)) for i, (clean, _) in zip(indices, encoded)),
        templates=tuple(_checked_template(dataset, i) for i in indices),
    )


def check_is_dataset(dataset: object) -> None:
    """Raises ValueError for what is no dataset, a class of them included."""
    if not isinstance(dataset, PatchingDataset):
        raise ValueError(
            f"the dataset is {described(dataset)}, expected a PatchingDataset: a task (IOIDataset(model)), or pairs of "
            "your own (PromptPairs.from_dataframe(model, frame))"
        )


def seed_of(dataset: PatchingDataset) -> int | None:
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
        told = "; ".join(f"pair {pair} has {', '.join(has) or 'none'}" for pair, has in lacking[:MOST_LISTED])
        more = f"; and {len(lacking) - MOST_LISTED} more" if len(lacking) > MOST_LISTED else ""
        raise ValueError(
            f"{len(lacking)} of {len(pairs)} pairs have no position named {name!r}: {told}{more}. Choose another name, "
            "leave these pairs out with pair_indices, or name the position in the dataset's get_positions"
        )
    return tuple(has[name] for has in positions)


def dataset_metrics(
    model: Any, dataset: PatchingDataset, pair_indices: Sequence[int], metrics: MetricChoice = None
) -> tuple[Metric, ...]:
    """The metrics to measure on these pairs.

    Args:
        model: the model, for its vocabulary.
        dataset: the pairs and their answers.
        pair_indices: which pairs of the dataset.
        metrics: names, `Metric` objects, or both (`METRICS`). The dataset's own, which None stands for, is
            its `compute_metric` where it has one, else the logit difference.

    Raises:
        ValueError: for an unknown metric, where one needs an answer that a pair has not, where an answer is not one
            token of the model's vocabulary, where a `Metric` object was made for other pairs, and where the dataset
            says of its own metric what is no name, no unit or no truth value.
    """

    @functools.cache
    def answers() -> Answers:
        targets = [checked_targets(model, dataset, i) for i in pair_indices]
        correct, incorrect = zip(*targets)
        return Answers(correct, incorrect, tuple(pair_indices))

    def own() -> Metric:
        if has_own_metric(dataset):
            return _own_metric(dataset, tuple(pair_indices))
        return LogitDifference(answers())

    chosen = [_of_pairs(metric, tuple(pair_indices)) for metric in choose_metrics(metrics, own, answers)]
    for metric in chosen:
        if isinstance(metric, AnswerMetric):
            _check_answers(metric, len(pair_indices), model.cfg.d_vocab)
    return tuple(chosen)


def has_own_metric(dataset: PatchingDataset) -> bool:
    """Whether the dataset has a `compute_metric` of its own: its class's, or a function that was put into it."""
    return getattr(dataset.compute_metric, "__func__", None) is not PatchingDataset.compute_metric


def checked_targets(model: Any, dataset: PatchingDataset, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of all correct and of all incorrect answers to a pair's clean prompt; empty where it has none.

    Raises:
        ValueError: where an answer is no single token of the vocabulary, is the unknown token, or is on both sides.
    """
    try:
        targets = dataset.get_target_tokens(index)
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"pair {index}: get_target_tokens found no single token for its answer ({error}). The answers must be one "
            "token each for this model, usually with a leading space"
        ) from error
    try:
        correct, incorrect = (_token_ids(side) for side in targets)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"pair {index}: get_target_tokens returned {targets!r}, expected (correct token id, incorrect token id), "
            "or a list of ids or None in the place of either"
        ) from error
    for token in (*correct, *incorrect):
        if not 0 <= token < model.cfg.d_vocab:
            raise ValueError(f"pair {index}: target token {token} is outside the vocabulary of {model.cfg.d_vocab}")
        if token == model.tokenizer.unk_token_id and token != model.tokenizer.bos_token_id:
            raise ValueError(f"pair {index}: a target is the tokenizer's unknown token: use a word the model knows")
    _check_disjoint(model, index, correct, incorrect)
    return correct, incorrect


def encode_prompt(model: Any, prompt: str) -> Int[Tensor, " pos"]:
    """The prompt's token ids, BOS included where the model prepends one.

    Raises:
        ValueError: for a word that the tokenizer does not know, or more tokens than the model reads.
    """
    tokens = _tokenize(model, prompt)
    _check_known(model, tokens, prompt)
    if len(tokens) > model.cfg.n_ctx:
        raise ValueError(
            f"the prompt {prompt[:40]!r}... has {len(tokens)} tokens, the model reads at most {model.cfg.n_ctx}: "
            "shorten it"
        )
    return tokens


def compare_lengths(model: Any, clean: Int[Tensor, " _"], corrupted: Int[Tensor, " _"]) -> str:
    """How many tokens two prompts have, and where they part, for messages."""
    at = _first_difference(clean, corrupted)
    seen = [repr("".join(token_strings(model, tokens[at : at + 3]))) for tokens in (clean, corrupted)]
    return (
        f"the clean prompt has {len(clean)} tokens and the corrupted one {len(corrupted)}; they part at position {at}, "
        f"{seen[0]} against {seen[1]}"
    )


def single_token(model: Any, text: str) -> int:
    """The id of a text that is one token for this model.

    Raises:
        ValueError: where it is several tokens, or none that the tokenizer knows.
    """
    ids = _tokenize(model, text, prepend_bos=False)
    _check_known(model, ids, text)
    if len(ids) != 1:
        parts = " + ".join(repr(part) for part in token_strings(model, ids))
        raise ValueError(f"{text!r} is {len(ids)} tokens for this model ({parts}), expected one: choose another word")
    return int(ids[0])


def one_or_several(ids: Sequence[int]) -> TargetTokens:
    """These answers as `get_target_tokens` gives them: the id itself where there is only one."""
    return ids[0] if len(ids) == 1 else tuple(ids)


def token_strings(model: Any, tokens: Iterable[int] | Int[Tensor, " pos"]) -> tuple[str, ...]:
    """Each token as text, leading spaces kept."""
    return tuple(model.tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) for token in tokens)


def _encode_pair(model: Any, pair: Any, index: int) -> tuple[Int[Tensor, " pos"], Int[Tensor, " pos"]]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
        raise ValueError(f"pair {index} is {pair!r}, expected (clean prompt, corrupted prompt), two texts")
    try:
        clean, corrupted = (encode_prompt(model, prompt) for prompt in pair)
    except ValueError as error:
        raise ValueError(f"pair {index}: {error}") from None
    if len(clean) != len(corrupted):
        raise ValueError(
            f"pair {index}: {compare_lengths(model, clean, corrupted)}. Activations are exchanged position by "
            "position, so both need the same number of tokens: replace words by words of as many tokens"
        )
    return clean, corrupted


def _first_difference(clean: Int[Tensor, " _"], corrupted: Int[Tensor, " _"]) -> int:
    common = min(len(clean), len(corrupted))
    differs = (clean[:common] != corrupted[:common]).nonzero()
    return int(differs[0]) if len(differs) else common


def _tokenize(model: Any, text: str, **options: bool) -> Int[Tensor, " pos"]:
    if not hasattr(model, "to_tokens"):
        raise TypeError(
            f"model is {described(model)}, expected a TransformerLens HookedTransformer or TransformerBridge: load one "
            "with load_model(...)"
        )
    return model.to_tokens(text, truncate=False, **options)[0].cpu()


def _check_known(model: Any, tokens: Int[Tensor, " pos"], text: str) -> None:
    tokenizer = model.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.bos_token_id or not bool((tokens == unknown).any()):
        return
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [span for token, span in zip(encoding["input_ids"], encoding["offset_mapping"]) if token == unknown]
    words = list(dict.fromkeys(text[start:end].strip() or text[start:end] for start, end in spans))
    raise ValueError(
        f"the model's tokenizer does not know {', '.join(map(repr, words))} in {text!r}: use words it was trained on"
    )


def _checked_positions(dataset: PatchingDataset, index: int, length: int) -> dict[str, int]:
    positions = dataset.get_positions(index)
    if not isinstance(positions, Mapping):
        raise ValueError(f"pair {index}: get_positions returned {positions!r}, expected a mapping name -> position")
    return {
        name: check_index(at, length, f"pair {index}, {length} tokens long: position {name!r}")
        for name, at in positions.items()
    }


def _checked_template(dataset: PatchingDataset, index: int) -> str:
    template = dataset.get_template(index)
    if not isinstance(template, str):
        raise ValueError(f"pair {index}: get_template returned {template!r}, expected a text, empty for no template")
    return template


def _own_metric(dataset: PatchingDataset, pair_indices: tuple[int, ...]) -> DatasetMetric:
    """The dataset's own metric, as the dataset declares it."""
    name, unit, more_is_better = dataset.metric_name, dataset.metric_unit, dataset.more_is_better
    if not isinstance(name, str) or not name.strip() or not isinstance(unit, str):
        raise ValueError(
            f"the dataset {dataset.name!r} has the metric_name {name!r} and the metric_unit {unit!r}, expected two "
            "texts, the first not empty"
        )
    if not isinstance(more_is_better, bool):
        raise ValueError(
            f"the dataset {dataset.name!r} has more_is_better {more_is_better!r}, expected True, or False where its "
            "compute_metric is the lower, the better the model does"
        )
    return DatasetMetric(dataset.compute_metric, pair_indices, name, unit, more_is_better)


def _token_ids(targets: Any) -> tuple[int, ...]:
    """One id, several, or None for none; each once."""
    if targets is None:
        return ()
    if isinstance(targets, (str, bytes)):
        raise TypeError(f"{targets!r} is a text, expected token ids")
    several = targets.tolist() if hasattr(targets, "tolist") else targets
    ids = list(several) if isinstance(several, Iterable) else [several]
    if any(isinstance(token, bool) for token in ids):
        raise TypeError(f"{targets!r} is a truth value, expected token ids")
    return tuple(dict.fromkeys(map(operator.index, ids)))


def _check_disjoint(model: Any, index: int, correct: tuple[int, ...], incorrect: tuple[int, ...]) -> None:
    if shared := set(correct) & set(incorrect):
        raise ValueError(
            f"pair {index}: correct and incorrect answer are the same {_told(model, shared)}: an answer is one or the "
            "other"
        )


def _of_pairs(metric: Metric, pair_indices: tuple[int, ...]) -> Metric:
    """The metric, with the experiment's pairs where it is a function that none were given for."""
    if not isinstance(metric, DatasetMetric) or metric.pair_indices == pair_indices:
        return metric
    if metric.pair_indices:
        raise ValueError(
            f"the metric {metric.name!r} is for the pairs {metric.pair_indices}, the experiment has {pair_indices}: "
            "leave out its pair_indices"
        )
    return replace(metric, pair_indices=pair_indices)


def _check_answers(metric: AnswerMetric, n_pairs: int, d_vocab: int) -> None:
    """A metric that was made beforehand belongs to these pairs and this model."""
    if len(metric.answers) != n_pairs:
        raise ValueError(
            f"the metric {metric.name!r} has answers for {len(metric.answers)} pairs, the experiment has {n_pairs}: "
            "make it for these pairs, in their order"
        )
    if (largest := int(metric.answers.tokens.max())) >= d_vocab:
        raise ValueError(f"the metric {metric.name!r} has the answer {largest}, outside the vocabulary of {d_vocab}")


def _told(model: Any, tokens: Iterable[int]) -> str:
    told = [f"{token} ({text!r})" for token, text in zip(sorted(tokens), token_strings(model, sorted(tokens)))]
    return f"token{'s' * (len(told) > 1)} {', '.join(told)}"
