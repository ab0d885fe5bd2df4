"""The table of components is what models have: every hook point, their order, and the axes of their tensors."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from actpatch.core.components import COMPONENTS, PATCH_TYPES, SHORT_NAMES, component_of, in_forward_order
from test_suite.helpers.models import CLASSES, HAS_HOOKED, bundled, head_count, model_parameters, small_model

BLOCK = 1
SWITCHES = sorted({row.switch for row in COMPONENTS if row.switch is not None})
NAMES = {hook for row in COMPONENTS for hook in row.hooks}
MODELS = ["hooked:rotary", "hooked:gated", "hooked:grouped", "bridge:gpt2", "bridge:llama", "bridge+:llama"]


@contextlib.contextmanager
def switched_on(model: Any, switch: str | None) -> Iterator[None]:
    if switch is not None:
        getattr(model, f"set_{switch}")(True)
    try:
        yield
    finally:
        if switch is not None:
            getattr(model, f"set_{switch}")(False)


def hooks_of(model: Any) -> set[str]:
    """What this model calls the hook points of a block."""
    start = f"blocks.{BLOCK}."
    return {name.removeprefix(start) for name in model.hook_dict if name.startswith(start)}


def fired(model: Any, switch: str | None = None) -> list[tuple[str, Tensor]]:
    """The hook points of the table that a forward pass comes by in one block, in its order, with their tensors."""
    passed: list[tuple[str, Tensor]] = []

    def note(value: Tensor, hook: Any, name: str) -> None:
        passed.append((name, value.detach()))

    asked = [
        (f"blocks.{BLOCK}.{name}", functools.partial(note, name=name))
        for name in sorted(NAMES & hooks_of(model))
        if component_of(name).switch in (None, switch)
    ]
    with switched_on(model, switch), torch.no_grad():
        model.run_with_hooks(torch.tensor([[1, 2, 3, 4, 5]]), fwd_hooks=asked)
    return passed


def assert_in_order(passed: list[tuple[str, Tensor]]) -> None:
    rows = [in_forward_order(component_of(name)) for name, _ in passed]
    assert rows == sorted(rows), [name for name, _ in passed]


@pytest.mark.parametrize("model_class", CLASSES)
def test_every_short_name_is_a_hook_point_that_the_bundled_model_passes(model_class: str) -> None:
    model = bundled(model_class)
    assert set(SHORT_NAMES.values()) <= hooks_of(model)
    assert set(SHORT_NAMES.values()) <= {name for name, _ in fired(model)}


def test_every_hook_point_of_every_row_exists_on_some_model() -> None:
    models = [name for name in MODELS if HAS_HOOKED or not name.startswith("hooked")]
    assert set().union(*(hooks_of(small_model(name)) for name in models)) >= NAMES


@pytest.mark.parametrize("model_class", CLASSES)
def test_rows_stand_in_the_order_in_which_the_bundled_model_comes_by(model_class: str) -> None:
    passed = fired(bundled(model_class))
    assert len(passed) >= len(SHORT_NAMES)
    assert_in_order(passed)


@pytest.mark.parametrize("name", model_parameters(*MODELS))
def test_rows_stand_in_the_order_in_which_other_models_come_by(name: str) -> None:
    """Rotated queries and keys and the two inputs of a gated MLP, which the bundled model has not, have their place."""
    assert_in_order(fired(small_model(name)))


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge+:gpt2"))
def test_rows_that_need_a_switch_are_passed_in_their_place_once_it_is_on(name: str, switch: str) -> None:
    passed = fired(small_model(name), switch)
    on_bridges_first = "hook_mlp_in" if name.startswith("bridge") else None  # there it comes before hook_resid_mid
    assert_in_order([entry for entry in passed if entry[0] != on_bridges_first])
    needing = {row.name for row in COMPONENTS if row.switch == switch}
    assert needing <= {component_of(hook).name for hook, _ in passed}


@pytest.mark.parametrize("switch", [None, *SWITCHES])
@pytest.mark.parametrize("name", model_parameters("hooked:learned", "bridge+:gpt2", "bridge+:llama"))
def test_axes_of_heads_and_neurons_are_those_of_the_tensors(name: str, switch: str | None) -> None:
    model = small_model(name)
    n_heads, per_group = (head_count(model, hook) for hook in ("attn.hook_q", "attn.hook_k"))
    for hook, value in fired(model, switch):
        row = component_of(hook)
        if row.head_axis is not None and row.switch is None:
            assert value.shape[row.head_axis] == (per_group if row.per_key_value_head else n_heads), hook
        elif row.head_axis is not None:
            assert value.ndim == 4 and value.shape[row.head_axis] in (n_heads, per_group), hook
        elif row.has_neurons:
            assert value.shape[-1] == model.cfg.d_mlp, hook
        else:
            assert value.shape == (1, 5, model.cfg.d_model), hook


@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "hooked:ungrouped"))
def test_axes_under_grouped_queries_are_those_of_the_tensors(name: str) -> None:
    model = small_model(name)
    found = {hook: value.shape[row.head_axis] for hook, value in fired(model) if (row := component_of(hook)).head_axis}
    assert found.pop("attn.hook_k") == found.pop("attn.hook_v") == head_count(model, "attn.hook_k")
    assert found.pop("attn.hook_rot_k") == head_count(model, "attn.hook_k")
    assert set(found.values()) == {model.cfg.n_heads}


def test_patch_types_begin_with_what_most_ask_for() -> None:
    assert list(PATCH_TYPES) == ["output", "pattern", "q", "k", "v"]
    assert [row.name for row in PATCH_TYPES.values()] == ["z", "pattern", "q", "k", "v"]
    assert all(row.head_axis is not None and row.short for row in PATCH_TYPES.values())


def test_no_name_stands_twice_and_other_hook_points_are_components_of_their_own() -> None:
    assert len({row.name for row in COMPONENTS}) == len(COMPONENTS)
    assert len(NAMES) == sum(len(row.hooks) for row in COMPONENTS)
    for row in COMPONENTS:
        assert all(component_of(hook) is row for hook in row.hooks)
        assert row.short == (row.name in SHORT_NAMES)
    other = component_of("ln1.hook_scale")
    assert (other.name, other.hooks, other.short, other.head_axis) == (
        "ln1.hook_scale",
        ("ln1.hook_scale",),
        False,
        None,
    )
