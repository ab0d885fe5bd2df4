"""One experiment drawn from a seed: a small model, prompts, what is patched, and all settings that can matter.

Nothing here runs an experiment; a model is run once, to see which hook points it passes.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actpatch.core.components import COMPONENTS, SHORT_NAMES
from actpatch.core.sites import Patch, Site, head_axis, position_axis
from test_suite.helpers.models import (
    BRIDGE_ARCHITECTURES,
    HAS_HOOKED,
    HOOKED_ARCHITECTURES,
    MORE_BRIDGE_ARCHITECTURES,
    MORE_HOOKED_ARCHITECTURES,
    UNWRITABLE,
    head_count,
    small_model,
)
from test_suite.oracles.metrics import NAMED

_HOOKED = tuple(f"hooked:{name}" for name in (*HOOKED_ARCHITECTURES, *MORE_HOOKED_ARCHITECTURES))
_BRIDGES = tuple(
    f"{kind}:{name}" for name in (*BRIDGE_ARCHITECTURES, *MORE_BRIDGE_ARCHITECTURES) for kind in ("bridge", "bridge+")
)
MODELS = (*(_HOOKED if HAS_HOOKED else ()), *_BRIDGES)
"""Names of the models that the installed TransformerLens has."""

BOS = 1
WORDS = (*range(2, 10), *range(20, 40))
"""None of which is written with the BOS token's text, `w1`, at its start: the tokenizer would split it there."""
N_EXAMPLE = 7
"""Length of the prompt that shows which hook points a model passes."""
USER_HOOKS = ("none", "none", "steer", "ablate", "clamp", "fade")


@dataclass(frozen=True)
class Case:
    """An experiment and the state of the model that it is asked of."""

    seed: int
    model: str
    prompts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """Words of each pair's prompts, as the text gives them: BOS, if it is there, is the user's own."""
    patches: tuple[Patch, ...]
    direction: str
    source: str
    """`other run`, `zero`, `mean` (over the experiment's corrupted prompts) or `mean of clean`."""
    metrics: tuple[str, ...] | None
    """Names; None for the dataset's own, which reads all positions."""
    batch_size: int | None
    training: bool
    padding_side: str
    user_hooks: tuple[tuple[str, str], ...]
    """(hook point, what the user's own hook does there)."""

    def __str__(self) -> str:
        settings = [self.direction, self.source, "training mode" * self.training, f"batches of {self.batch_size}"]
        settings += ["padded left" * (self.padding_side == "left"), "own BOS" * self.has_own_bos]
        settings += [f"user's {kind} at {name}" for name, kind in self.user_hooks]
        lengths = [len(clean) for clean, _ in self.prompts]
        named = "own metric" if self.metrics is None else " and ".join(self.metrics)
        patches = "; ".join(patch.label for patch in self.patches)
        return f"{self.model}, {', '.join(filter(None, settings))}, {named}, lengths {lengths}: {patches}"

    @property
    def has_own_bos(self) -> bool:
        return any(BOS in prompt for pair in self.prompts for prompt in pair)


def draw(seed: int, only: str | None = None) -> Case:
    """The case of this seed, of any model or of one."""
    model = only or random.Random(seed).choice(MODELS)
    drawn = random.Random(f"{seed} {model}")
    prompts = tuple(_pair(drawn, length) for length in _lengths(drawn))
    patches = tuple(_patch(drawn, model, prompts) for _ in range(drawn.randint(1, 3)))
    source = drawn.choice(["other run"] * 4 + ["zero", "mean", "mean of clean"])
    if source == "zero" and any(site.component == "resid_mid" for patch in patches for site in patch.sites):
        source = "mean"  # of zeros there a norm divides by what rounding leaves of them
    names = [name for name in NAMED if source != "zero" or name not in ("rank", "accuracy")]  # zero logits are tied
    metrics = None if drawn.random() < 0.25 else tuple(drawn.sample(names, drawn.randint(1, 2)))
    return Case(
        seed=seed,
        model=model,
        prompts=prompts,
        patches=patches,
        direction=drawn.choice(["denoising", "noising"]),
        source=source,
        metrics=metrics,
        batch_size=drawn.choice([None, None, 1, 2, 3, 5]),
        training=drawn.random() < 0.15,
        padding_side="left" if drawn.random() < 0.2 else "right",
        user_hooks=_user_hooks(drawn, model),
    )


def _lengths(drawn: random.Random) -> list[int]:
    first = drawn.randint(2, 13)
    if drawn.random() < 0.4:
        return [first] * drawn.randint(1, 3)
    return [first, *(drawn.randint(2, 13) for _ in range(drawn.randint(0, 2)))]


def _pair(drawn: random.Random, length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two prompts that differ in up to three words; some begin with a BOS of their own, or hold one."""
    clean = [drawn.choice(WORDS) for _ in range(length)]
    own_bos = drawn.random()
    if own_bos < 0.1:
        clean[0] = BOS
    elif own_bos < 0.2:
        clean[drawn.randrange(length)] = BOS
    corrupted = list(clean)
    for at in drawn.sample(range(length), drawn.randint(0, min(3, length))):
        if corrupted[at] != BOS:
            corrupted[at] = drawn.choice([word for word in WORDS if word != clean[at]])
    return tuple(clean), tuple(corrupted)


def _patch(drawn: random.Random, model: str, prompts: Sequence[Any]) -> Patch:
    """One to three sites, in any order, overlapping or not."""
    n_sites = drawn.choice([1, 1, 1, 2, 3])
    return Patch(tuple(_site(drawn, model, prompts) for _ in range(n_sites)))


def _site(drawn: random.Random, model: str, prompts: Sequence[Any]) -> Site:
    short, others = passed_hook_points(model)
    hook_point = drawn.choice(others) if others and drawn.random() < 0.2 else drawn.choice(short)
    lengths = [len(clean) for clean, _ in prompts]
    position: int | tuple[int, ...] | None = None
    how = drawn.random()
    if how < 0.4:
        position = drawn.randint(-min(lengths), min(lengths) - 1)
    elif how < 0.5:
        position = tuple(drawn.randint(-length, length - 1) for length in lengths)
    has_heads = head_axis(hook_point) is not None and drawn.random() < 0.6
    head = drawn.randrange(_heads(small_model(model), hook_point)) if has_heads else None
    neuron = drawn.randrange(48) if Site(hook_point).kind.has_neurons and drawn.random() < 0.5 else None
    return Site(hook_point, head, position, neuron)


def _heads(model: Any, hook_point: str) -> int:
    """How many heads the hook point has."""
    per_key_value_head = Site(hook_point).kind.per_key_value_head
    return head_count(model, "blocks.0.attn.hook_k" if per_key_value_head else hook_point)


def _user_hooks(drawn: random.Random, model: str) -> tuple[tuple[str, str], ...]:
    kind = drawn.choice(USER_HOOKS)
    if kind == "none":
        return ()
    names = [name for name in passed_hook_points(model)[0] if name.endswith(("resid_pre", "attn_out", "mlp_out"))]
    return ((drawn.choice(names), kind),)


@functools.cache
def passed_hook_points(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(those with short names, others) that this model passes, with the batch and the positions on their usual axes."""
    model, shapes = small_model(name), dict[str, Any]()

    def note(value: Any, hook: Any, hook_point: str) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            shapes[hook_point] = tuple(value.shape)

    hooks = [
        (hook_point, functools.partial(note, hook_point=hook_point))
        for hook_point in model.hook_dict
        if not _needs_switch(hook_point)
    ]
    with torch.no_grad():
        model.run_with_hooks(torch.arange(2, 2 + N_EXAMPLE).repeat(2, 1), fwd_hooks=hooks)
    unwritable = UNWRITABLE.get(name, ())
    usual = [
        point
        for point, shape in shapes.items()
        if len(shape) > 2 and shape[0] == 2 and shape[position_axis(point)] == N_EXAMPLE
        if Site(point).component not in unwritable
    ]
    short = tuple(point for point in usual if Site(point).component in SHORT_NAMES)
    return short, tuple(point for point in usual if point not in short)


def _needs_switch(hook_point: str) -> bool:
    """Whether the hook point is passed only while a switch of the model is on, which plain runs do not turn."""
    kind = Site(hook_point).kind
    return kind in COMPONENTS and kind.switch is not None
