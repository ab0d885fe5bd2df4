"""Patching between prompts of other lengths, as one would write it by hand: a run per pair, a loop over positions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from actpatch.core.sites import Patch, Site, block_hook, head_axis
from test_suite.oracles.one_prompt import recorded, run


def partners_of(matches: Sequence[tuple[int, int]], direction: str) -> dict[int, int]:
    """Position in the prompt that is patched -> the position in the other one whose activation is written there."""
    return {there: here for here, there in matches} if direction == "denoising" else dict(matches)


def patched_run(
    model: Any, base: Tensor, other: Tensor, patch: Patch, partners: Mapping[int, int], pair: int
) -> Tensor:
    """Logits at all positions of the run of `base` in which the patch writes what the run of `other` holds."""
    return run(model, base, hooks_of(model, base, other, patch, partners, pair))


def hooks_of(
    model: Any, base: Tensor, other: Tensor, patch: Patch, partners: Mapping[int, int], pair: int
) -> list[tuple[str, Callable[..., Any]]]:
    """Hooks that write what the run of `other` holds at the positions of `base`, whatever follows them."""
    by_hook: dict[str, list[Site]] = {}
    for site in patch.sites:
        by_hook.setdefault(site.hook_point, []).append(site)
    hooks = []
    for name in sorted(by_hook, key=lambda name: Site(name).component == "resid_mid"):  # written after the attention
        write = functools.partial(
            _write,
            sites=by_hook[name],
            source=recorded(model, other, name),
            partners=partners,
            pair=pair,
            length=len(base),
        )
        hooks += _writing(model, Site(name), write)
    return hooks


def _write(
    value: Tensor,
    hook: Any,
    *,
    sites: Sequence[Site],
    source: Tensor,
    partners: Mapping[int, int],
    pair: int,
    length: int,
) -> Tensor:
    value = value.clone()
    for site in sites:
        for at in _positions(site, pair, length):
            if at in partners:
                here, there = ((0, position, *_inner(site, value.ndim)) for position in (at, partners[at]))
                value[here] = source[there]
    return value


def _positions(site: Site, pair: int, length: int) -> Sequence[int]:
    if site.position is None:
        return range(length)
    at = site.position[pair] if isinstance(site.position, tuple) else site.position
    return [one % length for one in (at if isinstance(at, tuple) else (at,))]


def _inner(site: Site, ndim: int) -> tuple[Any, ...]:
    """The index behind prompt and position."""
    inner: list[Any] = [slice(None)] * (ndim - 2)
    if site.head is not None:
        assert head_axis(site.hook_point) == 2
        inner[0] = site.head
    if site.neuron is not None:
        inner[-1] = site.neuron
    return tuple(inner)


def _writing(model: Any, site: Site, write: Callable[..., Tensor]) -> list[tuple[str, Callable[..., Any]]]:
    if not isinstance(model, TransformerBridge) or site.component != "resid_mid":
        return [(site.hook_point, write)]
    # On a bridge only the MLP sees what is written to hook_resid_mid: let the attention produce it instead.
    assert site.layer is not None
    before: list[Tensor] = []
    return [
        (block_hook(site.layer, "resid_pre"), lambda value, hook: before.append(value)),
        (block_hook(site.layer, "attn_out"), lambda value, hook: write(before[-1] + value, hook) - before[-1]),
    ]
