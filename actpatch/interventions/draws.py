"""Seeds and numbers of samples, checked: what every intervention that draws something is given."""

from __future__ import annotations

import operator

from actpatch.core.indices import is_integer


def checked_samples(samples: int, whose: str) -> int:
    if not is_integer(samples) or samples < 1:
        raise ValueError(f"{whose} samples is {samples!r}, expected at least 1, an integer")
    return operator.index(samples)


def check_seed(seed: int) -> None:
    if not is_integer(seed) or seed < 0:
        raise ValueError(f"seed is {seed!r}, expected an integer of at least 0")
