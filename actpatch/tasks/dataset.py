"""What a dataset is: clean and corrupted prompt pairs with their answers, and if it wants names for positions, a key of
pairs that are made alike, a group of pairs that may work alike, and its own metric. Nothing here knows how prompts
become tokens; `tasks.encoding` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from actpatch.core.text import described
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from actpatch.tasks.tokens import Prompt, as_list, is_one_prompt, token_ids

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

    made_with: Any = None
    """The tokenizer that its answers were made with, where they are kept; None for that of the model it is for."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What the task is called in tables and figures."""

    @abstractmethod
    def get_clean_corrupt_pairs(self) -> Iterable[tuple[Prompt, Prompt]]:
        """The pairs `(clean prompt, corrupted prompt)`; both prompts of a pair have the same number of tokens.

        A prompt is a text, or token ids: a list, a tuple, an array or a tensor of integers. Ids are used as they are
        given, without a BOS of the model's, and serve models that have no tokenizer too.
        """

    @abstractmethod
    def get_target_tokens(self, pair_idx: int) -> tuple[TargetTokens, TargetTokens]:
        """Token ids `(correct, incorrect)` of the answers to the clean prompt: on each side one, several or None.

        Without an incorrect answer the pair serves metrics that read the right one alone.
        """

    @property
    def varies(self) -> str:
        """Which signal of the clean prompt the corruption changes; empty where that is not said."""
        return ""

    def get_positions(self, pair_idx: int) -> Mapping[str, int | Sequence[int]]:
        """Named positions of the pair, counted in tokens of its prompts, BOS included where the model prepends one
        to a text.

        Negative ones count from the end. Both prompts of a pair have as many tokens, so one position holds for both.
        """
        return {}

    def get_template(self, pair_idx: int) -> str:
        """A key that pairs share if their prompts differ in single words of the same places, and so may be averaged
        position by position; empty where that is not said."""
        return ""

    def get_group(self, pair_idx: int) -> str:
        """What the pair has in common with those that may work as it does and others may not, in words a table can
        show: which name comes first, say. Sweeps test whether effects differ between groups. By default its template.
        """
        return self.get_template(pair_idx)

    @property
    def made_for(self) -> Any:
        """The model whose token ids the answers and positions are; None where that is not said.

        It is the attribute `model`, where there is one. A model that reads texts as other tokens is refused.
        """
        return getattr(self, "model", None)

    def compute_metric(self, logits: Float[Tensor, "1 pos d_vocab"], pair_idx: int) -> float:
        """logit(correct) - logit(incorrect) at the last position, in logits. Override it to measure something else.

        `metric_name`, `metric_unit` and `more_is_better` say then what it is. Several answers of one side count as one
        whose probability is the sum of theirs.
        """
        correct, incorrect = (token_ids(targets) for targets in self.get_target_tokens(pair_idx))
        metric = LogitDifference(Answers((correct,), (incorrect,), (pair_idx,)))
        return metric.measure(logits[..., metric.tokens], torch.zeros(1, dtype=torch.long)).item()

    def __len__(self) -> int:
        return len(pairs_of(self))


class CleanPrompts(PatchingDataset):
    """A dataset's clean prompts on both sides, for experiments whose corrupted run is made by noise.

    The corrupted prompts of the dataset are not looked at, and a pair may be a single prompt.
    """

    def __init__(self, dataset: PatchingDataset) -> None:
        check_is_dataset(dataset)
        self.dataset = dataset
        for declared in ("seed", "metric_name", "metric_unit", "more_is_better", "compute_metric", "made_with"):
            setattr(self, declared, getattr(dataset, declared))

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def made_for(self) -> Any:
        return self.dataset.made_for

    def get_clean_corrupt_pairs(self) -> list[tuple[Prompt, Prompt]]:
        prompts = [pair if is_one_prompt(pair) else (as_list(pair) or [pair])[0] for pair in pairs_of(self.dataset)]
        return [(prompt, prompt) for prompt in prompts]

    def get_target_tokens(self, pair_idx: int) -> tuple[TargetTokens, TargetTokens]:
        return self.dataset.get_target_tokens(pair_idx)

    def get_positions(self, pair_idx: int) -> Mapping[str, int | Sequence[int]]:
        return self.dataset.get_positions(pair_idx)

    def get_template(self, pair_idx: int) -> str:
        return self.dataset.get_template(pair_idx)

    def get_group(self, pair_idx: int) -> str:
        return self.dataset.get_group(pair_idx)


class SinglePair(PatchingDataset):
    """One pair of prompts without answers, for single runs."""

    def __init__(self, clean: Prompt, corrupted: Prompt) -> None:
        self.prompts = (clean, corrupted)

    @property
    def name(self) -> str:
        return "single run"

    def get_clean_corrupt_pairs(self) -> list[tuple[Prompt, Prompt]]:
        return [self.prompts]

    def get_target_tokens(self, pair_idx: int) -> tuple[TargetTokens, TargetTokens]:
        return None, None


def check_is_dataset(dataset: object) -> None:
    """Raises ValueError for what is no dataset, a class of them included."""
    if not isinstance(dataset, PatchingDataset):
        raise ValueError(
            f"the dataset is {described(dataset)}, expected a PatchingDataset: a task (IOIDataset(model)), or pairs of "
            "your own (PromptPairs.from_dataframe(model, frame))"
        )


def pairs_of(dataset: PatchingDataset) -> list[Any]:
    """The dataset's pairs, which it may give as a list or one after the other.

    Raises:
        ValueError: where it gives no pairs at all, but something else.
    """
    given = dataset.get_clean_corrupt_pairs()
    if not isinstance(given, Iterable):
        raise ValueError(
            f"get_clean_corrupt_pairs of the dataset {dataset.name!r} returned {given!r}, expected a list of pairs "
            "(clean prompt, corrupted prompt)"
        )
    return list(given)


def one_or_several(ids: Sequence[int]) -> TargetTokens:
    """These answers as `get_target_tokens` gives them: the id itself where there is only one."""
    return ids[0] if len(ids) == 1 else tuple(ids)
