"""Warnings point at the user's own line, through every door and from however deep in the library they come."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

import actpatch
from actpatch.core.warn import warn_user
from test_suite.helpers.models import bundled, fresh_bridge, token_pairs
from test_suite.helpers.prompts import MyTask, Words

MARY = "When Mary and John went to the store, John gave a drink to"
FLIPPED = "When Mary and John went to the store, Mary gave a drink to"

BARELY_DIFFER = "barely differ"
LONE_REFERENCE = "a single reference prompt"
NOT_SIGNIFICANT = "nothing is significant"
MISSING_SPACE = "go on in the prompt's last word"
RUN_IN_FULL = "cannot be resumed exactly"


def layers_of(door: Any) -> Any:
    return door.ActivationPatcher(bundled(), show_progress=False)


def heads_of(door: Any) -> Any:
    return door.HeadPatcher(bundled(), show_progress=False)


def task() -> actpatch.IOIDataset:
    """Pairs of which both prompts ask for the same answer, so that their metrics barely differ."""
    return actpatch.IOIDataset(bundled(), 2, corruption="swap_order")


@functools.cache
def few_pairs(door: Any) -> Any:
    """Results of so few pairs that nothing could be significant."""
    return heads_of(door).run_all_heads_experiment(actpatch.IOIDataset(bundled(), 3))


@functools.cache
def few_in_both_directions(door: Any) -> Any:
    patcher = door.ActivationPatcher(bundled(), show_progress=False)
    return patcher.run_patching_experiment(door.IOIDataset(bundled(), 3), "attn_out", direction="both")


def own_prompts() -> pd.DataFrame:
    """A row whose first answer lacks the space before its word."""
    return pd.DataFrame([{"clean": MARY, "corrupted": FLIPPED, "correct": "Mary", "incorrect": " John"}])


LAYERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "layers": (BARELY_DIFFER, lambda door: layers_of(door).run_patching_experiment(task(), "attn_out")),
    "both directions": (
        BARELY_DIFFER,
        lambda door: layers_of(door).run_patching_experiment(task(), "attn_out", direction="both"),
    ),
    "positions": (BARELY_DIFFER, lambda door: layers_of(door).run_position_experiment(task(), "resid_post")),
    "neurons": (BARELY_DIFFER, lambda door: layers_of(door).run_neurons_experiment(task(), 0, [1, 2])),
    "sweep": (
        BARELY_DIFFER,
        lambda door: layers_of(door).sweep(task(), [actpatch.Patch((actpatch.Site("blocks.0.hook_attn_out"),))]),
    ),
    "mean of one": (
        LONE_REFERENCE,
        lambda door: layers_of(door).run_patching_experiment(
            door.IOIDataset(bundled(), 1), "attn_out", source=door.Mean()
        ),
    ),
    "readings": (NOT_SIGNIFICANT, lambda door: few_in_both_directions(door).reading(alpha=0.05)),
    "prompts of a table": (
        MISSING_SPACE,
        lambda door: door.PromptPairs.from_dataframe(bundled(), own_prompts()),
    ),
    "prompts": (
        MISSING_SPACE,
        lambda door: door.PromptPairs(bundled(), [door.PromptPair(MARY, FLIPPED, ("Mary",), (" John",))]),
    ),
}
HEADS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "heads": (BARELY_DIFFER, lambda door: heads_of(door).run_all_heads_experiment(task())),
    "important heads": (
        NOT_SIGNIFICANT,
        lambda door: heads_of(door).find_important_heads(few_pairs(door), alpha=0.05),
    ),
    "significant": (NOT_SIGNIFICANT, lambda door: few_pairs(door).statistics().significant_or_warned()),
}
"""What warns: what it says, and the user's call."""

DOORS = {"activation_patching": LAYERS, "head_patching": HEADS, "actpatch": {**LAYERS, **HEADS}}
CALLS = [(door, call) for door, calls in DOORS.items() for call in calls]


def told(call: Callable[[], Any]) -> list[warnings.WarningMessage]:
    """What the library warned of, each time anew."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [warning for warning in caught if warning.category is UserWarning]


def lines_of(call: Callable[..., Any]) -> set[int | None]:
    return {line for *_, line in call.__code__.co_lines()}


@pytest.mark.parametrize(("door", "name"), CALLS)
def test_a_warning_points_at_the_user_s_line_through_each_door(door: str, name: str) -> None:
    module: ModuleType = importlib.import_module(door)
    said, call = DOORS[door][name]
    warned = [warning for warning in told(lambda: call(module)) if said in str(warning.message)]
    assert warned
    for warning in warned:
        assert Path(warning.filename) == Path(__file__)
        assert warning.lineno in lines_of(call)


def test_a_model_that_is_run_in_full_is_told_at_the_users_line() -> None:
    """From behind a generator of the library, as the engine runs its chunks."""
    pairs = token_pairs([8], [(3,)])
    patcher = actpatch.ActivationPatcher(fresh_bridge("bloom"), show_progress=False)
    call = lambda: patcher.run_patching_experiment(Words(pairs), "attn_out")  # noqa: E731
    warned = [warning for warning in told(call) if RUN_IN_FULL in str(warning.message)]
    assert [(Path(warning.filename), warning.lineno in lines_of(call)) for warning in warned] == [
        (Path(__file__), True)
    ]


@pytest.mark.parametrize(
    "file",
    [
        "<stdin>",
        "<string>",
        "<input>",
        "<python-input-3>",
        "<ipython-input-3-0123456789ab>",
        "<doctest notes.md[2]>",
        "{library}_of_mine.py",
        "{library}-notes/first.py",
    ],
)
def test_what_is_typed_in_and_files_with_a_name_like_the_librarys_are_the_users(file: str) -> None:
    file = file.format(library=Path(actpatch.__path__[0]).resolve())
    source = "\nPromptPairs.from_dataframe(model, table)"
    names = {"PromptPairs": actpatch.PromptPairs, "model": bundled(), "table": own_prompts()}
    warned = told(lambda: exec(compile(source, file, "exec"), names))
    assert [(warning.filename, warning.lineno) for warning in warned] == [(file, 2)]


def test_a_users_callback_that_calls_the_library_is_the_line_meant() -> None:
    """Not the experiment that called back: what is warned of was written in the callback."""

    class Made(MyTask):
        """Reads a table besides, wherever it is asked for its pairs."""

        def get_clean_corrupt_pairs(self) -> list[tuple[str, str]]:
            actpatch.PromptPairs.from_dataframe(self.model, own_prompts())
            return super().get_clean_corrupt_pairs()

    patcher = layers_of(actpatch)
    warned = told(lambda: patcher.run_patching_experiment(Made(bundled()), "attn_out"))
    meant = [warning for warning in warned if MISSING_SPACE in str(warning.message)]
    assert meant
    for warning in meant:
        assert Path(warning.filename) == Path(__file__)
        assert warning.lineno in lines_of(Made.get_clean_corrupt_pairs)


def test_a_warning_of_no_one_else_is_at_the_call_itself() -> None:
    call = lambda: warn_user("this line")  # noqa: E731
    (warning,) = told(call)
    assert (str(warning.message), Path(warning.filename)) == ("this line", Path(__file__))
    assert warning.lineno in lines_of(call)
