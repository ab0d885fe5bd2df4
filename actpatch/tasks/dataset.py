"""What a dataset is: clean and corrupted prompt pairs with their answers, and if it wants names for positions, a key of
pairs that are made alike, a group of pairs that may work alike, and its own metric. Nothing here knows how prompts
become tokens; `tasks.encoding` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from actpatch.core.text import count, described
from actpatch.metrics.answers import LogitDifference
from actpatch.metrics.base import Answers
from actpatch.tasks.labels import TokenLabels
from actpatch.tasks.targets import answer_ids
from actpatch.tasks.tokens import Prompt, as_list, is_one_prompt

TargetTokens: TypeAlias = int | str | Sequence[int | str] | Sequence[Sequence[int]] | None
"""The only answer, or several that count alike; None where there is none.

    12                   one answer of one token
    " New York"          one answer, of however many tokens, taken as it is written, with its space
    [12, 7]              two answers of one token each
    [" Mary", " John"]   two answers
    [[12, 7]]            one answer of two tokens
    [[12, 7], [9]]       two answers, the first of two tokens
"""
TokenIds: TypeAlias = int | tuple[int, ...]
"""Answers as token ids: one, or several that count alike."""
Align: TypeAlias = Literal["ends", "names"] | Sequence[Mapping[int, int]] | None
"""How the positions of two prompts of other lengths are matched (`PatchingDataset.align`)."""
OnePairAlign: TypeAlias = Literal["ends", "names"] | Mapping[int, int] | None
"""The same for a single pair, whose positions have names only where the prompts are chats."""


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

    token_labels: TokenLabels | None = None
    """What tokens are shown as in tables, figures and reports: token id -> text, a mapping, a list in the order of ids
    or a function; None for what the model's tokenizer says, or the ids where it has none."""

    first_token: bool = False
    """True takes of answers of several tokens the first alone, whatever is measured; by default they are whole."""

    align: Align = None
    """Which positions of a pair's prompts stand for each other, where they may have other numbers of tokens.

    `"ends"`: the tokens before the first difference, from the start, and those after the last one, from the end; what
    lies between where it has as many tokens in both. `"names"`: the positions that the task names, by their name, of
    spans the last tokens (`get_positions`, `get_corrupted_positions`). A list of mappings, one per pair: clean position
    -> corrupted position (`get_alignment`). None: every position stands for that of its own number, and both prompts
    of a pair need as many tokens. A position without a partner is left alone, and so is what is appended to a prompt,
    the beginning of an answer, which follows each prompt's own end.
    """

    made_with: Any = None
    """The tokenizer that its answers were made with, where they are kept; None for that of the model it is for."""

    def __repr__(self) -> str:
        """Class, number of pairs, name, and the seed where there is one."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f'{type(self).__name__}({count(len(self), "pair")}, "{self.name}"{seed})'

    @property
    @abstractmethod
    def name(self) -> str:
        """What the task is called in tables and figures."""

    @abstractmethod
    def get_clean_corrupt_pairs(self) -> Iterable[tuple[Prompt, Prompt]]:
        """The pairs `(clean prompt, corrupted prompt)`; both prompts of a pair have the same number of tokens, unless
        `align` says which of them stand for each other.

        A prompt is a text, the messages of a chat (`[{"role": "user", "content": "..."}]`, written by the tokenizer's
        own chat template), or token ids: a list, a tuple, an array or a tensor of integers. Ids are used as they are
        given, without a BOS of the model's, and serve models that have no tokenizer too.
        """

    @abstractmethod
    def get_target_tokens(self, pair_idx: int) -> tuple[TargetTokens, TargetTokens]:
        """The answers `(correct, incorrect)` to the clean prompt: on each side one, several or None.

        An answer is a token id, a text, taken as it is written (" Mary"), or, within a list, a list of ids
        (`TargetTokens`). One of several tokens serves the metrics of whole answers (`sequence_log_probability` and
        others), or by its first token alone those of one token, where `first_token` is True. Without an incorrect
        answer the pair serves metrics that read the right one alone.
        """

    @property
    def varies(self) -> str:
        """Which signal of the clean prompt the corruption changes; empty where that is not said."""
        return ""

    def get_positions(self, pair_idx: int) -> Mapping[str, int | Sequence[int]]:
        """Named positions of the pair, counted in tokens of its clean prompt, BOS included where the model prepends one
        to a text. A name may stand for several tokens, a span, which are patched together (`{"SUBJECT": (4, 5, 6)}`);
        its single tokens are then named too, counted within it (`SUBJECT[0]`, `SUBJECT[-1]`).

        Negative ones count from the end. They hold for both prompts of a pair that have as many tokens.
        Of chats some have names without being named here: `SYSTEM`, `USER` and `ASSISTANT`, the last token of what each
        says last, and `END`; where nothing is aligned those that are the same in both prompts.
        """
        return {}

    def get_corrupted_positions(self, pair_idx: int) -> Mapping[str, int | Sequence[int]] | None:
        """The named positions in the corrupted prompt, for a dataset that aligns prompts of other lengths.

        None: where the tokens stand that the named clean ones are matched with; and where names are what is matched
        (`align = "names"`), at the same positions, of which negative ones count from the corrupted prompt's own end.
        """
        return None

    def get_alignment(self, pair_idx: int) -> Mapping[int, int] | None:
        """Clean position -> the corrupted position that it stands for; None for what `align` says.

        Negative positions count from the end of their prompt. Each position stands there at most once.
        """
        return None if self.align is None or isinstance(self.align, str) else self.align[pair_idx]

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

        Raises:
            ValueError: for answers that are texts, where the dataset does not say which model it is for, or they are
                not one token each for it.
        """
        correct, incorrect = (self._answer_ids_of(side) for side in self.get_target_tokens(pair_idx))
        metric = LogitDifference(Answers((correct,), (incorrect,), (pair_idx,)))
        return metric.measure(logits[..., metric.tokens], torch.zeros(1, dtype=torch.long)).item()

    def __len__(self) -> int:
        return len(pairs_of(self))

    def _answer_ids_of(self, side: TargetTokens) -> tuple[int, ...]:
        is_text = isinstance(side, str) or (isinstance(side, Sequence) and any(isinstance(one, str) for one in side))
        if is_text and self.made_for is None:
            raise ValueError(
                f"the answers {side!r} are texts, and the dataset {self.name!r} does not say which model it is for: "
                "set self.model, or return token ids"
            )
        return answer_ids(self.made_for, side, first_token=self.first_token)


class CleanPrompts(PatchingDataset):
    """A dataset's clean prompts on both sides, for experiments whose corrupted run is made by noise.

    The corrupted prompts of the dataset are not looked at, and a pair may be a single prompt. Nothing is to be aligned.
    """

    def __init__(self, dataset: PatchingDataset) -> None:
        check_is_dataset(dataset)
        self.dataset = dataset
        declared = (
            "seed",
            "metric_name",
            "metric_unit",
            "more_is_better",
            "compute_metric",
            "first_token",
            "made_with",
        )
        for name in (*declared, "token_labels"):
            setattr(self, name, getattr(dataset, name))

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

    def __init__(self, clean: Prompt, corrupted: Prompt, align: OnePairAlign = None) -> None:
        self.prompts = (clean, corrupted)
        self.align = [align] if isinstance(align, Mapping) else align

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


def one_or_several(ids: Sequence[int]) -> TokenIds:
    """These answers as `get_target_tokens` gives them: the id itself where there is only one."""
    return ids[0] if len(ids) == 1 else tuple(ids)


def as_targets(answers: Sequence[Sequence[int]]) -> TokenIds | tuple[tuple[int, ...], ...]:
    """The same of whole answers: nested, where one of them has several tokens."""
    if all(len(answer) == 1 for answer in answers):
        return one_or_several([answer[0] for answer in answers])
    return tuple(map(tuple, answers))
