"""Whole numbers are what Python, NumPy and PyTorch count with, and choose what Python's own would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actpatch.core.indices import as_integer, check_index, check_indices, is_integer

WHOLE = [3, -1, 0, np.int64(3), np.uint8(2), np.array(2), torch.tensor(2), torch.tensor([2])]
NO_WHOLE = [True, False, np.True_, 2.0, np.float32(2), "2", None, [2], np.array([1, 2]), torch.tensor(2.0)]


@pytest.mark.parametrize("number", WHOLE, ids=repr)
def test_whole_numbers_of_every_library_become_pythons(number: Any) -> None:
    assert is_integer(number)
    assert type(as_integer(number)) is int and as_integer(number) == number
    assert type(check_index(number, 4, "layer")) is int


@pytest.mark.parametrize("number", NO_WHOLE, ids=repr)
def test_what_is_no_whole_number_stays_as_it_is_and_is_refused_as_an_index(number: Any) -> None:
    assert not is_integer(number)
    assert as_integer(number) is number
    with pytest.raises(ValueError, match=r"layer .* is not an integer"):
        check_index(number, 4, "layer")


@given(index=st.integers(-60, 60), size=st.integers(1, 50))
def test_an_index_is_that_of_a_list_from_whichever_end(index: int, size: int) -> None:
    if -size <= index < size:
        assert check_index(index, size, "head") == range(size)[index]
    else:
        with pytest.raises(ValueError, match=rf"head {index} is out of range: expected {-size} to {size - 1}"):
            check_index(index, size, "head")


def test_several_keep_their_order_and_repetitions() -> None:
    for given_as in ([3, -1, 0, 0], (3, -1, 0, 0), np.array([3, -1, 0, 0]), torch.tensor([3, -1, 0, 0])):
        assert check_indices(given_as, 4, "layers", "layer") == [3, 3, 0, 0]
    assert check_indices(iter(range(2)), 4, "layers", "layer") == [0, 1]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (3, "layers is 3, expected a list of integers, or None for all"),
        ("12", "layers is '12', expected a list of integers, or None for all"),
        (torch.tensor(3), "expected a list of integers, or None for all"),
        ([], "layers is empty: give at least one layer, or None for all"),
        ([0, 4], "layer 4 is out of range: expected -4 to 3"),
        ([0, 1.0], "layer 1.0 is not an integer"),
        ([True], "layer True is not an integer"),
    ],
)
def test_lists_that_choose_nothing_are_refused(indices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_indices(indices, 4, "layers", "layer")
