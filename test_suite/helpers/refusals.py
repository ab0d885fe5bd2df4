"""What has to be refused before any model has run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook


@contextlib.contextmanager
def no_forward_pass() -> Iterator[None]:
    """Nothing of any model may run: no module's forward is called."""
    ran: list[str] = []
    handle = register_module_forward_pre_hook(lambda module, args: ran.append(type(module).__name__))
    try:
        yield
    finally:
        handle.remove()
    assert not ran, f"{len(ran)} modules ran, first {ran[0]}"


@contextlib.contextmanager
def refused(message: str, error: type[Exception] = ValueError) -> Iterator[None]:
    """The block fails with this message, before any model has run."""
    with no_forward_pass(), pytest.raises(error, match=message):
        yield
