"""One sweep at a time runs on a model, and whatever ends it leaves the model as it was."""

from __future__ import annotations

import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from actpatch import ActivationPatcher
from actpatch.core.sites import Site, block_hook
from actpatch.models.found import as_found, modules_of
from test_suite.engine.test_left_as_found import assert_same_state, state_of
from test_suite.helpers.models import fresh_model, model_parameters, token_pairs
from test_suite.helpers.sweeps import site_sweep

MODELS = model_parameters("hooked:grouped", "bridge+:gpt2", "bridge:llama")
SITES = [Site(block_hook(1, "z"), head=1), Site(block_hook(2, "mlp_out")), Site(block_hook(0, "q"), position=-1)]


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", MODELS)
def test_threads_take_turns_on_a_model(name: str) -> None:
    model, pairs = fresh_model(name), token_pairs([9, 7], [(2,), (3,)])
    expected = site_sweep(model, pairs, SITES)
    logits, before = model(pairs.clean[0][None]), state_of(model)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: site_sweep(model, pairs, SITES), range(6)))
    for sweep in found:
        np.testing.assert_array_equal(sweep.patched, expected.patched)
    assert_same_state(before, state_of(model))
    assert torch.equal(model(pairs.clean[0][None]), logits)


def test_the_thread_that_holds_a_model_may_hold_it_again_and_others_wait() -> None:
    model, entered = fresh_model("bridge+:gpt2"), threading.Event()

    def enter() -> None:
        with as_found(model):
            entered.set()

    with as_found(model), as_found(model):
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.2)
    other.join()
    assert entered.is_set()


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", model_parameters("hooked:grouped", "bridge+:gpt2", slow=["bridge:llama"]))
def test_an_interrupt_at_any_moment_leaves_the_model_as_it_was(name: str) -> None:
    """Interrupts at lines of the library's and TransformerLens' code that are drawn by chance."""
    model, pairs = fresh_model(name), token_pairs([9, 7], [(2,), (3,)])
    site_sweep(model, pairs, SITES)
    logits, before = model(pairs.clean[0][None]), state_of(model)
    lines = _Lines(None)
    with lines:
        site_sweep(model, pairs, SITES)
    generator = random.Random(0)
    for _ in range(15):
        with _Lines(generator.randrange(lines.passed)), pytest.raises(KeyboardInterrupt):
            site_sweep(model, pairs, SITES)
        assert_same_state(before, state_of(model))
    assert torch.equal(model(pairs.clean[0][None]), logits)


class _Lines:
    """Counts lines of the library and of TransformerLens as they are run, and interrupts at one of them."""

    def __init__(self, interrupt_at: int | None) -> None:
        self.interrupt_at, self.passed = interrupt_at, 0

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: Any) -> None:
        sys.settrace(self.before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        module = str(frame.f_globals.get("__name__"))
        if not module.startswith(("actpatch.", "transformer_lens.")):
            return None
        if event == "line":
            self.passed += 1
            if self.passed - 1 == self.interrupt_at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


@pytest.mark.parametrize("name", model_parameters("bridge:gpt2", "bridge:opt", "bridge+:llama"))
def test_what_a_bridge_wraps_is_put_into_evaluation_mode(name: str) -> None:
    """Dropout of the modules that a bridge does not register would change every run."""
    model, pairs = fresh_model(name), token_pairs([9, 7], [(2,), (3,)])
    expected = site_sweep(model, pairs, SITES)
    for module in modules_of(model):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        for rate in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.5)
        module.training = True
    found = site_sweep(model, pairs, SITES)
    np.testing.assert_allclose(found.patched, expected.patched, atol=1e-5, rtol=0)
    assert all(module.training for module in modules_of(model))


def test_a_patcher_says_which_shortcuts_hold() -> None:
    model = fresh_model("bridge+:gpt2")
    patcher = ActivationPatcher(model, show_progress=False)
    assert "found by the first sweep" in repr(patcher)
    prompts = "w3 w5 w7", "w3 w6 w7"
    patcher.run_patched(*prompts, "blocks.1.hook_mlp_out")
    assert "shortcuts: resume, prefix, linear" in repr(patcher)
