"""Names of hook points are expanded, and unknown ones answered with the nearest, from a list of names alone."""

from __future__ import annotations

from typing import Any

import pytest

from actpatch.core.components import SHORT_NAMES
from actpatch.core.hook_points import expand_hook_points, names_asked_for
from actpatch.core.sites import block_hook

N_LAYERS = 3
AVAILABLE = ["hook_embed", *(block_hook(layer, short) for layer in range(N_LAYERS) for short in SHORT_NAMES)]


def expanded(asked: Any, available: list[str] = AVAILABLE) -> list[str]:
    return expand_hook_points(asked, available, N_LAYERS)


@pytest.mark.parametrize("short", SHORT_NAMES)
def test_a_short_name_is_its_hook_point_of_every_layer(short: str) -> None:
    assert expanded(short) == [f"blocks.{layer}.{SHORT_NAMES[short]}" for layer in range(N_LAYERS)]


def test_names_stay_in_the_order_asked_for_and_each_stands_once() -> None:
    asked = ["hook_embed", "blocks.2.hook_mlp_out", "mlp_out", "hook_embed"]
    assert expanded(asked) == ["hook_embed", *(f"blocks.{layer}.hook_mlp_out" for layer in (2, 0, 1))]
    assert expanded(tuple(asked)) == expanded(iter(asked)) == expanded(asked)


def test_a_single_name_is_a_list_of_one_and_sets_stay_as_they_are() -> None:
    assert names_asked_for("z") == ["z"]
    assert names_asked_for([("z", "mlp_out"), "z"]) == [("z", "mlp_out"), "z"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (None, "hook_points is None, expected names"),
        (3, "hook_points is 3, expected names"),
        ([], "hook_points is empty: give at least one"),
        (["z", 3], "hook_points holds 3, expected the name of a hook point"),
        ("atn_out", r"no hook point 'atn_out'\. The nearest names are .*attn_out"),
        ("hook_attn_out", r"no hook point 'hook_attn_out'\. The nearest names are attn_out"),
        ("blocks.3.hook_mlp_out", r"no hook point 'blocks\.3\.hook_mlp_out'\. The nearest names are blocks\."),
        (
            "@@@@",
            r"No name of this model comes near\. Short names that expand .*: resid_pre, .*resid_post",
        ),
    ],
)
def test_what_is_no_name_of_the_model_is_refused(asked: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expanded(asked)


def test_a_short_name_that_one_layer_lacks_is_told_with_that_layer() -> None:
    lacking = [name for name in AVAILABLE if name != "blocks.1.hook_mlp_out"]
    with pytest.raises(ValueError, match=r"no hook point 'blocks\.1\.hook_mlp_out' \(from 'mlp_out'\)"):
        expanded("mlp_out", lacking)
