"""The checker that the suite hands to jaxtyping: shapes and types of tensors, as signatures state them, and no more.

Other arguments are left to the library, whose own errors say more than a type checker's, and are tested themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, checking those of its annotations that speak of an array."""
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if _speaks_of_an_array(hint)
    }
    return beartype(function)


def _speaks_of_an_array(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(_speaks_of_an_array(part) for part in get_args(hint))
