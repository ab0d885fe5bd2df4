"""Which prompts?  Datasets of clean and corrupted prompt pairs, and their checked, tokenized form.

A dataset gives pairs of prompts of equal token length, the right and the wrong next token of each, and (if it wants)
its own metric. `encode_pairs` turns it into tokens and finds every fault it can before a model is run.
"""

from __future__ import annotations

import functools
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

import task_templates
from metric_sets import MetricChoice, choose_metrics
from patching_metrics import AnswerMetric, Answers, DatasetMetric, LogitDifference, Metric
from patching_sites import check_index


class PatchingDataset(ABC):
    """Base class of tasks: subclass it, give pairs and target tokens, and override `compute_metric` if you want."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the task is called in tables and figures."""

    @abstractmethod
    def get_clean_corrupt_pairs(self) -> Sequence[tuple[str, str]]:
        """The pairs `(clean prompt, corrupted prompt)`; both prompts of a pair have the same number of tokens."""

    @abstractmethod
    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        """Token ids `(correct, incorrect)` of the answers to the pair's clean prompt."""

    def compute_metric(self, logits: Float[Tensor, "1 pos d_vocab"], pair_idx: int) -> float:
        """logit(correct) - logit(incorrect) at the last position, in logits. Override it to measure something else."""
        correct, incorrect = self.get_target_tokens(pair_idx)
        return (logits[0, -1, correct] - logits[0, -1, incorrect]).item()

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
            [_first_difference(clean, corrupted) for clean, corrupted in zip(self.clean, self.corrupted)]
        )


@dataclass(frozen=True)
class IOICorruption:
    """How the names of a clean IOI prompt are changed, and what that varies."""

    label: str
    varies: str
    """Which signal of the clean prompt the corrupted one changes."""


IOI_CORRUPTIONS = {
    "swap_names": IOICorruption(
        "names swapped throughout", "which token the subject is; its position stays (the weaker of the two signals)"
    ),
    "flip_subject": IOICorruption(
        "second subject flipped", "which token the subject is, and at which position it stood before"
    ),
    "swap_order": IOICorruption(
        "name order swapped, giver kept", "the order of the names alone: the right answer stays, so nothing is broken"
    ),
    "unrelated_names": IOICorruption(
        "three unrelated names (ABC)", "every name: nothing of the clean prompt's names is left"
    ),
}


class IOIDataset(PatchingDataset):
    """Indirect object identification (Wang et al. 2022, "Interpretability in the Wild").

    "When Mary and John went to the store, John gave a drink to" is continued with " Mary", the indirect object (IO),
    not with " John", the subject (S). The default corruption swaps the two names throughout, which turns the right
    answer around. Which corruption is right depends on the question: `corruption_varies` says what each one changes.

    The corruptions, for the prompt above:
        swap_names: When John and Mary went to the store, Mary gave a drink to
        flip_subject: When Mary and John went to the store, Mary gave a drink to
        swap_order: When John and Mary went to the store, John gave a drink to (the answer is still Mary)
        unrelated_names: When Tom and Anna went to the store, Paul gave a drink to

    Args:
        model: the model whose tokenizer decides which names are single tokens.
        n_pairs: number of pairs. They go through the templates with the indirect object first, then with the subject
            first, and so on.
        corruption: one of the names above.
        seed: seed of the choice of names, places and objects.
        templates: sentences with the slots {A}, {B} (the two names in order) and {S2} (the giver), and {PLACE} and
            {OBJECT} if wanted; by default the five scenes of `task_templates.IOI_SCENE_TEMPLATES`.
        names: names to choose from. By default all of `task_templates.NAMES` that are one token for this model.

    Raises:
        ValueError: for an unknown corruption, a name of several tokens, a template without its slots, or more pairs
            than can be made.
    """

    def __init__(
        self,
        model: Any,
        n_pairs: int = 10,
        *,
        corruption: str = "swap_names",
        seed: int = 0,
        templates: Sequence[str] = task_templates.IOI_SCENE_TEMPLATES,
        names: Sequence[str] | None = None,
    ) -> None:
        if corruption not in IOI_CORRUPTIONS:
            raise ValueError(f"corruption {corruption!r} is unknown: expected one of {', '.join(IOI_CORRUPTIONS)}")
        if n_pairs < 1:
            raise ValueError(f"n_pairs is {n_pairs}, expected at least 1")
        self.model = model
        self.corruption = corruption
        self.seed = seed
        self._names = _usable_names(model, names)
        self._pairs: list[tuple[str, str]] = []
        self._answers: list[tuple[str, str]] = []
        self._generate(n_pairs, _checked_templates(templates))

    @property
    def name(self) -> str:
        return f"IOI ({IOI_CORRUPTIONS[self.corruption].label})"

    @property
    def corruption_varies(self) -> str:
        """Which signal of the clean prompt the corruption changes."""
        return IOI_CORRUPTIONS[self.corruption].varies

    def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
        return list(self._pairs)

    def get_target_tokens(self, pair_idx: int) -> tuple[int, int]:
        """Token ids of (IO, S), each with its leading space."""
        correct, incorrect = self._answers[pair_idx]
        return single_token(self.model, f" {correct}"), single_token(self.model, f" {incorrect}")

    def _generate(self, n_pairs: int, templates: Sequence[str]) -> None:
        chooser = random.Random(self.seed)
        seen: set[str] = set()
        attempts = 0
        while len(self._pairs) < n_pairs:
            attempts += 1
            if attempts > 100 * n_pairs + 1000:
                raise ValueError(
                    f"asked for {n_pairs} distinct pairs, found {len(self._pairs)} with {len(self._names)} names and "
                    f"{len(templates)} templates: ask for fewer, or give more names or templates"
                )
            i = len(self._pairs)
            io_first = (i // len(templates)) % 2 == 0
            clean, corrupted, answers = self._make_pair(chooser, templates[i % len(templates)], io_first)
            if clean in seen or len(_tokenize(self.model, clean)) != len(_tokenize(self.model, corrupted)):
                continue
            seen.add(clean)
            self._pairs.append((clean, corrupted))
            self._answers.append(answers)

    def _make_pair(self, chooser: random.Random, template: str, io_first: bool) -> tuple[str, str, tuple[str, str]]:
        io, subject, *others = chooser.sample(self._names, 5)
        scene = {
            "PLACE": chooser.choice(task_templates.PLACES),
            "OBJECT": chooser.choice(task_templates.OBJECTS),
        }
        a, b = (io, subject) if io_first else (subject, io)
        other_a, other_b, other_s2 = others
        corrupted_names = {
            "swap_names": (b, a, io),
            "flip_subject": (a, b, io),
            "swap_order": (b, a, subject),
            "unrelated_names": (other_a, other_b, other_s2),
        }[self.corruption]
        clean = task_templates.fill(template, A=a, B=b, S2=subject, **scene)
        corrupted = task_templates.fill(template, **dict(zip(("A", "B", "S2"), corrupted_names)), **scene)
        return clean, corrupted, (io, subject)


def encode_pairs(model: Any, dataset: PatchingDataset, pair_indices: Sequence[int] | None = None) -> EncodedPairs:
    """The dataset's pairs as tokens.

    Args:
        model: a `HookedTransformer` or a `TransformerBridge`, for its tokenizer.
        dataset: the pairs.
        pair_indices: which pairs to use, negative ones counting from the end; None for all.

    Raises:
        ValueError: for an empty dataset, a pair index out of range or given twice, a pair that is not two prompts, a
            word that the tokenizer does not know, prompts of different token lengths, or longer than the context.
    """
    pairs = list(dataset.get_clean_corrupt_pairs())
    if not pairs:
        raise ValueError(f"the dataset {dataset.name!r} has no pairs: get_clean_corrupt_pairs() returned none")
    chosen = range(len(pairs)) if pair_indices is None else pair_indices
    indices = tuple(check_index(i, len(pairs), "pair index") for i in chosen)
    if not indices:
        raise ValueError("pair_indices is empty: give at least one pair index, or None for all")
    if len(set(indices)) < len(indices):
        raise ValueError(f"pair_indices {list(indices)} names a pair twice: give each pair once")
    encoded = [_encode_pair(model, pairs[i], i) for i in indices]
    return EncodedPairs(
        indices=indices,
        clean=tuple(clean for clean, _ in encoded),
        corrupted=tuple(corrupted for _, corrupted in encoded),
        clean_tokens=tuple(token_strings(model, clean) for clean, _ in encoded),
        corrupted_tokens=tuple(token_strings(model, corrupted) for _, corrupted in encoded),
    )


def dataset_metrics(
    model: Any, dataset: PatchingDataset, pair_indices: Sequence[int], metrics: MetricChoice = None
) -> tuple[Metric, ...]:
    """The metrics to measure on these pairs.

    Args:
        model: the model, for its vocabulary.
        dataset: the pairs and their answers.
        pair_indices: which pairs of the dataset.
        metrics: names, `Metric` objects, or both (`metric_sets.METRICS`). The dataset's own, which None stands for, is
            its `compute_metric` where it has one, else the logit difference.

    Raises:
        ValueError: for an unknown metric, where one needs an answer that a pair has not, where an answer is not one
            token of the model's vocabulary, and where a `Metric` object was made for other pairs.
    """

    @functools.cache
    def answers() -> Answers:
        targets = [checked_targets(model, dataset, i) for i in pair_indices]
        correct, incorrect = zip(*targets)
        return Answers(correct, incorrect, tuple(pair_indices))

    def own() -> Metric:
        if type(dataset).compute_metric is not PatchingDataset.compute_metric:
            return DatasetMetric(dataset.compute_metric, tuple(pair_indices))
        return LogitDifference(answers())

    chosen = choose_metrics(metrics, own, answers)
    for metric in chosen:
        if isinstance(metric, AnswerMetric):
            _check_answers(metric, len(pair_indices), model.cfg.d_vocab)
    return chosen


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


def token_strings(model: Any, tokens: Int[Tensor, " pos"]) -> tuple[str, ...]:
    """Each token as text, leading spaces kept."""
    return tuple(model.tokenizer.decode([int(token)], clean_up_tokenization_spaces=False) for token in tokens)


def _encode_pair(model: Any, pair: Any, index: int) -> tuple[Int[Tensor, " pos"], Int[Tensor, " pos"]]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
        raise ValueError(f"pair {index} is {pair!r}, expected (clean prompt, corrupted prompt), two texts")
    clean, corrupted = (_tokenize(model, prompt) for prompt in pair)
    for tokens, prompt in ((clean, pair[0]), (corrupted, pair[1])):
        _check_known(model, tokens, prompt)
        if len(tokens) > model.cfg.n_ctx:
            raise ValueError(
                f"pair {index}: the prompt {prompt[:40]!r}... has {len(tokens)} tokens, the model reads at most "
                f"{model.cfg.n_ctx}: shorten it"
            )
    if len(clean) != len(corrupted):
        raise ValueError(_different_lengths(model, index, clean, corrupted))
    return clean, corrupted


def _different_lengths(model: Any, index: int, clean: Int[Tensor, " _"], corrupted: Int[Tensor, " _"]) -> str:
    at = _first_difference(clean, corrupted)
    seen = [repr("".join(token_strings(model, tokens[at : at + 3]))) for tokens in (clean, corrupted)]
    return (
        f"pair {index}: the clean prompt has {len(clean)} tokens and the corrupted one {len(corrupted)}; they part at "
        f"position {at}, {seen[0]} against {seen[1]}. Activations are exchanged position by position, so both need "
        "the same number of tokens: replace words by words of as many tokens"
    )


def _first_difference(clean: Int[Tensor, " _"], corrupted: Int[Tensor, " _"]) -> int:
    common = min(len(clean), len(corrupted))
    differs = (clean[:common] != corrupted[:common]).nonzero()
    return int(differs[0]) if len(differs) else common


def _tokenize(model: Any, text: str, **options: bool) -> Int[Tensor, " pos"]:
    return model.to_tokens(text, truncate=False, **options)[0].cpu()


def _check_known(model: Any, tokens: Int[Tensor, " pos"], text: str) -> None:
    tokenizer = model.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown == tokenizer.bos_token_id or not bool((tokens == unknown).any()):
        return
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [span for token, span in zip(encoding["input_ids"], encoding["offset_mapping"]) if token == unknown]
    words = list(dict.fromkeys(text[start:end].strip() for start, end in spans))
    raise ValueError(
        f"the model's tokenizer does not know {', '.join(map(repr, words))} in {text!r}: use words it was trained on"
    )


def checked_targets(model: Any, dataset: PatchingDataset, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a pair's (right answers, wrong answers); empty where it has none.

    Raises:
        ValueError: where an answer is not one token of the model's vocabulary, or is both right and wrong.
    """
    try:
        targets = dataset.get_target_tokens(index)
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"pair {index}: get_target_tokens found no single token for its answer ({error}). The answers must be one "
            "token each for this model, usually with a leading space"
        ) from error
    try:
        correct, incorrect = (_ids(given) for given in targets)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"pair {index}: get_target_tokens returned {targets!r}, expected (correct token id, incorrect token id)"
        ) from error
    for token in (*correct, *incorrect):
        if not 0 <= token < model.cfg.d_vocab:
            raise ValueError(f"pair {index}: target token {token} is outside the vocabulary of {model.cfg.d_vocab}")
        if token == model.tokenizer.unk_token_id and token != model.tokenizer.bos_token_id:
            raise ValueError(f"pair {index}: a target is the tokenizer's unknown token: use a word the model knows")
    if both := set(correct) & set(incorrect):
        raise ValueError(f"pair {index}: correct and incorrect answer are the same token {min(both)}")
    return correct, incorrect


def _ids(given: Any) -> tuple[int, ...]:
    """One token id, several, or None for none; each once."""
    if given is None:
        return ()
    several = given if isinstance(given, (tuple, list)) else (given,)
    return tuple(dict.fromkeys(int(token) for token in several))


def _check_answers(metric: AnswerMetric, n_pairs: int, d_vocab: int) -> None:
    """A metric that was made beforehand belongs to these pairs and this model."""
    if len(metric.answers) != n_pairs:
        raise ValueError(
            f"the metric {metric.name!r} has answers for {len(metric.answers)} pairs, the experiment has {n_pairs}: "
            "make it for these pairs, in their order"
        )
    if (largest := int(metric.answers.tokens.max())) >= d_vocab:
        raise ValueError(f"the metric {metric.name!r} has the answer {largest}, outside the vocabulary of {d_vocab}")


def _usable_names(model: Any, names: Sequence[str] | None) -> list[str]:
    """The given names, all of which must be single tokens; or all known names that are."""
    if names is None:
        usable = [name for name in task_templates.NAMES if _is_single_token(model, f" {name}")]
    else:
        usable = list(names)
        for name in usable:
            single_token(model, f" {name}")
    if len(set(usable)) < 5:
        raise ValueError(
            f"IOI needs at least five names of one token each, this model's tokenizer leaves {len(set(usable))}: "
            "give others with names=[...]"
        )
    return usable


def _is_single_token(model: Any, text: str) -> bool:
    try:
        single_token(model, text)
    except ValueError:
        return False
    return True


def _checked_templates(templates: Sequence[str]) -> Sequence[str]:
    if isinstance(templates, str) or not templates:
        raise ValueError(f"templates is {templates!r}, expected a list of sentences with {{A}}, {{B}} and {{S2}}")
    known = {"A", "B", "S2", "PLACE", "OBJECT"}
    for template in templates:
        found = set(task_templates.slots(template))
        if not {"A", "B", "S2"} <= found <= known:
            raise ValueError(
                f"the template {template!r} has the slots {sorted(found)}, expected {{A}}, {{B}} and {{S2}}, and "
                "{PLACE} and {OBJECT} if wanted"
            )
    return templates
