"""A position that plays another role in some pairs is named, in a warning and in the results."""

from __future__ import annotations

import dataclasses
import warnings

import pytest

from activation_patching import ActivationPatcher, IOIDataset
from actpatch.tasks.encoding import encode_pairs
from actpatch.tasks.roles import mixed_roles
from test_suite.helpers.models import bundled, token_pairs
from test_suite.helpers.prompts import ANIMALS, Prompts

ROLES = "go by names instead ('IO', 'S1', 'S1+1', 'S2', 'END')"


def test_a_position_is_named_with_what_it_is_in_how_many_pairs():
    pairs = encode_pairs(bundled(), IOIDataset(bundled(), 5))
    assert mixed_roles(pairs, [4, 2, 3]) == (
        "position 4 is S1 in 3 pairs and IO in 2, and 2 more positions likewise: effects there are means over unlike "
        f"things; {ROLES}"
    )
    assert mixed_roles(pairs, [3]).startswith("position 3 is unnamed in 3 pairs and S1+1 in 2: effects there")
    assert mixed_roles(pairs, [0, 10, 14, -1, -5]) == "" == mixed_roles(pairs, [])
    assert mixed_roles(pairs, [-11]).startswith("position -11 is S1 in 3 pairs and IO in 2: ")


def test_one_order_and_datasets_without_names_are_not_mixed():
    dataset = IOIDataset(bundled(), 6)
    assert mixed_roles(encode_pairs(bundled(), dataset, [0, 2, 4]), range(15)) == ""
    assert mixed_roles(encode_pairs(bundled(), Prompts(bundled(), ANIMALS)), range(4)) == ""


def test_positions_from_the_end_are_those_of_each_prompt():
    names = ({"A": 4, "B": 7}, {"A": 3, "B": 5}, {"A": 6, "B": 7})
    pairs = dataclasses.replace(token_pairs([9, 7, 9], [(3,)] * 3), positions=names)
    assert mixed_roles(pairs, [-2, -1]) == ""
    assert "position 4 is unnamed in 2 pairs and A in 1" in mixed_roles(pairs, [4])


@pytest.mark.parametrize("asked", ["map", "position", "set"])
def test_sweeps_warn_once_and_results_keep_it(asked):
    patcher, dataset = ActivationPatcher(bundled(), show_progress=False), IOIDataset(bundled(), 6)
    with pytest.warns(UserWarning) as told:
        if asked == "map":
            results = patcher.run_position_experiment(dataset, "resid_pre")
        else:
            position = 2 if asked == "position" else [2, -1]
            results = patcher.run_patching_experiment(dataset, "resid_pre", position=position)
    (warning,) = [str(one.message) for one in told]
    assert warning.startswith("position 2 is IO in 3 pairs and S1 in 3") and warning.endswith(ROLES)
    assert warning in results.sweep.notes and told[0].filename == __file__


def test_names_one_pair_and_one_order_are_not_warned_of():
    patcher, dataset = ActivationPatcher(bundled(), show_progress=False), IOIDataset(bundled(), 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = patcher.run_position_experiment(dataset, "resid_pre", positions=["IO", "S1", "END"])
        alone = patcher.run_position_experiment(dataset, "resid_pre", pair_indices=[0])
        alike = patcher.run_position_experiment(dataset, "resid_pre", pair_indices=[0, 2, 4])
    assert not any("means over unlike things" in note for r in (named, alone, alike) for note in r.sweep.notes)
