"""The answers of a dataset's pairs and the metrics that are measured with them, checked before a model is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from actpatch.core.text import MOST_LISTED
from actpatch.metrics.base import AnswerMetric, Metric
from actpatch.metrics.own import DatasetMetric
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.tokens import WrongTokenizer, has_tokenizer, token_ids, token_strings, unknown_token


def checked_targets(model: Any, dataset: PatchingDataset, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of all correct and of all incorrect answers to a pair's clean prompt; empty where it has none.

    Raises:
        ValueError: where an answer is no single token of the vocabulary, is the unknown token, or is on both sides.
    """
    try:
        targets = dataset.get_target_tokens(index)
    except (AssertionError, ValueError) as error:
        if not has_tokenizer(model):
            raise WrongTokenizer(
                f"pair {index}: get_target_tokens failed ({error}), and this model has no tokenizer: return token ids"
            ) from error
        raise ValueError(
            f"pair {index}: get_target_tokens found no single token for its answer ({error}). The answers must be one "
            "token each for this model, usually with a leading space"
        ) from error
    try:
        correct, incorrect = (token_ids(side) for side in targets)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"pair {index}: get_target_tokens returned {targets!r}, expected (correct token id, incorrect token id), "
            "or a list of ids or None in the place of either"
        ) from error
    size, unknown = n_answers(model), unknown_token(model)
    for token in (*correct, *incorrect):
        if not 0 <= token < size:
            raise ValueError(f"pair {index}: target token {token} is outside the vocabulary of {size}")
        if token == unknown:
            raise ValueError(f"pair {index}: a target is the tokenizer's unknown token: use a word the model knows")
    _check_disjoint(model, index, correct, incorrect)
    return correct, incorrect


def n_answers(model: Any) -> int:
    """How many tokens the model chooses from: not all that it reads, where its output has a vocabulary of its own."""
    size = getattr(model.cfg, "d_vocab_out", None)
    return size if size and size > 0 else model.cfg.d_vocab


def has_own_metric(dataset: PatchingDataset) -> bool:
    """Whether the dataset has a `compute_metric` of its own: its class's, or a function that was put into it."""
    return getattr(dataset.compute_metric, "__func__", None) is not PatchingDataset.compute_metric


def own_metric(dataset: PatchingDataset, pair_indices: tuple[int, ...]) -> DatasetMetric:
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


def of_pairs(metric: Metric, pair_indices: tuple[int, ...]) -> Metric:
    """The metric, with the experiment's pairs where it is a function that none were given for."""
    if not isinstance(metric, DatasetMetric) or metric.pair_indices == pair_indices:
        return metric
    if metric.pair_indices:
        raise ValueError(
            f"the metric {metric.name!r} is for the pairs {metric.pair_indices}, the experiment has {pair_indices}: "
            "leave out its pair_indices"
        )
    return replace(metric, pair_indices=pair_indices)


def check_answers(metric: AnswerMetric, n_pairs: int, d_vocab: int) -> None:
    """A metric that was made beforehand belongs to these pairs and this model."""
    if len(metric.answers) != n_pairs:
        raise ValueError(
            f"the metric {metric.name!r} has answers for {len(metric.answers)} pairs, the experiment has {n_pairs}: "
            "make it for these pairs, in their order"
        )
    if (largest := int(metric.answers.tokens.max())) >= d_vocab:
        raise ValueError(f"the metric {metric.name!r} has the answer {largest}, outside the vocabulary of {d_vocab}")


def _check_disjoint(model: Any, index: int, correct: tuple[int, ...], incorrect: tuple[int, ...]) -> None:
    if shared := set(correct) & set(incorrect):
        raise ValueError(
            f"pair {index}: correct and incorrect answer are the same {named_tokens(model, shared)}: an answer is one "
            "or the other"
        )


def named_tokens(model: Any, tokens: Iterable[int]) -> str:
    """`token 673 (' she')`; of many the first ones and their number."""
    tokens = sorted(tokens)
    more = f" and {len(tokens) - MOST_LISTED} more" if len(tokens) > MOST_LISTED else ""
    listed = tokens[:MOST_LISTED]
    named = [f"{token} ({text!r})" for token, text in zip(listed, token_strings(model, listed))]
    return f"token{'s' * (len(named) > 1)} {', '.join(named)}{more}"
