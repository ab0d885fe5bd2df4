"""The answers of a dataset's pairs and the metrics that are measured with them, checked before a model is run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

from actpatch.core.text import MOST_LISTED
from actpatch.metrics.base import AnswerMetric, Whole
from actpatch.metrics.chosen import AnyMetric
from actpatch.metrics.own import DatasetMetric
from actpatch.metrics.sequence import SequenceMetric
from actpatch.tasks.dataset import PatchingDataset
from actpatch.tasks.targets import answer_ids, named, sides_of, whole_answers
from actpatch.tasks.tokens import WrongTokenizer, has_tokenizer, token_strings, unknown_token

T = TypeVar("T")


Known: TypeAlias = dict[tuple[int, int], tuple[Any, Any]]
"""Both sides of a pair, by identity -> these, so that they are kept, and what they were found to be. Pairs may share
thousands of answers, which are then looked at once."""


def checked_targets(
    model: Any, dataset: PatchingDataset, index: int, known: Known | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of all correct and of all incorrect answers to a pair's clean prompt; empty where it has none.

    Args:
        known: what was found of other pairs of the dataset for this model, by this function, which it adds to.

    Raises:
        ValueError: where an answer is no single token of the vocabulary, is the unknown token, or is on both sides;
            where the dataset takes the first token of each (`first_token`), where two sides begin with the same.
    """
    return _once(model, dataset, index, known, _checked_targets)


def _checked_targets(
    model: Any, dataset: PatchingDataset, index: int, targets: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    read = functools.partial(answer_ids, first_token=dataset.first_token)
    correct, incorrect = _sides(model, index, targets, read)
    _check_vocabulary(model, index, (*correct, *incorrect))
    if same := same_tokens(model, correct, incorrect, are_cut=bool(cut_answer(model, dataset, index))):
        raise ValueError(f"pair {index}: {same}")
    return correct, incorrect


def checked_sequences(
    model: Any, dataset: PatchingDataset, index: int, known: Known | None = None
) -> tuple[tuple[Whole, ...], tuple[Whole, ...]]:
    """The same of whole answers, of however many tokens; of one token each where the dataset takes the first alone.

    Raises:
        ValueError: where an answer holds a token outside the vocabulary or the unknown token, or is on both sides.
    """
    return _once(model, dataset, index, known, _checked_sequences)


def _checked_sequences(
    model: Any, dataset: PatchingDataset, index: int, targets: Any
) -> tuple[tuple[Whole, ...], tuple[Whole, ...]]:
    if dataset.first_token:
        cut_correct, cut_incorrect = _checked_targets(model, dataset, index, targets)
        return tuple((token,) for token in cut_correct), tuple((token,) for token in cut_incorrect)
    correct, incorrect = _sides(model, index, targets, whole_answers)
    every = (*correct, *incorrect)
    _check_vocabulary(model, index, (token for answer in every for token in answer))
    size = model.cfg.d_vocab
    if unread := [token for answer in every for token in answer[:-1] if token >= size]:
        raise ValueError(f"pair {index}: target token {unread[0]} is outside the vocabulary of {size} that is read")
    if same_answer := same_wholes(model, correct, incorrect):
        raise ValueError(f"pair {index}: {same_answer}")
    return correct, incorrect


def same_tokens(model: Any, correct: Iterable[int], incorrect: Iterable[int], *, are_cut: bool) -> str:
    """A sentence on the tokens that are on both sides; empty where none is.

    Args:
        are_cut: whether they are the first tokens of longer answers.
    """
    shared = {*correct} & {*incorrect}
    if not shared:
        return ""
    said = f"are the same {named_tokens(model, shared)}: an answer is one or the other"
    if are_cut:
        said = (
            f"begin with the same {named_tokens(model, shared)}, and first_token takes no more of them: measure whole "
            "answers, without first_token, by metrics='sequence_log_probability_difference', or leave the pair out"
        )
    return f"correct and incorrect answer {said}"


def same_wholes(model: Any, correct: Iterable[Whole], incorrect: Iterable[Whole]) -> str:
    """The same of whole answers."""
    shared = {*correct} & {*incorrect}
    if not shared:
        return ""
    if all(len(answer) == 1 for answer in shared):
        return same_tokens(model, *[[token for (token,) in shared]] * 2, are_cut=False)
    answer = min(shared, key=lambda one: (-len(one), one))
    return f"correct and incorrect answer are the same {named(model, answer)}: an answer is one or the other"


def cut_answer(model: Any, dataset: PatchingDataset, index: int) -> Whole:
    """An answer of the pair of which only the first token is taken (`first_token`); empty where there is none."""
    if not dataset.first_token:
        return ()
    correct, incorrect = _sides(model, index, _given(model, dataset, index), whole_answers)
    return next((answer for answer in (*correct, *incorrect) if len(answer) > 1), ())


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


def of_pairs(metric: AnyMetric, pair_indices: tuple[int, ...]) -> AnyMetric:
    """The metric, with the experiment's pairs where it is a function that none were given for."""
    if not isinstance(metric, DatasetMetric) or metric.pair_indices == pair_indices:
        return metric
    if metric.pair_indices:
        raise ValueError(
            f"the metric {metric.name!r} is for the pairs {metric.pair_indices}, the experiment has {pair_indices}: "
            "leave out its pair_indices"
        )
    return replace(metric, pair_indices=pair_indices)


def check_answers(metric: AnswerMetric | SequenceMetric, n_pairs: int, d_vocab: int) -> None:
    """A metric that was made beforehand belongs to these pairs and this model."""
    if len(metric.answers) != n_pairs:
        raise ValueError(
            f"the metric {metric.name!r} has answers for {len(metric.answers)} pairs, the experiment has {n_pairs}: "
            "make it for these pairs, in their order"
        )
    if (largest := int(metric.answers.tokens.max())) >= d_vocab:
        raise ValueError(f"the metric {metric.name!r} has the answer {largest}, outside the vocabulary of {d_vocab}")


def _once(
    model: Any, dataset: PatchingDataset, index: int, known: Known | None, look: Callable[[Any, Any, int, Any], Any]
) -> Any:
    """What is found of a pair's answers; of sides that cannot change and were looked at before, what was found then."""
    targets = _given(model, dataset, index)
    fixed = known is not None and isinstance(targets, tuple) and len(targets) == 2
    if known is None or not fixed or not all(isinstance(side, tuple) for side in targets):
        return look(model, dataset, index, targets)
    key = id(targets[0]), id(targets[1])
    if key not in known:
        known[key] = targets, look(model, dataset, index, targets)
    return known[key][1]


def _given(model: Any, dataset: PatchingDataset, index: int) -> Any:
    """What the dataset gives as a pair's answers."""
    try:
        return dataset.get_target_tokens(index)
    except (AssertionError, ValueError) as error:
        if not has_tokenizer(model):
            raise WrongTokenizer(
                f"pair {index}: get_target_tokens failed ({error}), and this model has no tokenizer: return token ids"
            ) from error
        raise ValueError(
            f"pair {index}: get_target_tokens found no single token for its answer ({error}). The answers must be one "
            "token each for this model, usually with a leading space, or be given as texts to be measured whole"
        ) from error


def _sides(
    model: Any, index: int, targets: Any, read: Callable[[Any, Any], tuple[T, ...]]
) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """The answers of a pair, each side as it is read."""
    try:
        correct, incorrect = (read(model, side) for side in sides_of(targets))
    except WrongTokenizer as error:
        raise WrongTokenizer(f"pair {index}: {error}") from error
    except ValueError as error:
        raise ValueError(f"pair {index}: {error}") from error
    except TypeError as error:
        raise ValueError(
            f"pair {index}: get_target_tokens returned {targets!r}, expected (correct token id, incorrect token id), "
            "or in the place of either a text, a list of ids or texts, a list of lists of ids, or None"
        ) from error
    return correct, incorrect


def _check_vocabulary(model: Any, index: int, tokens: Iterable[int]) -> None:
    size, unknown = n_answers(model), unknown_token(model)
    for token in tokens:
        if not 0 <= token < size:
            raise ValueError(f"pair {index}: target token {token} is outside the vocabulary of {size}")
        if token == unknown:
            raise ValueError(f"pair {index}: a target is the tokenizer's unknown token: use a word the model knows")


def named_tokens(model: Any, tokens: Iterable[int]) -> str:
    """`token 673 (' she')`; of many the first ones and their number."""
    tokens = sorted(tokens)
    more = f" and {len(tokens) - MOST_LISTED} more" if len(tokens) > MOST_LISTED else ""
    listed = tokens[:MOST_LISTED]
    named = [f"{token} ({text!r})" for token, text in zip(listed, token_strings(model, listed))]
    return f"token{'s' * (len(named) > 1)} {', '.join(named)}{more}"
